"""Many settings, one score each: the best in hindsight, the one chosen on other items, and the mean of all.

Knows: folds of items, which setting is best on the other folds. Does not know: what is scored, or models.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.statistics.estimates import mean
from lenscope.statistics.intervals import Estimate

# random halvings of the items, over which what is selected on one half and used on the other is averaged
SPLITS = 50


@final
@dataclass(frozen=True, eq=False, repr=False)
class Selection(Brief):
    """Scores of N items in C cells, such as layers, summed up in the three ways that must not be confused.

    Each is an `Estimate` with its 95 % interval over units; `items_…` are the values (N,) that it is the mean of, for
    paired differences.

    Attributes:
        oracle: each item in the cell that is best for it, as "correct if any cell is" (Ghandeharioun et al. 2024, §4.2,
            §5): a bound that noise reaches too with enough cells.
        selected: each item in the cell that is best on the other folds: what a user gets.
        mean: each item in a cell at random.
        chosen: the cell of each fold.
        fold: the fold of each item, (N,).
    """

    oracle: Estimate
    selected: Estimate
    mean: Estimate
    items_oracle: np.ndarray
    items_selected: np.ndarray
    items_mean: np.ndarray
    chosen: list[int]
    fold: np.ndarray

    def at(self, scores: ArrayLike) -> np.ndarray:
        """Other scores (N, C) of the same items, such as a control's, each item in the cell that was chosen for it."""
        table = _score_table(scores)
        if len(table) != len(self.fold) or table.shape[1] <= max(self.chosen):
            raise LenscopeError(f"scores {table.shape}: give those of the same {len(self.fold)} items and cells")
        return np.asarray(table[np.arange(len(table)), np.array(self.chosen)[self.fold]])


def select(scores: ArrayLike, *, units: Sequence[Any] | None = None, folds: int = 2, seed: int = 0) -> Selection:
    """Choose the best cell, such as a layer, on some items, and score it on others.

    Beside it are each item's own best cell, in hindsight, and the mean cell. `scores` are (N, C); higher is better, and
    NaN is a cell that was not run for an item, which counts for nothing there. `units` names what each item belongs to
    (a subject, a document): whole units are in a fold, and are resampled. Of cells that are equally good on the other
    folds the first is chosen. Raises LenscopeError for fewer units than folds, and for an item without any score.
    """
    table = _score_table(scores)
    _, unit = np.unique(np.arange(len(table)) if units is None else np.asarray(units), return_inverse=True)
    if len(unit) != len(table):
        raise LenscopeError(f"units: {len(unit)} for {len(table)} items; give one for each")
    count = int(unit.max()) + 1
    if not 2 <= folds <= count:
        raise LenscopeError(f"folds {folds}: {count} units make 2–{count} folds" if count > 1 else "folds: one unit")
    order = np.random.default_rng(seed).permutation(count)
    fold = (np.argsort(order) % folds)[unit]
    chosen = [int(np.argmax(_means(table[fold != f]))) for f in range(folds)]
    of_items = {
        "oracle": np.nanmax(table, 1),
        "selected": table[np.arange(len(table)), np.array(chosen)[fold]],
        "mean": np.nanmean(table, 1),
    }
    known = {name: ~np.isnan(values) for name, values in of_items.items()}
    estimates = {
        name: mean(values[known[name]], units=None if units is None else unit[known[name]], seed=seed)
        for name, values in of_items.items()
    }
    oracle, selected, average = of_items.values()
    return Selection(
        estimates["oracle"], estimates["selected"], estimates["mean"], oracle, selected, average, chosen, fold
    )


def _means(table: np.ndarray) -> np.ndarray:
    """The mean of each cell (C,), -inf where none of these items was run in it."""
    run = (~np.isnan(table)).sum(0)
    return np.where(run > 0, np.nansum(table, 0) / np.maximum(run, 1), -np.inf)


def _score_table(scores: ArrayLike) -> np.ndarray:
    table = np.asarray(scores, dtype=float)
    if table.ndim != 2 or not table.size or np.isnan(table).all(1).any():
        raise LenscopeError(f"scores of shape {table.shape}: give items × cells, at least one score for each item")
    return table


def balanced(answers: Sequence[Hashable], most: int) -> list[int]:
    """Numbers of up to `most` items, the first of each answer in turn, no more than half of them with the same answer.

    So that every item can take the place of one with another answer (controls.exchange). May be empty.
    """
    groups: dict[Hashable, list[int]] = {}
    for n, answer in enumerate(answers):
        groups.setdefault(answer, []).append(n)
    turns = [n for turn in range(len(answers)) for group in groups.values() for n in group[turn : turn + 1]][:most]
    largest = max(groups.values(), key=len, default=[])
    mine = [n for n in turns if n in largest]
    left_out = mine[len(turns) - len(mine) :]
    return sorted(n for n in turns if n not in left_out)


def crossed(scores: np.ndarray, units: Sequence[Any], seed: int = 0, other: np.ndarray | None = None) -> np.ndarray:
    """Scores (N, C) of the cell that is best on the other half of the units, averaged over SPLITS halvings: (N,).

    What `selection.select` has of one halving: of few items and many cells that depends on which. `other` (N, C) are
    read instead in the cells that `scores` chose.
    """
    read = scores if other is None else other
    _, unit = np.unique(np.asarray(units), return_inverse=True)
    selected = np.zeros(len(scores))
    for n in range(SPLITS):
        half = (np.random.default_rng([seed, n]).permutation(int(unit.max()) + 1) % 2)[unit]
        for mine in (half == 0, half == 1):
            selected[mine] += read[mine, int(scores[~mine].mean(0).argmax())]
    return selected / SPLITS
