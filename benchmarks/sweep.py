"""Wall time and peak memory of a full grid of source layer × target layer, against two plain ways, nnterp and a floor.

One source prompt's last token is written over the last token of the entity prompt (30 tokens on SmolLM2), from every
layer to every layer: the next token of every cell, then 16 tokens of every cell, none stopping early. What the tools
find is compared before anything is timed. Every figure is a median over repeats; ratios pair a repeat with what the
other tool took right beside it in the same process. Cell by cell is timed on a sample of the cells and scaled up.
Memory is the peak resident set above the loaded model, each tool in a process of its own; the plain ways' on the
sample, as each of their batches is like the others. nnterp runs in an environment of its own
(benchmarks/peers/README.md).

    python benchmarks/sweep.py --nnterp PYTHON
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sweep_baselines as plain
import torch
from trajectory import call, status_kb

HERE = Path(__file__).parent
SOURCE = "Diana, Princess of Wales"
TASKS = {"next token": 0, "16 tokens": 16}
# rows per batch that were fastest for the batched way, and cells timed one by one
BATCH = {0: 31, 16: 128}
SAMPLE = {0: 24, 16: 8}


@contextmanager
def unending(lm):
    """Within the block no token ends a text."""
    config = lm.model.generation_config
    own, config.eos_token_id = config.eos_token_id, None
    text = lm.model.config.get_text_config()
    own_text, text.eos_token_id = text.eos_token_id, None
    try:
        yield
    finally:
        config.eos_token_id, text.eos_token_id = own, own_text


class Bench:
    """The prompts on a loaded model, and each tool as a call that runs a task."""

    def __init__(self, model: str, device: str) -> None:
        import lenscope as ls
        from lenscope.engine import run as rows
        from lenscope.models.provenance import model_hash
        from lenscope.patchscopes import methods

        self.lm = ls.load(model)
        self.lm.model.to(device)
        model_hash(self.lm.model)  # touches every page of the memory-mapped weights, so that none is charged to a run
        self.target = methods.named("entity")
        self.source = list(self.lm.prompt(SOURCE).ids)
        self.ids = list(self.target.resolve(self.lm)[0].ids)
        self.cells = plain.full_grid(self.lm.n_layers)
        rows.fastest_exact_mode(self.lm)  # what is measured once of a model
        self.scope: Callable[[], Any] = lambda: ls.Patchscope(self.lm, self.target)

    def lenscope(self, new: int, stopping: bool = False):
        states = self.lm.read(self.source, positions=-1)
        if not new:
            return self.scope().predict(states)
        if stopping:
            return self.scope().generate(states, max_new_tokens=new)
        with unending(self.lm):
            return self.scope().generate(states, max_new_tokens=new)

    def batched(self, new: int, share_prefix: bool = False, cells: list[plain.Cell] | None = None) -> plain.Found:
        return plain.batched(self.lm.model, self.source, self.ids, cells, BATCH[new], new, share_prefix)

    def one_by_one(self, new: int) -> plain.Found:
        return plain.one_by_one(self.lm.model, self.source, self.ids, plain.spread(self.cells, SAMPLE[new]), new)

    def passes(self, new: int, written=None) -> list[list[int]]:
        first = [plain.next_token_rows(self.lm.n_layers)]
        return first + (plain.decoding_rows(self.lm.n_layers, written, new) if new else [])


def agree(bench: Bench, new: int) -> dict[str, Any]:
    """What lenscope and the batched way found on a sample of the cells, compared; and what a whole grid wrote."""
    some = plain.spread(bench.cells, SAMPLE[new] * 4)
    grid = bench.lenscope(new)
    numbers = [bench.cells.index(cell) for cell in some]
    found = bench.batched(new, cells=some)
    same = (torch.from_numpy(grid.ids[numbers]) == found.ids.cpu()).float()
    report: dict[str, Any] = {"cells": len(some), "equal_ids": float(same.mean())}
    if found.log_probs is not None:
        gap = torch.from_numpy(grid.log_probs[numbers])[:, 0] - found.log_probs[:, 0].cpu()
        report["top_log_prob_gap"] = float(gap.abs().max())
    side = bench.lm.n_layers + 1
    return {**report, "written": grid.ids.reshape(side, side, -1).tolist() if new else None}


def child(model: str, device: str, new: int, repeats: int) -> None:
    """In a process of its own: check, then time the tools in turn."""
    bench = Bench(model, device)
    report = agree(bench, new)
    written = torch.tensor(report.pop("written")) if new else None
    count = len(bench.cells)
    by_hand: dict[str, Callable[[], Any]] = {
        "lenscope": lambda: bench.lenscope(new),
        "floor": lambda: plain.floor(bench.lm.model, len(bench.ids), bench.passes(new, written)),
        "batched": lambda: bench.batched(new),
        "prefix": lambda: bench.batched(new, share_prefix=True),
        "one": lambda: bench.one_by_one(new),
    }
    if new:
        by_hand["stopping"] = lambda: bench.lenscope(new, stopping=True)
    times: dict[str, list[float]] = {tool: [] for tool in by_hand}
    flops = by_hand["floor"]().flops  # and touches what it needs
    for _ in range(repeats):
        for tool, run in by_hand.items():
            began = time.perf_counter()
            found = run()
            seconds = found.seconds if tool == "floor" else time.perf_counter() - began
            times[tool].append(seconds * count / SAMPLE[new] if tool == "one" else seconds)
    apart = sum(2 * n * m.weight.numel() for n, m in unshared(bench, new)) if new else flops
    print(json.dumps({"times": times, "flops": flops, "flops_apart": apart, "cells": count, "agreement": report}))


def unshared(bench: Bench, new: int):
    """(rows, product) of every product, had each row run alone through all later blocks."""
    blocks = [[m for m in b.modules() if isinstance(m, torch.nn.Linear)] for b in bench.lm.model.model.layers]
    for products in blocks:
        yield from ((len(bench.ids), m) for m in products)
    for rows in bench.passes(new):
        for products, n in zip([*blocks, [bench.lm.model.lm_head]], rows, strict=True):
            yield from ((n, m) for m in products)


def peak(model: str, device: str, new: int, tool: str) -> None:
    """In a process of its own: the peak memory of one run above the loaded model."""
    bench = Bench(model, device)
    runs: dict[str, Callable[[], Any]] = {
        "lenscope": lambda: bench.lenscope(new),
        "batched": lambda: bench.batched(new, cells=plain.spread(bench.cells, 2 * BATCH[new])),
        "prefix": lambda: bench.batched(new, share_prefix=True, cells=plain.spread(bench.cells, 2 * BATCH[new])),
        "one": lambda: bench.one_by_one(new),
    }
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        runs[tool]()
        print(json.dumps({"peak_mb": (torch.cuda.max_memory_allocated() - before) / 1e6}))
        return
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    before_kb = status_kb("VmRSS")
    runs[tool]()
    print(json.dumps({"peak_mb": (status_kb("VmHWM") - before_kb) / 1000}))


NAMES = {
    "lenscope": "lenscope",
    "stopping": "lenscope, rows end at end-of-text",
    "floor": "floor: matrix products alone",
    "batched": "(a) rows in batches, whole prompts",
    "prefix": "rows in batches, prefix cached",
    "one": "(b) cell by cell",
}


def measure(model: str, new: int, args: argparse.Namespace) -> dict[str, Any]:
    me = [sys.executable, __file__, "--model", model, "--device", args.device, "--repeats", str(args.repeats)]
    found = call([*me, "--child", str(new)])
    if isinstance(found, str):
        raise SystemExit(f"{model}: {found}")
    mine = found["times"]["lenscope"]
    rows = []
    for tool, times in found["times"].items():
        memory = call([*me, "--peak", str(new), tool]) if tool in ("lenscope", "batched", "prefix", "one") else {}
        ratio = statistics.median(a / b for a, b in zip(times, mine, strict=True))
        rows.append({"tool": NAMES[tool], "median_s": statistics.median(times), "to_lenscope": ratio, **memory})
    if args.nnterp:
        rows += [nnterp(model, new, task, args) for task in (("generate",) if new else ("lens", "grid"))]
    return {"rows": rows, **{k: v for k, v in found.items() if k != "times"}}


def nnterp(model: str, new: int, task: str, args: argparse.Namespace) -> dict[str, Any]:
    bench = Bench(model, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ids.json"
        file.write_text(json.dumps({"source": bench.source, "target": bench.ids}))
        where = bench.lm.model.name_or_path
        del bench
        found = call([args.nnterp, str(HERE / "peers" / "nnterp_sweep.py"), "--task", task, "--model", where,
                      "--repeats", str(min(args.repeats, 3)), "--new-tokens", str(new or 1),
                      "--ids-json", str(file)])  # fmt: skip
    if isinstance(found, str):
        return {"tool": f"nnterp {task}", "note": found[:120]}
    return {
        "tool": f"(c) nnterp {found['version']} {task}, {found.get('cells', '')} cells",
        "median_s": found["median_s"],
        "peak_mb": found["peak_rss_mb"] - found["loaded_rss_mb"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="laid out as Llama is")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--nnterp", help="python of an environment with nnterp")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        child(args.model, args.device, args.child, args.repeats)
        return
    if args.peak:
        peak(args.model, args.device, int(args.peak[0]), args.peak[1])
        return
    results = {}
    for task in args.tasks:
        results[task] = found = measure(args.model, TASKS[task], args)
        print(f"\n{args.model}, {found['cells']} cells, {task}, float32; agreement {found['agreement']}")
        print(f"floor {found['flops'] / 1e9:.0f} GFLOP, {found['flops_apart'] / 1e9:.0f} without shared histories")
        print(f"{'':<48}{'median s':>10}{'× lenscope':>12}{'peak MB above the model':>26}")
        for row in found["rows"]:
            if "note" in row:
                print(f"{row['tool']:<48}  {row['note']}")
                continue
            ratio, memory = row.get("to_lenscope"), row.get("peak_mb")
            print(
                f"{row['tool']:<48}{row['median_s']:>10.2f}{'' if ratio is None else f'{ratio:.2f}':>12}"
                f"{'' if memory is None else f'{memory:.0f}':>26}",
                flush=True,
            )
    machine = {"cpus": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()}
    print(json.dumps({"benchmark": "sweep", "model": args.model, "machine": machine, "results": results}))


if __name__ == "__main__":
    main()
