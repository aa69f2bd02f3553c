"""Estimates with 95 % intervals: what is drawn with replacement, and which ends resamples give.

Knows: units that are resampled whole, how intervals of few units are widened, ratios, the jackknife.
Does not know: which statistic goes with which question (estimates.py), what is measured.
"""

from collections.abc import Callable, Sequence
from math import sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

from lenscope.errors import LenscopeError

RESAMPLES = 1000


class Estimate(NamedTuple):
    """A value with the low and high end of its 95 % interval.

    The ends are NaN where nothing could be resampled.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def interval(e: Estimate, digits: int = 2) -> str:
    """An estimate as it stands in a sentence: its value alone where it has no interval, "–" where it has no value."""
    if np.isnan(e.value):
        return "–"
    middle = f"{e.value:.{digits}f}"
    return middle if np.isnan([e.low, e.high]).all() else f"{middle} [{e.low:.{digits}f}, {e.high:.{digits}f}]"


def tail(units: int) -> float:
    """The share of resamples on either side of a 95 % interval: 0.025 of many units, less of few.

    Percentiles of resamples alone give too narrow an interval for few units: the variance of resamples is too small, by
    the factor (n - 1) / n, and their tails are those of a normal distribution instead of Student's t. The interval of
    Student's t is had by going further out (expanded percentiles: Hesterberg 2015, arXiv 1411.5279), to the share
    Φ(-√(n / (n - 1)) t), t being the 97.5 percentile of Student's t with n - 1 degrees of freedom (in its expansion by
    powers of 1 / (n - 1), good to 1 % from 3 degrees on).
    """
    v, z = units - 1, NormalDist().inv_cdf(0.975)
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return NormalDist().cdf(-sqrt(units / v) * t)


def percentiles(drawn: np.ndarray, units: int) -> np.ndarray:
    """The low and high ends (2, …) of the 95 % intervals of resamples (resamples, …) of so many units."""
    share = 100 * tail(units)
    return np.asarray(np.percentile(drawn, (share, 100 - share), axis=0))


def resample(count: int, random: np.random.Generator) -> np.ndarray:
    """Which of `count` items one resample takes: their numbers (count,), drawn with replacement."""
    return random.integers(count, size=count)


def times_drawn(count: int, resamples: int, random: np.random.Generator) -> np.ndarray:
    """How often each resample takes each of `count` items, drawn with replacement: (resamples, count)."""
    return random.multinomial(count, np.full(count, 1 / count), resamples).astype(float)


def bootstrap(
    statistic: Callable[..., float],
    *samples: ArrayLike,
    units: Sequence[Any] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Compute a statistic of samples, with the percentile interval of resamples of their rows.

    It is statistic(*samples). The samples have the same first axis and are resampled together. `units` names each row's
    unit (a document, a subject), and whole units are then resampled. A resample whose statistic is NaN is left out. A
    single unit has no interval. Raises LenscopeError for samples that are empty or of different length.
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
        units_drawn = resample(len(members), random)
        index = units_drawn if units is None else np.concatenate([members[i] for i in units_drawn])
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
    by_unit, each = np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)
    if by_unit.ndim != 2 or each.shape != by_unit.shape[:1] or not len(each) or each.min() < 0 or not each.sum():
        raise LenscopeError(
            f"sums {by_unit.shape}, counts {each.shape}: give (units, columns) and (units,), counts from 0 on"
        )
    units = len(each)
    values = by_unit.sum(0) / each.sum()
    if units < 2:
        return [Estimate(float(v), np.nan, np.nan) for v in values]
    drawn = times_drawn(units, resamples, np.random.default_rng(seed))
    total = drawn @ each
    # a resample of units without a count has no mean
    low, high = percentiles((drawn @ by_unit)[total > 0] / total[total > 0, None], units)
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


def draws(groups: int, resamples: int, seed: int) -> np.ndarray:
    """How often each group is taken (1 + resamples, groups): all of them once, then drawn with replacement."""
    drawn = times_drawn(groups, resamples, np.random.default_rng(seed))
    return np.concatenate([np.ones((1, groups)), drawn])


def estimate_of_draws(values: np.ndarray, groups: int) -> Estimate:
    """The first of values (1 + resamples,) with the interval of the others, of so many groups."""
    known = values[1:][~np.isnan(values[1:])]
    if groups < 2 or not len(known):
        return Estimate(float(values[0]), np.nan, np.nan)
    low, high = percentiles(known, groups)
    return Estimate(float(values[0]), float(low), float(high))


def group_difference(values: Sequence[float] | np.ndarray, first: Sequence[bool] | np.ndarray) -> Estimate:
    """The mean of the values (n,) of the items in `first` (n,) less the mean of the others, both resampled."""

    def gap(v: np.ndarray, group: np.ndarray) -> float:
        return float(v[group].mean() - v[~group].mean()) if 0 < group.sum() < len(group) else float("nan")

    return bootstrap(gap, np.asarray(values, dtype=float), np.asarray(first, dtype=bool))
