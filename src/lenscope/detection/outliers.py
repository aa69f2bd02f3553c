"""Outliers: which rows of numbers are unlike those of a reference, and how a method is chosen.

Knows: isolation forests, local outlier factors, the relative Mahalanobis distance, choosing by anomalies that were
made of normal data, thresholds by cross-validation. Does not know: prompts, models, files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from lenscope.detection.calibration import conformal_threshold, require_enough_normals
from lenscope.errors import LenscopeError
from lenscope.statistics.estimates import auroc

FOLDS = 5
RIDGE = 1e-3

_Score = Callable[[np.ndarray], np.ndarray]


def _require_whole_number(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise LenscopeError(f"{name} {value!r}: give a whole number, {low}–{high}")


@final
@dataclass(frozen=True)
class Forest:
    """An isolation forest (Liu et al. 2008), as scikit-learn's, with a fixed seed."""

    trees: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        _require_whole_number("trees", self.trees, 1, 10_000)
        _require_whole_number("seed", self.seed, 0, 2**32 - 1)

    def __call__(self, reference: np.ndarray) -> _Score:
        """Fit on a reference (N, F): scores of rows (M, F)."""
        from sklearn.ensemble import IsolationForest

        fitted = IsolationForest(n_estimators=self.trees, random_state=self.seed).fit(reference)
        return lambda x: -fitted.score_samples(x)


@final
@dataclass(frozen=True)
class Neighbours:
    """The local outlier factor (Breunig et al. 2000), for new rows; `scaled` features have variance 1 in the reference.

    As many neighbours as asked for, or all other rows where there are fewer.
    """

    neighbours: int = 20
    metric: str = "euclidean"
    scaled: bool = False

    def __post_init__(self) -> None:
        _require_whole_number("neighbours", self.neighbours, 1, 10_000)
        if self.metric not in ("euclidean", "cosine") or not isinstance(self.scaled, bool):
            raise LenscopeError(
                f"metric {self.metric!r}, scaled {self.scaled!r}: give metric 'euclidean' or 'cosine', scaled True or "
                "False"
            )

    def __call__(self, reference: np.ndarray) -> _Score:
        """Fit on a reference (N, F): scores of rows (M, F)."""
        from sklearn.neighbors import LocalOutlierFactor

        middle = reference.mean(0) if self.scaled else np.zeros(reference.shape[1])
        size = reference.std(0) if self.scaled else np.ones(reference.shape[1])
        # what hardly varies says nothing, and rounding must not become a signal
        size = np.where(size > 1e-6 * (1 + np.abs(middle)), size, np.inf)
        count = min(self.neighbours, len(reference) - 1)
        fitted = LocalOutlierFactor(n_neighbors=count, metric=self.metric, novelty=True)
        fitted.fit((reference - middle) / size)
        return lambda x: -fitted.score_samples((x - middle) / size)


@final
@dataclass(frozen=True)
class Mahalanobis:
    """The squared Mahalanobis distance less that of the variances alone: the SRM baseline of Belrose et al. 2023, §5.2.

    d(x)ᵀ (Σ + ρI)⁻¹ d(x) - d(x)ᵀ (diag(Σ) + ρI)⁻¹ d(x), d(x) = x - mean, Σ the covariance of the reference.
    """

    ridge: float = RIDGE

    def __post_init__(self) -> None:
        if not isinstance(self.ridge, float) or not 0 < self.ridge < float("inf"):
            raise LenscopeError(f"ridge {self.ridge!r}: give a positive number")

    def __call__(self, reference: np.ndarray) -> _Score:
        """Fit on a reference (N, F): scores of rows (M, F)."""
        middle = reference.mean(0)
        away = reference - middle
        # there are often fewer rows than numbers in them: what is outside their span has the ridge's variance
        _, sizes, axes = np.linalg.svd(away, full_matrices=False)
        degrees = max(1, len(reference) - 1)
        along, own = sizes**2 / degrees + self.ridge, (away**2).sum(0) / degrees + self.ridge

        def score(x: np.ndarray) -> np.ndarray:
            d = x - middle
            on = d @ axes.T
            outside = ((d - on @ axes) ** 2).sum(1) / self.ridge
            return np.asarray((on**2 / along).sum(1) + outside - (d**2 / own).sum(1))

        return score


Method = Forest | Neighbours | Mahalanobis
METHODS: dict[str, type[Method]] = {"forest": Forest, "neighbours": Neighbours, "mahalanobis": Mahalanobis}
# what is tried of local outlier factors
NEIGHBOURS = tuple(
    Neighbours(count, metric, scaled)
    for count in (20, 5)
    for metric in ("euclidean", "cosine")
    for scaled in (False, True)
)


def name_of(method: Method) -> str:
    """A method's name in METHODS."""
    return next(name for name, kind in METHODS.items() if type(method) is kind)


def folds(count: int, parts: int, seed: int) -> list[np.ndarray]:
    """The numbers 0…count-1 in `parts` random parts; LenscopeError where that leaves fewer than two to each."""
    if count < 2 * parts:
        raise LenscopeError(f"{count} normal items: give at least {2 * parts}")
    return np.array_split(np.random.default_rng(seed).permutation(count), parts)


def separation(method: Method, normal: np.ndarray, odd: np.ndarray, seed: int = 0) -> float:
    """How well a method tells normal rows (N, F) it has not seen from `odd` ones, made of the same items: AUROC.

    Half of the items are fitted, the others are separated from what was made of them; then the other way round.
    """
    areas = []
    for test in folds(len(normal), 2, seed):
        score = method(np.delete(normal, test, 0))
        areas.append(auroc(score(normal[test]), score(odd[test]), resamples=1).value)
    return float(np.mean(areas))


def best_candidate(separations: Sequence[float]) -> int:
    """Which candidate is taken: the first of those that separate best."""
    return int(np.argmax(separations))


def threshold(method: Method, normal: np.ndarray, false_positives: float, seed: int = 0) -> float:
    """The score that a share `false_positives` of normal items exceeds, of items each scored by a fit without it.

    Cross-validated in five parts; the (n + 1)(1 - share) smallest score, rounded up, as in conformal prediction.
    Raises LenscopeError for a share that so few items cannot show.
    """
    require_enough_normals(len(normal), false_positives)
    scores = np.empty(len(normal))
    for test in folds(len(normal), FOLDS, seed):
        scores[test] = method(np.delete(normal, test, 0))(normal[test])
    return conformal_threshold(scores, false_positives)
