"""Effect sizes and how sure they are: bootstrap intervals, rank correlations, paired tests, areas under ROC curves.

Knows: what is resampled, how intervals of few units are widened, which test goes with which measure.
Does not know: models, experiments, how numbers look.
"""

from collections.abc import Callable, Sequence
from math import sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from scipy.stats import t as student

from lenscope.errors import LenscopeError

RESAMPLES = 1000


class Estimate(NamedTuple):
    """A value with the low and high end of its 95 % interval; NaN ends where nothing could be resampled."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def tail(units: int) -> float:
    """The share of resamples on either side of a 95 % interval: 0.025 of many units, less of few.

    Φ(-√(n / (n - 1)) t), t the 97.5 percentile of Student's t with n - 1 degrees of freedom (in its expansion by powers
    of 1 / (n - 1), good to 1 % from 3 degrees on), since resamples of few units scatter too little and normally
    (expanded percentiles: Hesterberg 2015, arXiv 1411.5279).
    """
    v, z = units - 1, NormalDist().inv_cdf(0.975)
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return NormalDist().cdf(-sqrt(units / v) * t)


def percentiles(drawn: np.ndarray, units: int) -> np.ndarray:
    """The low and high ends (2, …) of the 95 % intervals of resamples (resamples, …) of so many units."""
    share = 100 * tail(units)
    return np.asarray(np.percentile(drawn, (share, 100 - share), axis=0))


def bootstrap(
    statistic: Callable[..., float],
    *samples: ArrayLike,
    units: Sequence[Any] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """statistic(*samples) with the percentile interval of resamples of its rows.

    The samples have the same first axis and are resampled together. `units` names each row's unit (a document, a
    subject), and whole units are then resampled. A resample whose statistic is NaN is left out. A single unit has no
    interval. Raises LenscopeError for samples that are empty or of different length.
    """
    arrays = [np.asarray(s) for s in samples]
    rows = {len(a) for a in arrays}
    if len(rows) != 1 or not rows - {0}:
        raise LenscopeError(f"samples of {sorted(rows)} rows: give samples of the same length, at least 1")
    value = float(statistic(*arrays))
    _, unit = np.unique(np.arange(*rows) if units is None else np.asarray(units), return_inverse=True)
    members = np.split(np.argsort(unit, kind="stable"), np.cumsum(np.bincount(unit))[:-1])
    if len(members) < 2:
        return Estimate(value, np.nan, np.nan)
    random = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for n in range(resamples):
        chosen = random.integers(len(members), size=len(members))
        index = chosen if units is None else np.concatenate([members[i] for i in chosen])
        drawn[n] = statistic(*(a[index] for a in arrays))
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return Estimate(value, np.nan, np.nan)
    low, high = percentiles(known, len(members))
    return Estimate(value, float(low), float(high))


def ratios(sums: ArrayLike, counts: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> list[Estimate]:
    """Σ sums / Σ counts of K columns, from the sums (U, K) and counts (U,) of U units, which are resampled whole.

    Means per token over documents, say. A single unit has no interval. Raises LenscopeError for units that differ in
    number, and for counts that are negative or add up to 0.
    """
    some, each = np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)
    if some.ndim != 2 or each.shape != some.shape[:1] or not len(each) or each.min() < 0 or not each.sum():
        raise LenscopeError(
            f"sums {some.shape}, counts {each.shape}: give (units, columns) and (units,), counts from 0 on"
        )
    units = len(each)
    values = some.sum(0) / each.sum()
    if units < 2:
        return [Estimate(float(v), np.nan, np.nan) for v in values]
    drawn = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), resamples).astype(float)
    total = drawn @ each
    # a resample of units without a count has no mean
    low, high = percentiles((drawn @ some)[total > 0] / total[total > 0, None], units)
    return [Estimate(*map(float, three)) for three in zip(values, low, high, strict=True)]


def jackknife(value: np.ndarray, without: np.ndarray) -> np.ndarray:
    """The low and high ends (2, …) of the 95 % intervals of values (…), from those without each of G groups (G, …).

    value ± t · the delete-a-group jackknife's standard error, t with G - 1 degrees of freedom (Kott 2001): for what
    resampling with replacement would bias, such as a divergence between means of few tokens. NaN for a single group.
    """
    groups = len(without)
    if groups < 2:
        return np.full((2, *value.shape), np.nan)
    error = np.sqrt((groups - 1) / groups * np.square(without - without.mean(0)).sum(0))
    reach = float(student.ppf(0.975, groups - 1)) * error
    return np.stack([value - reach, value + reach])


def mean(values: ArrayLike, *, units: Sequence[Any] | None = None, seed: int = 0) -> Estimate:
    """The mean (n,) with its bootstrap interval."""
    return bootstrap(np.mean, np.asarray(values, dtype=float), units=units, seed=seed)


def difference(first: ArrayLike, second: ArrayLike, *, units: Sequence[Any] | None = None, seed: int = 0) -> Estimate:
    """The mean of first - second, pair by pair (n,) each, with its bootstrap interval."""
    return mean(np.asarray(first, dtype=float) - np.asarray(second, dtype=float), units=units, seed=seed)


def spearman(x: ArrayLike, y: ArrayLike, *, units: Sequence[Any] | None = None, seed: int = 0) -> Estimate:
    """Spearman's rank correlation of pairs (n,) each, ties at their mean rank; NaN where one side is constant."""
    return bootstrap(rank_correlation, np.asarray(x, dtype=float), np.asarray(y, dtype=float), units=units, seed=seed)


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation of pairs (n,) each, without an interval; NaN where one side is constant."""
    a, b = rankdata(x), rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else float("nan")


def auroc(normal: ArrayLike, anomalous: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """The probability that an anomalous item scores higher than a normal one, ties counting half.

    Both groups are resampled on their own. Raises LenscopeError if one is empty or has a score that is NaN.
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
    rows, columns = (random.multinomial(n, np.full(n, 1 / n), resamples) / n for n in wins.shape)
    drawn = ((rows @ wins) * columns).sum(1)
    ends = percentiles(drawn, min(wins.shape))
    return Estimate(value, float(ends[0]), float(ends[1]))


def sign_flips(differences: ArrayLike, *, seed: int = 0, resamples: int = 10_000) -> float:
    """The two-sided p-value of paired differences (n,) having mean 0, by flipping their signs at random."""
    values = np.asarray(differences, dtype=float)
    if not len(values):
        raise LenscopeError("differences: none given")
    random = np.random.default_rng(seed)
    observed = abs(values.mean()) * (1 - 1e-12)
    flips = random.integers(0, 2, (resamples, len(values))) * 2.0 - 1
    return float((1 + (np.abs(flips @ values / len(values)) >= observed).sum()) / (1 + resamples))


def holm(p: Sequence[float]) -> list[float]:
    """p-values of several tests, corrected for their number (Holm 1979), in the order given."""
    values = np.asarray(p, dtype=float)
    order = np.argsort(values)
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    made = np.empty(len(values))
    made[order] = np.minimum(stepped, 1)
    return [float(v) for v in made]
