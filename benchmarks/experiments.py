"""Time per item of the Patchscopes experiments: all its cells by lenscope, against each cell with passes of its own.

An item is one state of every source layer, patched at the target layers of the full experiments (next-token: the same
layer, attributes and multihop: pairs). Cell by cell is the way of the authors' code (a source pass and a target pass
per cell), kinder than it in the head; in batches is its way where it batches (attributes, multihop: rows of whole
prompts, 128 a batch, the source pass once). What all ways find is compared before anything is timed. Cell by cell
and in batches are timed on a sample of the cells and scaled up. Figures are medians over repeats, ratios are paired.

    python benchmarks/experiments.py
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sweep_baselines as plain
import timing
import torch
from sweep import unending

import lenscope as ls
from lenscope.experiments.patchscopes_paper.next_token_readings import patched
from lenscope.patchscopes import methods

DOCUMENT = (
    "The harbour was rebuilt after the storm of 1953, when the sea wall gave way in three places and most of the old "
    "town stood under water for a week. Since then the city has"
)
PHRASE = "the country that has the city of Hamburg"
SENTENCE = "Last year they talked a lot about Portugal"
HOP = "The capital city of x"
EXPERIMENTS = ("next-token", "entities", "attributes", "multihop", "cross-model")
# cells that are timed one by one, and in a batch
ONE, BATCH = 6, 128


# the cells that are run, and running them
Way = tuple[Sequence[plain.Cell], Callable[[], Any]]


@dataclass(frozen=True)
class Task:
    """A source prompt, a Patchscope's target, tokens to write, target layers by source layer, whether batches are."""

    source: str
    target: Any
    new: int
    cells: tuple[plain.Cell, ...]
    batches: bool = False


def tasks(lm: ls.LM) -> dict[str, Task]:
    every, third = range(lm.n_layers + 1), range(0, lm.n_layers + 1, 3)
    same = tuple((n, n) for n in every)
    ninth = sorted(set(np.linspace(0, lm.n_layers, 9).round().astype(int).tolist()))
    return {
        "next-token": Task(DOCUMENT, methods.named_target("identity"), 0, same),
        "entities": Task("Diana, Princess of Wales", methods.named_target("entity"), 20, same),
        "attributes": Task(SENTENCE, HOP, 10, tuple((s, t) for s in ninth for t in ninth), True),
        "multihop": Task(PHRASE, HOP, 8, tuple((s, t) for s in third for t in third), True),
    }


def compare(lm: ls.LM, task: Task, repeats: int) -> dict[str, Any]:
    """Agreement of the ways, and seconds per item of each."""
    layers = sorted({s for s, _ in task.cells}), sorted({t for _, t in task.cells})
    same = all(s == t for s, t in task.cells)
    scope = ls.Patchscope(lm, task.target, layers="same" if same else layers[1])
    source = list(lm.prompt(task.source).ids)
    ((target, places),) = scope.resolved
    ids = list(target.ids)
    if tuple(places) != (len(ids) - 1,):
        raise SystemExit(f"{task.target}: the plain ways write over a last token")

    def mine() -> np.ndarray:
        states = lm.read(source, layers[0], -1)
        grid = scope.generate(states, max_new_tokens=task.new) if task.new else scope.predict(states, top_k=1)
        return np.asarray(grid.ids).reshape(len(task.cells), -1)

    def one(cells: Sequence[plain.Cell]) -> torch.Tensor:
        return plain.one_by_one(lm.model, source, ids, cells, task.new).ids

    def batch(cells: Sequence[plain.Cell]) -> torch.Tensor:
        return plain.batched(lm.model, source, ids, cells, BATCH, task.new).ids

    few, many = plain.spread(task.cells, ONE), plain.spread(task.cells, min(BATCH, len(task.cells)))
    ways: dict[str, Way] = {"cell by cell": (few, lambda: one(few))}
    if task.batches:
        ways["in batches"] = (many, lambda: batch(many))
    with unending(lm):
        return timed(task.cells, mine, ways, repeats)


def across(lm: ls.LM, other: ls.LM, repeats: int) -> dict[str, Any]:
    """Cross-model: a state of every fifth layer mapped into every third layer, in the source's own context."""
    layers, targets = range(0, lm.n_layers + 1, 5), range(0, other.n_layers + 1, 3)
    cells = [(s, t) for s in layers for t in targets]
    scale = 1 / lm.hidden_size**0.5
    maps = torch.randn(len(cells), lm.hidden_size, other.hidden_size, generator=torch.manual_seed(0)) * scale
    ids, context = list(lm.prompt(DOCUMENT).ids), other.prompt(DOCUMENT)

    @torch.inference_mode()
    def mine() -> np.ndarray:
        states = lm.read([ids], layers, -1)
        h = torch.stack([states[s, -1][0] @ maps[n] for n, (s, _) in enumerate(cells)])
        zeros = np.zeros(len(cells), dtype=np.int64)
        return patched(other, [context], zeros, np.array([t for _, t in cells]), h)[:, None]

    @torch.no_grad()
    def one(cells_: Sequence[plain.Cell]) -> np.ndarray:
        ids_read = []
        for s, t in cells_:
            vector = plain.last_states(lm.model, ids)[s : s + 1] @ maps[cells.index((s, t))]
            with plain.patched(other.model, t, [0], vector):
                ids_read.append(int(plain.likeliest(other.model, torch.tensor([list(context.ids)])).ids[0, 0]))
        return np.array(ids_read)

    few = plain.spread(cells, ONE)
    return timed(cells, mine, {"cell by cell": (few, lambda: one(few))}, repeats)


def timed(
    cells: Sequence[plain.Cell], mine: Callable[[], np.ndarray], ways: dict[str, Way], repeats: int
) -> dict[str, Any]:
    """The share of tokens that lenscope and the other ways have alike, and seconds for all cells by way."""
    ids = mine()
    alike = []
    for sample, run in ways.values():
        theirs = np.asarray(run()).reshape(len(sample), -1)[:, : ids.shape[1]]
        alike.append(float((ids[[cells.index(c) for c in sample]] == theirs).mean()))
    clocks = {"lenscope": timing.clock(mine)}
    clocks |= {way: timing.clock(run, len(cells) / len(sample)) for way, (sample, run) in ways.items()}
    times = timing.in_turn(clocks, repeats)
    return {"cells": len(cells), "equal_ids": min(alike), "ways": timing.summary(times, "lenscope")}


COLUMNS: timing.Columns = {
    "experiment": ("", 14, ""),
    "way": ("", 14, ""),
    "cells": ("cells", 6, "d"),
    "equal_ids": ("equal ids", 11, ".2f"),
    "median_s": ("s per item", 12, ".2f"),
    "ratio": ("× lenscope", 22, ".2f"),
}


def main() -> None:
    parser = timing.options(__doc__)
    parser.add_argument("--target-model", help="of cross-model, laid out as Llama is; without one it is left out")
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, help="only these")
    args = parser.parse_args()
    if args.experiments and "cross-model" in args.experiments and not args.target_model:
        parser.error("cross-model needs --target-model")
    lm = ls.load(args.model)
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        name: lambda task=task: compare(lm, task, args.repeats) for name, task in tasks(lm).items()
    }
    if args.target_model:
        runs["cross-model"] = lambda: across(lm, ls.load(args.target_model), args.repeats)
    timing.print_machine()
    timing.print_heading(COLUMNS)
    results = {}
    for name in args.experiments or runs:
        results[name] = runs[name]()
        for way, row in results[name]["ways"].items():
            timing.print_row(COLUMNS, {"experiment": name, "way": way, **results[name], **row})
    timing.print_closing("experiments", results, model=args.model)


if __name__ == "__main__":
    main()
