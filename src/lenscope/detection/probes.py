"""Linear probes that tell attacks from harmless prompts, chosen and calibrated on the rows that they are given alone.

Knows: standardised features, penalised logistic regression, cross-validation by groups, which of several sets of
features is taken. Does not know: what features are of, models, files.
"""

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from lenscope.contents import Brief
from lenscope.detection.calibration import (
    SHARES,
    Calibration,
    calibrate,
    check_calibration,
    fewest_normals,
    known_thresholds,
    unsure_band,
)
from lenscope.errors import LenscopeError
from lenscope.statistics.estimates import auroc
from lenscope.statistics.probes import deal

# λ of λ/2 ‖w‖² beside the weighted sum of losses, of standardised features; the first of equally good ones is taken
PENALTIES = (10_000.0, 1_000.0, 100.0, 10.0)
FOLDS = 5
# what varies less than this, beside 1 and beside its own size, is rounding
ROUNDING = 1e-6


@final
@dataclass(frozen=True, eq=False, repr=False)
class Probe(Brief):
    """A linear classifier of features (N, F), as `fit_probe` gives it.

    A row's margin is weights · (row - mean) / scale + bias; `mean`, `scale` and `weights` are (F,). Of features that do
    not vary the scale is infinite, so that they are left out. `calibration` makes probabilities of margins, and
    `penalty` is the λ that was chosen. Raises LenscopeError for parts that do not belong together.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: float
    calibration: Calibration
    penalty: float

    def __post_init__(self) -> None:
        shapes = {self.mean.shape, self.scale.shape, self.weights.shape}
        finite = np.isfinite(self.mean).all() and np.isfinite(self.weights).all() and np.isfinite(self.bias)
        if len(shapes) != 1 or self.mean.ndim != 1 or not finite or not (self.scale > 0).all():
            raise LenscopeError(
                f"probe: mean {self.mean.shape}, scale {self.scale.shape}, weights {self.weights.shape}; give (F,) of "
                "each, finite, scales above 0"
            )

    def margins(self, x: np.ndarray) -> np.ndarray:
        """How far rows (N, F) lie on the side of attacks, (N,); LenscopeError for rows of another width."""
        rows = np.asarray(x, dtype=float)
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise LenscopeError(f"features {rows.shape}: this probe takes (N, {len(self.mean)})")
        return np.asarray((rows - self.mean) / self.scale @ self.weights + self.bias)

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """The calibrated probabilities that rows (N, F) are of attacks, (N,)."""
        return self.calibration(self.margins(x))


@final
@dataclass(frozen=True, eq=False, repr=False)
class ProbeChoice(Brief):
    """How a probe was chosen: all of it from the rows that `choose_probe` was given.

    `layer` is the key of the features that were taken. `scores` and `penalties` are, for each key, the AUROC of
    out-of-fold margins and the λ that gave it; `margins` and `probabilities` (N,) are the out-of-fold ones of the key
    that was taken. `thresholds` maps a share of false positives to the probability above which that share of normal
    rows lies, NaN where there are too few normal rows. `unsure` (low, high) is the band of probabilities around the
    threshold at `false_positives`, in which no verdict is given.
    """

    layer: int
    scores: dict[int, float]
    penalties: dict[int, float]
    margins: np.ndarray
    probabilities: np.ndarray
    thresholds: dict[float, float]
    unsure: tuple[float, float]
    false_positives: float


def fit_probe(
    x: np.ndarray, attacks: Sequence[bool] | np.ndarray, groups: Sequence[Hashable], *, calibration: str = "platt",
    seed: int = 0,
) -> Probe:  # fmt: skip
    """Fit a probe on features (N, F): `choose_probe` of this one set of features."""
    return choose_probe({-1: x}, attacks, groups, calibration=calibration, seed=seed)[1]


def choose_probe(
    candidates: Mapping[int, np.ndarray],
    attacks: Sequence[bool] | np.ndarray,
    groups: Sequence[Hashable],
    *,
    calibration: str = "platt",
    false_positives: float = 0.05,
    abstain: float = 0.1,
    seed: int = 0,
) -> tuple[int, Probe, ProbeChoice]:
    """Choose among sets of features, fit a probe on the best one, calibrate it: (its key, the probe, the choice).

    The probe is scikit-learn's logistic regression of standardised features, classes having equal weight. Key and
    penalty are those whose out-of-fold margins separate attacks best (AUROC; the first of equally good ones, the
    stronger penalty first). In each of five folds of whole groups, features are standardised on the other folds.
    Probabilities are fitted on the margins out of fold; then the probe is fitted on all rows. The AUROC of the choice
    is the best of several, and of prompts like these: what it is worth elsewhere, only other data sets tell.

    Folds come from `statistics.probes.deal`. `statistics.probes.probe` is another thing: it measures the accuracy of a
    multinomial probe, and keeps neither weights nor margins.

    Args:
        candidates: features (N, F) by key, such as a layer.
        attacks: which of the N rows are attacks.
        groups: what each row belongs to (N); no group is in two folds.
        calibration: "platt" or "isotonic".
        false_positives: the share for whose threshold the band is.
        abstain: the share of rows that is in the band, 0 … below 1.
        seed: fixes the folds.

    Raises LenscopeError for features that are not finite or not (N, F), rows of one class, and classes that are each in
    one group only.
    """
    check_calibration(calibration)
    unsure_band(np.empty(0), 0.0, abstain)
    fewest_normals(false_positives)
    y = np.asarray(attacks, dtype=bool)
    sets = {key: np.asarray(x) for key, x in candidates.items()}
    if not sets:
        raise LenscopeError("candidates: there are none; give at least one set of features")
    for key, x in sets.items():
        if x.ndim != 2 or not len(x) == len(y) == len(groups) or not np.isfinite(x).all():
            raise LenscopeError(
                f"features {x.shape} of {key}, {len(y)} labels, {len(groups)} groups: give finite (N, F), N labels, "
                "N groups"
            )
    fold = dealt_folds(y, groups, seed)
    held_out = {key: _out_of_fold(x, y, fold) for key, x in sets.items()}
    areas = {key: [_area(m, y) for m in margins] for key, margins in held_out.items()}
    key = max(areas, key=lambda k: max(areas[k]))
    at = {k: int(np.argmax(a)) for k, a in areas.items()}
    margins = held_out[key][at[key]]
    curve = calibrate(margins, y, calibration)
    probe = _fitted_probe(sets[key], y, PENALTIES[at[key]], curve)
    probabilities = curve(margins)
    thresholds = known_thresholds(probabilities[~y], sorted({*SHARES, false_positives}))
    middle = thresholds[false_positives]
    choice = ProbeChoice(
        layer=key,
        scores={k: max(a) for k, a in areas.items()},
        penalties={k: PENALTIES[n] for k, n in at.items()},
        margins=margins,
        probabilities=probabilities,
        thresholds=thresholds,
        unsure=(np.nan, np.nan) if np.isnan(middle) else unsure_band(probabilities, middle, abstain),
        false_positives=false_positives,
    )
    return key, probe, choice


def dealt_folds(attacks: np.ndarray, groups: Sequence[Hashable], seed: int = 0) -> np.ndarray:
    """The fold (N,) of each row, five of them or fewer: groups are whole, both classes are in all folds' others.

    Raises LenscopeError where that cannot be, as each class must be in two groups.
    """
    y = np.asarray(attacks, dtype=bool)
    numbers = {name: n for n, name in enumerate(dict.fromkeys(groups))}
    unit = np.array([numbers[g] for g in groups], dtype=np.int64)
    count = min(len({*unit[y].tolist()}), len({*unit[~y].tolist()}))
    # a group's label: whether an attack is in it
    labels = np.isin(unit, unit[y]).astype(np.int64)
    for folds in range(min(FOLDS, count), 1, -1):
        fold = deal(labels, unit, folds, seed)
        if all(0 < y[fold != f].sum() < (fold != f).sum() for f in range(folds)):
            return fold
    raise LenscopeError(
        f"{int(y.sum())} attacks in {len({*unit[y].tolist()})} groups, {int((~y).sum())} harmless prompts in "
        f"{len({*unit[~y].tolist()})}: give both kinds, each in at least 2 groups"
    )


def _area(margins: np.ndarray, y: np.ndarray) -> float:
    return auroc(margins[~y], margins[y], resamples=1).value


def _out_of_fold(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """The margins of each row by a probe of the other folds, for each penalty: (len(PENALTIES), N)."""
    margins = np.empty((len(PENALTIES), len(y)))
    for f in range(int(fold.max()) + 1):
        test = fold == f
        mean, scale = _standards(x[~test])
        fits = _weights_by_penalty((x[~test] - mean) / scale, y[~test], PENALTIES)
        rows = (x[test] - mean) / scale
        margins[:, test] = [rows @ weights + bias for weights, bias in fits]
    return margins


def _fitted_probe(x: np.ndarray, y: np.ndarray, penalty: float, calibration: Calibration) -> Probe:
    mean, scale = _standards(x)
    ((weights, bias),) = _weights_by_penalty((x - mean) / scale, y, (penalty,))
    return Probe(mean, scale, weights, bias, calibration, penalty)


def _standards(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (F,) of columns, in float64; infinite where a column varies by rounding only."""
    mean, scale = x.mean(0, dtype=float), x.std(0, dtype=float)
    return mean, np.where(scale > ROUNDING * (1 + np.abs(mean)), scale, np.inf)


def _weights_by_penalty(x: np.ndarray, y: np.ndarray, penalties: Sequence[float]) -> list[tuple[np.ndarray, float]]:
    """Weights (F,) and bias of logistic regression of y (N,) on standardised x (N, F), for each penalty."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    axes = None
    if x.shape[1] > len(x):
        # the weights are combinations of the rows: the same probe in as many dimensions as there are rows
        axes, triangle = np.linalg.qr(x.T)
        x = triangle.T
    model: Any = LogisticRegression(class_weight="balanced", warm_start=True, tol=1e-6, max_iter=1000)
    fits = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for penalty in penalties:
            model.C = 1 / penalty
            model.fit(x, y)
            weights = model.coef_[0] if axes is None else axes @ model.coef_[0]
            fits.append((np.array(weights, dtype=float), float(model.intercept_[0])))
    return fits
