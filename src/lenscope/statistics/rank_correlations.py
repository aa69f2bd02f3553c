"""Rank correlations of what documents hold: given other values, within groups, and with documents resampled.

Knows: ranks with ties and weights, what is left of two of them when others are known, how values are shuffled.
Does not know: what is correlated.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from lenscope.statistics.intervals import RESAMPLES, Estimate, draws, estimate_of_draws


def levels(values: Any) -> np.ndarray:
    """Values (N,) as whole numbers from 0 in their order, equal ones alike."""
    return np.unique(np.asarray(values), return_inverse=True)[1]


def weighted_rank_correlation(values: Sequence[np.ndarray], within: np.ndarray, weight: np.ndarray) -> float:
    """Spearman's correlation of values[0] and values[1], given the others, within groups; all are `levels` (N,).

    Ranks are over all rows, ties at their mean rank, a row counted `weight` times; then relative to the mean of the
    row's group, and linear in the ranks of the values that are given. NaN where nothing of one side is left.
    """
    ranks = np.stack([_ranks(v, weight) for v in values])
    size = np.bincount(within, weight)
    for row in ranks:
        row -= (np.bincount(within, weight * row) / np.maximum(size, 1e-12))[within]
    c = (ranks * weight) @ ranks.T
    left = c[:2, :2]
    if len(values) > 2:
        left = left - c[:2, 2:] @ np.linalg.pinv(c[2:, 2:], hermitian=True) @ c[2:, :2]
    if (np.diagonal(left) <= 1e-9 * weight.sum() ** 3).any():
        return float("nan")
    return float(left[0, 1] / np.sqrt(left[0, 0] * left[1, 1]))


def _ranks(level: np.ndarray, weight: np.ndarray) -> np.ndarray:
    count = np.bincount(level, weight)
    return (count.cumsum() - count / 2)[level]


def correlations(
    learned: Any,
    depths: Sequence[Any],
    document: np.ndarray,
    *,
    given: Sequence[Any] = (),
    within: Any = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Estimate]:
    """`weighted_rank_correlation` of each of the depths with `learned`, then the first one's less the second one's.

    Args:
        learned: values (N,).
        depths: values (N,) each, that are correlated with them.
        document: the unit (N,) of each value; whole documents are resampled, the same ones for all depths.
        given: values (N,) each, that are taken out of both sides.
        within: groups (N,), within which alone values are compared; none: all are one group.
        seed: fixes the resamples.
        resamples: how many there are.
    """
    unit = levels(document)
    group = np.zeros(len(unit), dtype=np.int64) if within is None else levels(within)
    y, controls = levels(learned), [levels(g) for g in given]
    columns = [levels(d) for d in depths]
    groups = int(unit.max()) + 1
    weights = draws(groups, resamples, seed)
    drawn = np.array([[weighted_rank_correlation([x, y, *controls], group, w[unit]) for x in columns] for w in weights])
    paired = [drawn[:, 0] - drawn[:, 1]] if len(columns) > 1 else []
    return [estimate_of_draws(v, groups) for v in (*drawn.T, *paired)]


def shuffled_within(values: np.ndarray, within: Any, seed: int) -> np.ndarray:
    """The values (N,), each group's among its own members in a random order."""
    group = levels(within)
    random = np.random.default_rng(seed).random(len(group))
    shuffled = np.empty_like(values)
    shuffled[np.lexsort((random, group))] = values[np.argsort(group, kind="stable")]
    return shuffled


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation of pairs (n,) each, without an interval; NaN where one side is constant."""
    a, b = rankdata(x), rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else float("nan")


def partial_rank_correlation(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """The rank correlation of x and y with that of both with `given` taken out: partial Spearman correlation."""
    xy, xz, yz = rank_correlation(x, y), rank_correlation(x, given), rank_correlation(y, given)
    rest = (1 - xz**2) * (1 - yz**2)
    return float((xy - xz * yz) / np.sqrt(rest)) if rest > 0 else float("nan")
