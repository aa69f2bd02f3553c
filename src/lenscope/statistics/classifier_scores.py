"""How well scores classify: areas under ROC curves, true positives at few false ones, calibration, and their tests.

Knows: weighted samples, so that resamples of whole units cost little; bins of equal mass; what a calibrated predictor
would have. Does not know: what is classified, which intervals are shown beside which question.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lenscope.errors import LenscopeError
from lenscope.statistics.intervals import RESAMPLES, Estimate, draws, estimate_of_draws, jackknife

# of equal mass, for the calibration error
BINS = 10
# groups of units that are left out in turn for the interval of a calibration error
LEFT_OUT_GROUPS = 40
# one pair of scores of the same items: (n,) each, which of them are positive, and what each belongs to
Pair = tuple[np.ndarray, np.ndarray, np.ndarray, Sequence[Hashable]]


def unit_weights(units: Sequence[Hashable], *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each of n items counts (1 + resamples, n): once, then in resamples of whole units."""
    _, unit = np.unique(np.asarray(units), return_inverse=True)
    return np.asarray(draws(int(unit.max()) + 1, resamples, seed)[:, unit])


def weighted_auroc(scores: ArrayLike, positive: ArrayLike, weights: np.ndarray | None = None) -> np.ndarray:
    """The area under the ROC curve of scores (n,) for each row of weights (W, n), (W,); ties count half.

    It is the weighted share of pairs of a positive and a negative item of which the positive one scores higher. NaN for
    weights without both. Without `weights` every item counts once, and W is 1. Raises LenscopeError as `roc_levels`.
    """
    up, down = roc_levels(scores, positive, weights)
    total = up.sum(1) * down.sum(1)
    below = np.cumsum(down, 1) - down / 2
    return np.divide((up * below).sum(1), total, out=np.full(len(total), np.nan), where=total > 0)


def weighted_true_positives(
    scores: ArrayLike, positive: ArrayLike, share: float, weights: np.ndarray | None = None
) -> np.ndarray:
    """The share of positive items above the lowest threshold that at most `share` of the negative ones exceed, (W,).

    Nothing is interpolated: of fewer than 1 / share negative items none may exceed it, so that only positive items
    above all of them count. Weights and errors as in `weighted_auroc`.
    """
    up, down = roc_levels(scores, positive, weights)
    # from the highest score down
    hits, alarms = np.cumsum(up[:, ::-1], 1), np.cumsum(down[:, ::-1], 1)
    allowed = alarms <= share * alarms[:, -1:] + 1e-9
    best = np.where(allowed, hits, 0).max(1)
    total, negatives = hits[:, -1], alarms[:, -1]
    return np.divide(best, total, out=np.full(len(total), np.nan), where=(total > 0) & (negatives > 0))


def roc_levels(
    scores: ArrayLike, positive: ArrayLike, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The weights of positive and of negative items at each different score, ascending: (W, levels) twice.

    Raises LenscopeError for scores that are NaN, none at all, or not as many as `positive`.
    """
    values, is_positive = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    if values.ndim != 1 or values.shape != is_positive.shape or not len(values) or np.isnan(values).any():
        raise LenscopeError(
            f"scores {values.shape}, positive {is_positive.shape}: give (n,) of both, at least 1, no score NaN"
        )
    each = np.ones((1, len(values))) if weights is None else weights
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf) != 0)
    starts = starts if len(starts) and starts[0] == 0 else np.concatenate([[0], starts])
    ranked, up = each[:, order], is_positive[order]
    return np.add.reduceat(ranked * up, starts, 1), np.add.reduceat(ranked * ~up, starts, 1)


def weighted_share(flags: ArrayLike, weights: np.ndarray | None = None) -> np.ndarray:
    """The weighted share of items whose flag (n,) is set, (W,); NaN for weights that are all 0."""
    values = np.asarray(flags, dtype=float)
    each = np.ones((1, len(values))) if weights is None else weights
    total = each.sum(1)
    return np.divide(each @ values, total, out=np.full(len(total), np.nan), where=total > 0)


def mass_bins(probabilities: ArrayLike, bins: int = BINS) -> np.ndarray:
    """The bin (n,) of each probability, from 0 on: bins of equal mass, equal probabilities in one bin."""
    values = np.asarray(probabilities, dtype=float)
    return np.asarray(np.searchsorted(np.sort(values), values, "left") * bins // max(1, len(values)))


def calibration_error(
    probabilities: ArrayLike,
    positive: ArrayLike,
    *,
    units: Sequence[Hashable] | None = None,
    bins: int = BINS,
    seed: int = 0,
) -> Estimate:
    """The expected calibration error: over bins of equal mass, the mean |mean probability - share of positive items|.

    Items are weighted alike. It is biased upwards (`calibrated_error` says by how much), and resampling with
    replacement would add to that; the interval is a delete-a-group jackknife over up to 40 groups of whole units.

    Args:
        probabilities: (n,) of being positive.
        positive: (n,) whether each is.
        units: what each item belongs to, and is left out with; by default each stands alone.
        bins: how many.
        seed: fixes the groups.

    Raises LenscopeError for probabilities that are not in 0–1, none, or not as many as `positive`.
    """
    p, y = np.asarray(probabilities, dtype=float), np.asarray(positive, dtype=float)
    if p.shape != y.shape or p.ndim != 1 or not len(p) or not ((p >= 0) & (p <= 1)).all():
        raise LenscopeError(f"probabilities {p.shape}, positive {y.shape}: give (n,) of both, probabilities in 0–1")
    value = _binned_gap(p, y, bins)
    _, unit = np.unique(np.arange(len(p)) if units is None else np.asarray(units), return_inverse=True)
    count = int(unit.max()) + 1
    groups = min(count, LEFT_OUT_GROUPS)
    if groups < 2:
        return Estimate(value, np.nan, np.nan)
    group = (np.random.default_rng(seed).permutation(count) % groups)[unit]
    without = np.array([_binned_gap(p[group != g], y[group != g], bins) for g in range(groups)])
    low, high = jackknife(np.array(value), without)
    return Estimate(value, max(0.0, float(low)), min(1.0, float(high)))


def calibrated_error(probabilities: ArrayLike, bins: int = BINS, *, seed: int = 0, resamples: int = 200) -> float:
    """The calibration error that a perfectly calibrated predictor has on average, with these probabilities (n,).

    It is above 0 by chance alone: labels are drawn from the probabilities, and the error of each draw averaged.
    """
    p = np.asarray(probabilities, dtype=float)
    drawn = np.random.default_rng(seed).random((resamples, len(p))) < p
    return float(np.mean([_binned_gap(p, y.astype(float), bins) for y in drawn]))


def _binned_gap(p: np.ndarray, y: np.ndarray, bins: int) -> float:
    return float(np.abs(np.bincount(mass_bins(p, bins), p - y)).sum() / len(p)) if len(p) else float("nan")


def auroc_difference(pairs: Sequence[Pair], *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """The mean over tests of AUROC(first) - AUROC(second) on the same items, with its interval over whole units.

    Each test is (first scores (n,), second scores (n,), positive (n,), units (n,)); tests are resampled on their own.
    """
    drawn, groups = [], []
    for n, (first, second, positive, units) in enumerate(pairs):
        weights = unit_weights(units, resamples=resamples, seed=seed + n)
        drawn.append(weighted_auroc(first, positive, weights) - weighted_auroc(second, positive, weights))
        groups.append(len({*units}))
    return estimate_of_draws(np.mean(drawn, 0), min(groups))


def swap_test(pairs: Sequence[Pair], *, seed: int = 0, resamples: int = 2000) -> float:
    """Test whether two scores have the same AUROC, on average over tests: the two-sided p-value.

    Scores become ranks within their test, and the two ranks of all items of a unit change places at random (Bandos,
    Rockette and Gur 2005, here by units). Tests as in `auroc_difference`.
    """
    if not pairs:
        raise LenscopeError("pairs: none given")
    random = np.random.default_rng(seed)
    total = np.zeros(1 + resamples)
    for first, second, positive, units in pairs:
        a, b = (_doubled_ranks(np.asarray(s, dtype=float)) for s in (first, second))
        up = np.asarray(positive, dtype=bool)
        _, unit = np.unique(np.asarray(units), return_inverse=True)
        swaps = random.random((1 + resamples, int(unit.max()) + 1)) < 0.5
        swaps[0] = False
        swapped = swaps[:, unit]
        for start in range(0, len(swapped), 256):
            part = swapped[start : start + 256]
            gap = _auroc_of_codes(np.where(part, b, a), up) - _auroc_of_codes(np.where(part, a, b), up)
            total[start : start + 256] += gap / len(pairs)
    observed = abs(total[0]) * (1 - 1e-12)
    return float((1 + (np.abs(total[1:]) >= observed - 1e-12).sum()) / (1 + resamples))


def _doubled_ranks(scores: np.ndarray) -> np.ndarray:
    """Twice the mean rank of each score, a whole number from 0 on."""
    ordered = np.sort(scores)
    return np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right") - 1


def _auroc_of_codes(codes: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The AUROC of each row of whole numbers (R, n) below 2 n: (R,)."""
    rows, width = len(codes), 2 * codes.shape[1]
    flat: Any = codes + np.arange(rows)[:, None] * width
    down = np.bincount(flat[:, ~positive].reshape(-1), minlength=rows * width).reshape(rows, width)
    below = np.cumsum(down, 1) - down / 2
    return np.asarray(np.take_along_axis(below, codes[:, positive], 1).mean(1) / (~positive).sum())
