"""Wall time and peak memory of a full grid of source layer × target layer, against two plain ways, nnterp and a floor.

One source prompt's last token is written over the last token of the entity prompt (30 tokens on SmolLM2), from every
layer to every layer: the next token of every cell, then 16 tokens of every cell, none stopping early. What the tools
find is compared before anything is timed. Every figure is a median over repeats; ratios pair a repeat with what the
other tool took right beside it in the same process. Cell by cell is timed on a sample of the cells and scaled up.
Memory is the peak resident set above the loaded model, each tool in a process of its own; the plain ways' on the
sample, as each of their batches is like the others. nnterp runs in an environment of its own
(benchmarks/peers/README.md). With --against, only lenscope runs, this checkout's and another's.

    python benchmarks/sweep.py --nnterp PYTHON
    python benchmarks/sweep.py --against OTHER/src
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import checkouts
import sweep_baselines as plain
import timing
import torch

import lenscope as ls

SOURCE = "Diana, Princess of Wales"
# Ghandeharioun et al. 2024, §4.3: x is described
TARGET = (
    "Syria: Country in the Middle East, Leonardo DiCaprio: American actor, Samsung: South Korean multinational "
    "major appliance and consumer electronics corporation, x"
)
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
        self.lm = ls.load(model)
        self.lm.model.to(device)
        timing.touch(self.lm.model)
        self.scope = ls.Patchscope(self.lm, ls.Target(TARGET))
        self.source = list(self.lm.prompt(SOURCE).ids)
        self.ids = list(self.lm.prompt(TARGET).ids)
        self.n_layers = len(self.lm.model.model.layers)
        self.cells = plain.full_grid(self.n_layers)
        # what is measured once of a model
        states = self.lm.read(self.source, positions=-1)
        self.scope.predict(states, [(1, 1)])
        self.scope.generate(states, [(1, 1)], max_new_tokens=2)

    def lenscope(self, new: int, stopping: bool = False):
        states = self.lm.read(self.source, positions=-1)
        if not new:
            return self.scope.predict(states)
        if stopping:
            return self.scope.generate(states, max_new_tokens=new)
        with unending(self.lm):
            return self.scope.generate(states, max_new_tokens=new)

    def batched(self, new: int, share_prefix: bool = False, cells: list[plain.Cell] | None = None) -> plain.CellTokens:
        return plain.batched(self.lm.model, self.source, self.ids, cells, BATCH[new], new, share_prefix)

    def one_by_one(self, new: int) -> plain.CellTokens:
        return plain.one_by_one(self.lm.model, self.source, self.ids, plain.spread(self.cells, SAMPLE[new]), new)

    def passes(self, new: int, written=None) -> list[list[int]]:
        first = [plain.next_token_rows(self.n_layers)]
        return first + (plain.decoding_rows(self.n_layers, written, new) if new else [])

    def floor(self, new: int, written=None) -> plain.Floor:
        return plain.floor(self.lm.model, len(self.ids), self.passes(new, written))


def agree(bench: Bench, new: int) -> tuple[dict[str, Any], torch.Tensor | None]:
    """What lenscope and the batched way give on a sample of the cells, compared; and what a whole grid wrote."""
    sample = plain.spread(bench.cells, SAMPLE[new] * 4)
    grid = bench.lenscope(new)
    numbers = [bench.cells.index(cell) for cell in sample]
    batched = bench.batched(new, cells=sample)
    same = (torch.from_numpy(grid.ids[numbers]) == batched.ids.cpu()).float()
    agreement: dict[str, Any] = {"cells": len(sample), "equal_ids": float(same.mean())}
    if batched.log_probs is not None:
        gap = torch.from_numpy(grid.log_probs[numbers])[:, 0] - batched.log_probs[:, 0].cpu()
        agreement["top_log_prob_gap"] = float(gap.abs().max())
    side = bench.n_layers + 1
    return agreement, torch.from_numpy(grid.ids).reshape(side, side, -1) if new else None


def child(what: str, tool: str, new: int, args: argparse.Namespace) -> None:
    """In a process of its own: all tools in turn; the memory of one tool; or memory and times of lenscope alone."""
    bench = Bench(args.model, args.device)
    if what == "tools":
        compare_tools(bench, new, args)
        return
    peak_mb = memory(bench, tool, new, args.device)
    clocks = {"lenscope": timing.clock(lambda: bench.lenscope(new), device=args.device)} if what == "alone" else {}
    timing.answer(timing.in_turn(clocks, args.repeats), peak_mb)


def compare_tools(bench: Bench, new: int, args: argparse.Namespace) -> None:
    """Check that the tools agree, then time them in turn."""
    agreement, written = agree(bench, new)
    count = len(bench.cells)
    runs: dict[str, Callable[[], Any]] = {
        "lenscope": lambda: bench.lenscope(new),
        "batched": lambda: bench.batched(new),
        "prefix": lambda: bench.batched(new, share_prefix=True),
        "one": lambda: bench.one_by_one(new),
    }
    if new:
        runs["stopping"] = lambda: bench.lenscope(new, stopping=True)
    sampled = {"one": count / SAMPLE[new]}
    clocks = {tool: timing.clock(run, sampled.get(tool, 1.0), args.device) for tool, run in runs.items()}
    # the floor right after lenscope, whose ratio to it is the closest
    clocks = {"lenscope": clocks.pop("lenscope"), "floor": lambda: bench.floor(new, written).seconds, **clocks}
    flops = bench.floor(new, written).flops  # and touches what it needs
    apart = sum(2 * n * m.weight.numel() for n, m in unshared(bench, new)) if new else flops
    times = timing.in_turn(clocks, args.repeats)
    timing.answer(times, flops=flops, flops_apart=apart, cells=count, agreement=agreement)


def unshared(bench: Bench, new: int):
    """(rows, product) of every product, had each row run alone through all later blocks."""
    blocks = [[m for m in b.modules() if isinstance(m, torch.nn.Linear)] for b in bench.lm.model.model.layers]
    for products in blocks:
        yield from ((len(bench.ids), m) for m in products)
    for rows in bench.passes(new):
        for products, n in zip([*blocks, [bench.lm.model.lm_head]], rows, strict=True):
            yield from ((n, m) for m in products)


def memory(bench: Bench, tool: str, new: int, device: str) -> float:
    """The peak memory of one run above the loaded model, of the plain ways on a few of their batches."""
    sample = plain.spread(bench.cells, 2 * BATCH[new])
    runs: dict[str, Callable[[], Any]] = {
        "lenscope": lambda: bench.lenscope(new),
        "batched": lambda: bench.batched(new, cells=sample),
        "prefix": lambda: bench.batched(new, share_prefix=True, cells=sample),
        "one": lambda: bench.one_by_one(new),
    }
    return timing.peak_above(runs[tool], device)


NAMES = {
    "lenscope": "lenscope",
    "stopping": "lenscope, rows end at end-of-text",
    "floor": "floor: matrix products alone",
    "batched": "(a) rows in batches, whole prompts",
    "prefix": "rows in batches, prefix cached",
    "one": "(b) cell by cell",
}


COLUMNS: timing.Columns = {
    "tool": ("", 48, ""),
    "median_s": ("median s", 10, ".2f"),
    "ratio": ("× lenscope", 24, ".2f"),
    "peak_mb": ("peak MB above the model", 26, ".0f"),
}


def own_options(args: argparse.Namespace, repeats: int) -> list[str]:
    return ["--model", args.model, "--device", args.device, "--repeats", str(repeats), "--child"]


def measure(new: int, args: argparse.Namespace) -> dict[str, Any]:
    """What the tools' figures are, a row each, and how much work and agreement there is."""
    own = own_options(args, args.repeats)
    timed = timing.child([*own, "tools", "all", str(new)])
    rows = []
    for tool, row in timing.summary(timed.pop("times"), "lenscope").items():
        if tool in ("lenscope", "batched", "prefix", "one"):
            row["peak_mb"] = timing.child([*own, "memory", tool, str(new)])["peak_mb"]
        rows.append({"tool": NAMES[tool], **row})
    if args.nnterp:
        rows += [nnterp(new, task, args) for task in (("generate",) if new else ("lens", "grid"))]
    return {"rows": rows, **{key: timed[key] for key in ("flops", "flops_apart", "cells", "agreement")}}


def nnterp(new: int, task: str, args: argparse.Namespace) -> dict[str, Any]:
    bench = Bench(args.model, "cpu")
    prompts, where = {"source": bench.source, "target": bench.ids}, bench.lm.model.name_or_path
    del bench
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ids.json"
        file.write_text(json.dumps(prompts))
        ran = timing.call([args.nnterp, str(timing.PEERS / "nnterp_sweep.py"), "--task", task, "--model", where,
                           "--repeats", str(min(args.repeats, 3)), "--new-tokens", str(new or 1),
                           "--ids-json", str(file)])  # fmt: skip
    if "note" in ran:
        return {"tool": f"nnterp {task}", **ran}
    return {
        "tool": f"(c) nnterp {ran['version']} {task}, {ran.get('cells', '')} cells",
        "median_s": ran["median_s"],
        "peak_mb": ran["peak_rss_mb"] - ran["loaded_rss_mb"],
    }


def main() -> None:
    parser = timing.options(__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--nnterp", help="python of an environment with nnterp")
    checkouts.add_option(parser)
    args = parser.parse_args()
    if args.child:
        what, tool, new = args.child
        child(what, tool, int(new), args)
        return
    timing.print_machine()
    if args.against:
        works = {f"grid, {task}": [*own_options(args, 3), "alone", "lenscope", str(TASKS[task])] for task in args.tasks}
        results = checkouts.compare(works, args.against, args.repeats)
        timing.print_closing("sweep, two checkouts", results, model=args.model)
        return
    results = {}
    for task in args.tasks:
        results[task] = grid = measure(TASKS[task], args)
        print(f"\n{args.model}, {grid['cells']} cells, {task}, float32; agreement {grid['agreement']}")
        print(f"floor {grid['flops'] / 1e9:.0f} GFLOP, {grid['flops_apart'] / 1e9:.0f} without shared histories")
        timing.print_heading(COLUMNS)
        for row in grid["rows"]:
            timing.print_row(COLUMNS, row)
    timing.print_closing("sweep", results, model=args.model)


if __name__ == "__main__":
    main()
