"""Effect sizes with intervals: means, paired differences, rank correlations, areas under ROC curves.

Knows: which statistic each is, and what is resampled for it. Does not know: how intervals come of resamples
(intervals.py), models, experiments, how numbers look.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lenscope.errors import LenscopeError
from lenscope.statistics.intervals import RESAMPLES, Estimate, bootstrap, percentiles, times_drawn
from lenscope.statistics.rank_correlations import rank_correlation


def mean(values: ArrayLike, *, units: Sequence[Any] | None = None, seed: int = 0) -> Estimate:
    """The mean of values (n,), with its bootstrap interval."""
    return bootstrap(np.mean, np.asarray(values, dtype=float), units=units, seed=seed)


def difference(first: ArrayLike, second: ArrayLike, *, units: Sequence[Any] | None = None, seed: int = 0) -> Estimate:
    """The mean of paired differences first - second, (n,) each, with its bootstrap interval."""
    return mean(np.asarray(first, dtype=float) - np.asarray(second, dtype=float), units=units, seed=seed)


def spearman(x: ArrayLike, y: ArrayLike, *, units: Sequence[Any] | None = None, seed: int = 0) -> Estimate:
    """Spearman's rank correlation of pairs (n,) each, ties at their mean rank; NaN where one side is constant."""
    return bootstrap(rank_correlation, np.asarray(x, dtype=float), np.asarray(y, dtype=float), units=units, seed=seed)


def auroc(normal: ArrayLike, anomalous: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """How well scores separate two groups: the probability that an anomalous item scores higher than a normal one.

    Ties count half. Both groups are resampled on their own. Raises LenscopeError if one is empty or has a score that is
    NaN.
    """
    low, high = (np.sort(np.asarray(v, dtype=float)) for v in (normal, anomalous))
    if not len(low) or not len(high) or np.isnan(low).any() or np.isnan(high).any():
        raise LenscopeError(f"scores: {len(low)} normal, {len(high)} anomalous; give at least 1 of each, none NaN")
    # wins[i, j] of every pair once; a resample weighs rows and columns
    below = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
    value = float(below.mean() / (2 * len(low)))
    if min(len(low), len(high)) < 2:
        return Estimate(value, np.nan, np.nan)
    wins = (high[:, None] > low).astype(np.float32) + 0.5 * (high[:, None] == low)
    random = np.random.default_rng(seed)
    rows, columns = (times_drawn(n, resamples, random) / n for n in wins.shape)
    drawn = ((rows @ wins) * columns).sum(1)
    ends = percentiles(drawn, min(wins.shape))
    return Estimate(value, float(ends[0]), float(ends[1]))


def variance_explained(
    vectors: ArrayLike,
    reconstructed: ArrayLike,
    center: ArrayLike | None = None,
    *,
    units: Sequence[Any] | None = None,
    seed: int = 0,
) -> Estimate:
    """The share of the variance of vectors (N, D) that reconstructions explain: 1 - Σ ‖v - v'‖² / Σ ‖v - c‖².

    It is 1 for perfect reconstructions, 0 for those that are no better than the center c (D,), and below 0 for worse
    ones. The center is that of other vectors, such as those of training; by default that of these.

    Args:
        vectors: what was to be reconstructed, (N, D).
        reconstructed: what was made of it, (N, D).
        center: c, (D,); None: the mean of the vectors.
        units: what each vector belongs to, and is resampled with.
        seed: fixes the resamples.

    Raises LenscopeError for vectors and reconstructions of different shapes. It is NaN where vectors do not vary.
    """
    own, back = np.asarray(vectors, dtype=float), np.asarray(reconstructed, dtype=float)
    if own.ndim != 2 or own.shape != back.shape:
        raise LenscopeError(f"vectors {own.shape}, reconstructions {back.shape}: give (N, D) of both")
    middle = own.mean(0) if center is None else np.asarray(center, dtype=float)
    left, whole = np.square(own - back).sum(1), np.square(own - middle).sum(1)

    def share(missing: np.ndarray, total: np.ndarray) -> float:
        return float(1 - missing.sum() / total.sum()) if total.sum() > 0 else float("nan")

    return bootstrap(share, left, whole, units=units, seed=seed)
