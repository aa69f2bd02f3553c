"""What lenscope reaches on a lent accelerator, in under eight minutes: trajectories, a fit and grids of two models.

The models are random Llamas with 1B and 7B parameters in bfloat16, made on the device; nothing is downloaded, and the
script runs from a source tree. Measured are, for each model:

- trajectory: `Lens.trajectory` of 2,048 tokens at all layers, against its floor (the forward pass and one product with
  the head for each layer, made bare) and against all logits stacked (of as many tokens as fit, scaled up);
- fit: tokens a second of `fit`, and which share of the machine's largest product it reaches (counted by
  lenscope.planning, whose prediction stands beside it);
- grid: a whole grid of source layer × target layer, next tokens and 16 tokens, against rows in batches with hooks.

Goals: a trajectory within 1.3 × its floor, a fit above half of the ceiling. Every part runs once before it is timed;
times are medians. A part that runs out of memory, or fails, is a line with the reason, and the others go on; one that
would begin after the budget is left out. --tiny runs the same code in seconds on any machine; --profile says where the
time of each part goes.

    PYTHONPATH=src python benchmarks/gpu.py
    PYTHONPATH=src python benchmarks/gpu.py --only trajectory --shapes 7b --profile
"""

import argparse
import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import sweep_baselines as plain
import timing
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

import lenscope as ls
from lenscope.planning.machines import MACHINES
from lenscope.planning.model_shapes import shape_of_model
from lenscope.planning.plan import Task, plan

# layers, width, heads, key-value heads, MLP, vocabulary: Llama 3.2 1B's and Llama 3 8B's
SHAPES = {
    "tiny": (3, 64, 4, 2, 128, 1000),
    "1b": (16, 2048, 32, 8, 8192, 128_256),
    "7b": (32, 4096, 32, 8, 14_336, 128_256),
}
SECTIONS = ("trajectory", "fit", "grid")
# what a part is to reach: times the floor, share of the ceiling
GOALS = {"trajectory": 1.3, "fit": 0.5}
# of the device's free memory that stacked logits may take; their log-probabilities, KL and rank take several times them
STACKED_SHARE, STACKED_COPIES = 0.8, 5
COLUMNS: timing.Columns = {
    "shape": ("", 6, ""),
    "part": ("", 12, ""),
    "what": ("", 40, ""),
    "seconds": ("median s", 11, ".4f"),
    "ratio": ("ratio", 9, ".2f"),
    "of": ("  of", 26, ""),
}


class Bench:
    """One model on the device, and each part as rows of the table."""

    def __init__(self, shape: str, args: argparse.Namespace, ceiling: float) -> None:
        self.shape, self.args, self.ceiling = shape, args, ceiling
        layers, width, heads, kv, inner, vocab = SHAPES[shape]
        config = LlamaConfig(
            num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, num_key_value_heads=kv,
            intermediate_size=inner, vocab_size=vocab, max_position_embeddings=max(4096, args.tokens),
            tie_word_embeddings=False, eos_token_id=None, bos_token_id=None, pad_token_id=None,
        )  # fmt: skip
        torch.manual_seed(0)
        with torch.device(args.device):
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype)).eval()
        model.generation_config.eos_token_id = None
        self.lm = ls.load(model)
        draw = torch.Generator().manual_seed(0)
        self.ids = torch.randint(10, vocab, (args.tokens,), generator=draw).tolist()

    def timed(self, runs: dict[str, Callable[[], Any]], repeats: int | None = None) -> dict[str, float]:
        """Median seconds of alternatives that run in turn, each once before it counts."""
        for run in runs.values():
            run()
        clocks = {name: timing.clock(run, device=self.args.device) for name, run in runs.items()}
        times = timing.in_turn(clocks, repeats or self.args.repeats)
        return {name: timing.spread(values).middle for name, values in times.items()}

    # -- trajectories

    def trajectory(self) -> Iterator[dict[str, Any]]:
        lens, ids = ls.Lens(self.lm), self.ids
        seconds = self.timed({"lenscope": lambda: lens.trajectory(ids), "floor": self.trajectory_floor()})
        yield {"what": "floor: forward pass, products with head", "seconds": seconds["floor"]}
        ratio = seconds["lenscope"] / seconds["floor"]
        yield {"what": f"Lens.trajectory, {len(ids)} tokens", "seconds": seconds["lenscope"], "ratio": ratio,
               "of": "× floor", "goal": ratio <= GOALS["trajectory"]}  # fmt: skip
        part = ids[: self.stackable()]
        stacked = self.timed({"stacked": lambda: self.stack(part), "lenscope": lambda: lens.trajectory(part)}, 2)
        yield {"what": f"all logits stacked, {len(part)} tokens", "seconds": stacked["stacked"],
               "ratio": stacked["stacked"] / stacked["lenscope"], "of": "× Lens.trajectory, same"}  # fmt: skip

    def trajectory_floor(self) -> Callable[[], None]:
        """The forward pass without a hook, and the head's product with as many rows for each layer, into one buffer."""
        model, n = self.lm.model, self.lm.n_layers + 1
        ids = torch.tensor([self.ids], device=model.device)
        head = model.lm_head.weight
        logits = torch.empty(len(self.ids), len(head), device=model.device, dtype=head.dtype)

        @torch.no_grad()
        def run() -> None:
            h = model.model(input_ids=ids, use_cache=False).last_hidden_state[0]
            for _ in range(n):
                torch.mm(h, head.t(), out=logits)

        return run

    def stackable(self) -> int:
        """Tokens whose stacked logits fit into what is free."""
        if self.args.device == "cpu":
            return min(64, len(self.ids))
        free = torch.cuda.mem_get_info()[0] * STACKED_SHARE
        each = (self.lm.n_layers + 1) * self.lm.vocab_size * 4 * STACKED_COPIES
        return int(max(16, min(len(self.ids), free // each)))

    @torch.no_grad()
    def stack(self, ids: list[int]) -> None:
        """The same measures from log-probabilities of all layers at once."""
        from lenscope.measures import definitions

        states = self.lm.read(ids)[:, :]
        log_q = F.linear(self.lm.model.model.norm(states), self.lm.model.lm_head.weight).float().log_softmax(-1)
        following = torch.tensor([*ids[1:], 0], device=log_q.device).expand(len(log_q), -1)
        definitions.entropy(log_q), definitions.kl(log_q[-1:].expand_as(log_q), log_q)
        definitions.surprisal(log_q, following), definitions.rank(log_q, following), log_q.topk(5)

    # -- fits

    def fit(self) -> Iterator[dict[str, Any]]:
        args, lm = self.args, self.lm
        length = min(512, args.tokens)
        draw = torch.Generator().manual_seed(1)
        documents = -(-int(args.fitted * 1.3) // length) + 24
        text = torch.randint(10, lm.vocab_size, (documents, length - 1), generator=draw).tolist()

        def run(tokens: int) -> dict[str, Any]:
            return ls.fit(lm, text, tokens=tokens, length=length, room=args.room).report

        run(min(args.fitted, 8 * length))
        report = run(args.fitted)
        spent, tokens = report["spent"], report["tokens"]
        shape = shape_of_model(lm.model, self.shape, lm.dtype)
        task = Task("fit", tokens=args.fitted, length=length, room=args.room)
        planned = {part.work.name: part for part in plan(shape, task, MACHINES["h200"]).placements[0].works}
        works = {
            "reading": ("reading",),
            "closed form": ("moments", "solving"),
            "steps": ("columns", "translating", "orthogonalising"),
        }
        seconds = flops = 0.0
        for name, parts in works.items():
            done = sum(planned[part].work.flops for part in parts)
            seconds, flops = seconds + spent[name], flops + done
            yield {"what": f"{name}, {tokens / max(spent[name], 1e-9):,.0f} tokens/s", "seconds": spent[name],
                   "ratio": done / max(spent[name], 1e-9) / self.ceiling, "of": "of the ceiling",
                   "planned_h200": sum(planned[part].seconds for part in parts)}  # fmt: skip
        share = flops / seconds / self.ceiling
        yield {"what": f"fit, {tokens / seconds:,.0f} tokens/s", "seconds": seconds, "ratio": share,
               "of": "of the ceiling", "goal": share >= GOALS["fit"], "schedule": report["schedule"]}  # fmt: skip

    # -- grids

    def grid(self) -> Iterator[dict[str, Any]]:
        args, lm = self.args, self.lm
        source, target = self.ids[:6], self.ids[6:36]
        scope = ls.Patchscope(lm, ls.Target(target, at=-1))
        side = lm.n_layers + 1

        def whole(new: int) -> Any:
            states = lm.read(source, positions=-1)
            return scope.generate(states, max_new_tokens=new) if new else scope.predict(states)

        def hooks(new: int, share_prefix: bool = False) -> plain.CellTokens:
            return plain.batched(lm.model, source, target, None, args.batch, new, share_prefix)

        for new in (0, args.new_tokens):
            same = (torch.from_numpy(whole(new).ids)[:, :1] == hooks(new).ids[:, :1].cpu()).float().mean()
            runs = {
                "lenscope": lambda new=new: whole(new),
                "hooks": lambda new=new: hooks(new),
                "prefix": lambda new=new: hooks(new, share_prefix=True),
            }
            seconds = self.timed(runs, None if not new else 2)
            what = f"{new} tokens" if new else "next token"
            yield {"what": f"grid {side} × {side}, {what}", "seconds": seconds["lenscope"], "equal": float(same)}
            for name, words in (("hooks", "rows with hooks, whole prompts"), ("prefix", "the same, prefix cached")):
                yield {"what": words, "seconds": seconds[name], "ratio": seconds[name] / seconds["lenscope"],
                       "of": "× lenscope"}  # fmt: skip


def ceiling(args: argparse.Namespace) -> tuple[float, float]:
    """Multiplications and additions a second of a large product, and bytes a second of a copy (read and written)."""
    dtype, n = getattr(torch, args.dtype), 8192 if args.device != "cpu" else 512
    a, b = (torch.randn(n, n, device=args.device).to(dtype) for _ in range(2))
    source = torch.empty(n * n * 8, device=args.device, dtype=torch.uint8)
    other = torch.empty_like(source)
    runs = {"product": lambda: a @ b, "copy": lambda: other.copy_(source)}
    for run in runs.values():
        for _ in range(3):
            run()
    times = timing.in_turn(
        {name: timing.clock(run, device=args.device) for name, run in runs.items()}, 2 if args.tiny else 9
    )
    return (
        2 * n**3 / timing.spread(times["product"]).middle,
        2 * source.nbytes / timing.spread(times["copy"]).middle,
    )


def free_memory(device: str) -> None:
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def part_rows(bench: Bench, name: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of a part; what fails is a row that says why."""
    free_memory(args.device)
    before = 0.0 if args.device == "cpu" else torch.cuda.memory_allocated() / 1e9
    try:
        yield from getattr(bench, name)()
    except Exception as error:  # out of memory, or a fault that must not lose the other parts
        traceback.print_exc(file=sys.stderr)
        yield {"what": "", "note": " ".join(f"{type(error).__name__}: {error}".split())[:160]}
    if args.device != "cpu":
        yield {"what": "peak GB above the model", "ratio": torch.cuda.max_memory_allocated() / 1e9 - before, "of": "GB"}


def show_profile(bench: Bench, name: str, args: argparse.Namespace) -> None:
    """Where the time of a part goes, by kernel, on stderr."""
    from torch.profiler import ProfilerActivity, profile

    free_memory(args.device)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if args.device != "cpu" else [])]
    by = "self_cpu_time_total" if args.device == "cpu" else "self_cuda_time_total"
    with profile(activities=kinds) as seen:
        if name == "trajectory":
            ls.Lens(bench.lm).trajectory(bench.ids)
        elif name == "grid":
            states = bench.lm.read(bench.ids[:6], positions=-1)
            ls.Patchscope(bench.lm, ls.Target(bench.ids[6:36], at=-1)).predict(states)
        else:
            list(bench.fit())
    print(f"\n{bench.shape} {name}\n{seen.key_averages().table(sort_by=by, row_limit=16)}", file=sys.stderr, flush=True)


def main() -> None:
    parser = timing.options(__doc__, repeats=5, model=False)
    parser.add_argument("--shapes", nargs="+", default=["1b", "7b"], choices=sorted(SHAPES))
    parser.add_argument("--only", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, help="of the weights; default: bfloat16, on a processor float32")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of the trajectory")
    parser.add_argument("--fitted", type=int, default=100_000, help="tokens of the fit")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128, help="rows of a batch with hooks")
    parser.add_argument("--room", type=int, default=4 << 30, help="bytes of states of a block of the fit")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part begins after these")
    parser.add_argument("--profile", action="store_true", help="say on stderr where the time of each part goes")
    parser.add_argument("--tiny", action="store_true", help="the same code on a tiny model, in seconds")
    args = parser.parse_args()
    if args.tiny:
        args.shapes, args.tokens, args.fitted, args.new_tokens, args.repeats = ["tiny"], 64, 1024, 3, 1
        args.room = 1 << 20
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    began = time.perf_counter()

    def elapsed() -> str:
        return f"[{time.perf_counter() - began:5.0f} s]"

    timing.print_machine()
    top, bandwidth = ceiling(args)
    print(
        f"{elapsed()} {args.device}: {top / 1e12:.2f} TFLOP/s in products of {args.dtype}, {bandwidth / 1e12:.2f} TB/s"
    )
    timing.print_heading(COLUMNS)
    results: list[dict[str, Any]] = []
    bench = None
    for shape in args.shapes:
        if time.perf_counter() - began > 60 * args.minutes:
            print(f"{elapsed()} {shape}: left out, the budget is spent")
            continue
        # the other model's memory goes first
        bench = None
        free_memory(args.device)
        try:
            bench = Bench(shape, args, top)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            print(f"{elapsed()} {shape}: cannot be made ({' '.join(str(error).split())[:160]})")
            continue
        print(f"{elapsed()} {shape} made: {sum(p.numel() for p in bench.lm.model.parameters()) / 1e9:.2f}B parameters")
        for name in args.only:
            if time.perf_counter() - began > 60 * args.minutes:
                print(f"{elapsed()} {shape} {name}: left out, the budget is spent")
                continue
            for row in part_rows(bench, name, args):
                results.append({"shape": shape, "part": name, **row})
                timing.print_row(COLUMNS, results[-1])
            if args.profile:
                try:
                    show_profile(bench, name, args)
                except Exception:  # figures are worth more than where they come from
                    traceback.print_exc(file=sys.stderr)
            print(f"{elapsed()} {shape} {name} done", flush=True)
    missed = [f"{r['shape']} {r['part']}" for r in results if r.get("goal") is False]
    print("goals (trajectory ≤ 1.3 × floor, fit ≥ half of the ceiling): " + (f"missed by {', '.join(missed)}" if missed
          else "reached, as far as they were measured"))  # fmt: skip
    timing.print_closing("gpu", results, ceiling=top, bandwidth=bandwidth, seconds=time.perf_counter() - began)


if __name__ == "__main__":
    main()
