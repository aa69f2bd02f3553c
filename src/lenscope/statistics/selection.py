"""Many settings, one score each: the best in hindsight, the one chosen on other items, and the mean of all.

Knows: folds of items, which setting is best on the other folds. Does not know: what is scored, or models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.statistics import estimates as statistics
from lenscope.statistics.estimates import Estimate


@final
@dataclass(frozen=True, eq=False, repr=False)
class Selection(Brief):
    """The scores of N items in C cells, told in the three ways that must not be confused.

    `oracle`: each item in the cell that is best for it, as "correct if any cell is" (Ghandeharioun et al. 2024, §4.2,
    §5): a bound that noise reaches too with enough cells. `selected`: the cell that is best on the other folds, what a
    user gets. `mean`: a cell at random. Each with its 95 % interval over units; `items_…` are what they are means of,
    (N,), for paired differences. `chosen` is the cell of each fold, `fold` (N,) the fold of each item.
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
        table = _table(scores)
        if len(table) != len(self.fold) or table.shape[1] <= max(self.chosen):
            raise LenscopeError(f"scores {table.shape}: give those of the same {len(self.fold)} items and cells")
        return np.asarray(table[np.arange(len(table)), np.array(self.chosen)[self.fold]])


def select(scores: ArrayLike, *, units: Sequence[Any] | None = None, folds: int = 2, seed: int = 0) -> Selection:
    """The best cell in hindsight, the one selected on other items, and the mean cell, of scores (N, C).

    Higher is better; a cell that was not run for an item is NaN, and counts for nothing there. `units` names what each
    item belongs to (a subject, a document): whole units are in a fold, and are resampled. Of cells that are equally
    good on the other folds the first is chosen. Raises LenscopeError for fewer units than folds, and for an item
    without any score.
    """
    table = _table(scores)
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
    told = {
        name: statistics.mean(values[known[name]], units=None if units is None else unit[known[name]], seed=seed)
        for name, values in of_items.items()
    }
    oracle, selected, average = of_items.values()
    return Selection(told["oracle"], told["selected"], told["mean"], oracle, selected, average, chosen, fold)


def _means(table: np.ndarray) -> np.ndarray:
    """The mean of each cell (C,), -inf where none of these items was run in it."""
    run = (~np.isnan(table)).sum(0)
    return np.where(run > 0, np.nansum(table, 0) / np.maximum(run, 1), -np.inf)


def _table(scores: ArrayLike) -> np.ndarray:
    table = np.asarray(scores, dtype=float)
    if table.ndim != 2 or not table.size or np.isnan(table).all(1).any():
        raise LenscopeError(f"scores of shape {table.shape}: give items × cells, at least one score for each item")
    return table
