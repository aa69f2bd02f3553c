"""Seconds and peak memory of fits, trajectories and grids, beside what lenscope.planning predicts.

Each case runs in a process of its own; its machine's products are measured there right before and after the work, and
the prediction is made of the faster of both. Memory is the peak resident set above the loaded model. --calibrate runs
the shape that the shares of products in planning/machines.py were found on, and prints what each kind of work reaches;
the other cases check them. Run it on a quiet machine; --clock cpu counts the process' own time where others use it too.

    OMP_NUM_THREADS=1 python benchmarks/plan.py
    OMP_NUM_THREADS=1 python benchmarks/plan.py --calibrate
"""

import argparse
import json
import time
from typing import Any

import timing
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lenscope as ls
from lenscope.planning.machines import Machine, this_machine
from lenscope.planning.model_shapes import shape_of_model
from lenscope.planning.plan import PlacedWork, Task, plan

# layers, width, heads, key-value heads, MLP, vocabulary
SHAPES = {
    "calibrated": (16, 768, 12, 12, 2048, 32_000),
    "deep": (32, 512, 8, 8, 1408, 50_000),
    "half-billion": (24, 1024, 16, 16, 2816, 151_936),
}
CASES = {
    "calibrated fit": ("calibrated", Task("fit", tokens=16_384)),
    "calibrated lens": ("calibrated", Task("lens", tokens=512)),
    "calibrated grid": ("calibrated", Task("sweep", rows=289, length=30)),
    "SmolLM2 fit": ("smollm2-135m", Task("fit", tokens=20_480)),
    "SmolLM2 trajectory": ("smollm2-135m", Task("lens", tokens=512)),
    "SmolLM2 grid, next token": ("smollm2-135m", Task("sweep", rows=961, length=30)),
    "SmolLM2 grid, 16 tokens": ("smollm2-135m", Task("sweep", rows=961, length=30, new_tokens=16)),
    "deep fit": ("deep", Task("fit", tokens=8192)),
    "half-billion ridge": ("half-billion", Task("fit", tokens=8192, recipe="ridge")),
    "half-billion trajectory": ("half-billion", Task("lens", tokens=256, length=256)),
}
# kinds of work of a plan, by the kind of time that a fit's report has
SPENT = {
    "reading": ("reading",),
    "closed form": ("moments", "solving"),
    "steps": ("columns", "translating", "orthogonalising"),
}
COLUMNS: timing.Columns = {
    "case": ("", 28, ""),
    "measured_s": ("measured s", 11, ".1f"),
    "planned_s": ("planned s", 11, ".1f"),
    "time_ratio": ("planned/measured", 18, ".2f"),
    "measured_mb": ("measured MB", 13, ".0f"),
    "planned_mb": ("planned MB", 12, ".0f"),
    "memory_ratio": ("planned/measured", 18, ".2f"),
}


def made(name: str) -> ls.LM:
    """A model of SHAPES with random weights, or one of lenscope's own."""
    if name not in SHAPES:
        return ls.load(name)
    layers, width, heads, kv, inner, vocab = SHAPES[name]
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, num_key_value_heads=kv,
        intermediate_size=inner, vocab_size=vocab, max_position_embeddings=1024, tie_word_embeddings=True,
        eos_token_id=None,
    )  # fmt: skip
    return ls.load(LlamaForCausalLM(config).eval())


def work_of(lm: ls.LM, task: Task) -> Any:
    """A call that does a task on a model, on token ids drawn at random."""
    draw = torch.Generator().manual_seed(0)
    length = task.length or (512 if task.kind != "sweep" else 32)

    def ids(rows: int, n: int) -> list[list[int]]:
        return torch.randint(10, min(lm.vocab_size, 30_000), (rows, n), generator=draw).tolist()

    if task.kind == "fit":
        # short documents: no part of the held-out text lies in few of them
        text = ids(-(-int((task.tokens or 0) * 1.15 + 24 * 512) // 128), 127)
        return lambda: ls.fit(lm, text, tokens=task.tokens, recipe=task.recipe, length=512).report
    if task.kind == "lens":
        texts = ids(-(-(task.tokens or 0) // length), length)
        return lambda: [ls.Lens(lm).trajectory(text) for text in texts]
    source, target = ids(2, length)
    lm.model.generation_config.eos_token_id = None
    lm.model.config.get_text_config().eos_token_id = None
    scope = ls.Patchscope(lm, ls.Target(target, at=-1))

    def grid() -> Any:
        states = lm.read(source, positions=-1)
        return scope.generate(states, max_new_tokens=task.new_tokens) if task.new_tokens else scope.predict(states)

    return grid


def child(case: str, clock: str) -> None:
    """In a process of its own: what a case took, what is predicted, and what each kind of a fit's work reached."""
    model, task = CASES[case]
    lm = made(model)
    timing.touch(lm.model)
    small = Task(task.kind, tokens=task.tokens and 512, length=task.length, rows=task.rows, recipe=task.recipe)
    if task.kind == "lens":
        # what is measured once of a model
        ls.Lens(lm).trajectory(list(range(10, 40)))
    elif task.kind == "sweep":
        work_of(lm, small)()
    now = time.process_time if clock == "cpu" else time.perf_counter
    run, took, results = work_of(lm, task), [], []
    before = this_machine()

    def measured() -> None:
        began = now()
        results.append(run())
        took.append(now() - began)

    peak_mb = timing.peak_above(measured)
    after = this_machine()
    best = {bits: max(before.matrix[bits], after.matrix[bits]) for bits in before.matrix}
    bandwidth = max(before.bandwidth, after.bandwidth)
    machine = Machine(**{**vars(before), "matrix": best, "bandwidth": bandwidth})
    placed = plan(shape_of_model(lm.model, model, lm.dtype), task, machine).placements[0]
    reply = {
        "measured_s": took[0],
        "planned_s": placed.seconds,
        "measured_mb": peak_mb,
        "planned_mb": (placed.peak - placed.weights) / 1e6,
        "parts_mb": {name: count / 1e6 for name, count in placed.parts.items()},
        "planned_parts_s": {part.work.name: part.seconds for part in placed.works},
        "products": {bits: rate / 1e9 for bits, rate in best.items()},
        "reached": reached(placed, results[0], machine, took[0]),
    }
    print(json.dumps(reply))


def reached(placed: PlacedWork, result: Any, machine: Machine, seconds: float) -> dict[str, float]:
    """Which share of the machine's products each kind of work reached: what CPU_SHARES are."""
    works = {part.work.name: part.work for part in placed.works}

    def ideal(names: tuple[str, ...]) -> float:
        return sum(works[n].flops / machine.matrix[works[n].bits] for n in names if n in works)

    if isinstance(result, dict):
        spent = result["spent"]
        shares = {name: ideal(parts) / spent[name] for name, parts in SPENT.items() if spent.get(name)}
        held = spent.get("choosing", 0) + spent.get("measuring", 0)
        return {**shares, "measuring": ideal(("measuring",)) / max(held, 1e-9), "seconds": seconds, **spent}
    return {"all": ideal(tuple(works)) / seconds}


def main() -> None:
    parser = timing.options(__doc__, repeats=None, model=False)
    parser.add_argument("--cases", nargs="+", default=[c for c in CASES if not c.startswith("calibrated")],
                        choices=list(CASES))  # fmt: skip
    parser.add_argument("--calibrate", action="store_true", help="run the shape that the shares were found on")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: of one thread, beside other work"
    )
    args: argparse.Namespace = parser.parse_args()
    if args.child:
        child(args.child[0], args.clock)
        return
    timing.print_machine()
    timing.print_heading(COLUMNS)
    results = []
    for case in [c for c in CASES if c.startswith("calibrated")] if args.calibrate else args.cases:
        row = timing.child(["--clock", args.clock, "--child", case], may_fail=True)
        if "note" not in row:
            row["time_ratio"] = row["planned_s"] / row["measured_s"]
            row["memory_ratio"] = row["planned_mb"] / row["measured_mb"]
        results.append({"case": case, **row})
        timing.print_row(COLUMNS, results[-1])
        if args.calibrate and "reached" in row:
            print("    reached: " + ", ".join(f"{name} {value:.2f}" for name, value in row["reached"].items()))
    timing.print_closing("plan", results, clock=args.clock)


if __name__ == "__main__":
    main()
