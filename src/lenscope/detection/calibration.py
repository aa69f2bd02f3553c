"""Calibration: what a classifier's margins are as probabilities, and above which of them few normal items lie.

Knows: Platt's sigmoid, isotonic regression, thresholds by rank, the band around a threshold where nothing is decided.
Does not know: what margins are of, how items were held out.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from lenscope.contents import Brief
from lenscope.errors import LenscopeError

CALIBRATIONS = ("platt", "isotonic")
# shares of false positives that thresholds are chosen for
SHARES = (0.01, 0.05)
# Newton's steps, of which the likelihood of two numbers takes about ten
STEPS = 100


@final
@dataclass(frozen=True)
class Platt:
    """p = 1 / (1 + exp(-(slope · margin + intercept))): Platt 1999. The slope is not negative: order is kept."""

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.slope, self.intercept]).all() and self.slope >= 0):
            raise LenscopeError(
                f"calibration: slope {self.slope}, intercept {self.intercept}; give finite numbers, the slope ≥ 0"
            )

    def __call__(self, margins: np.ndarray) -> np.ndarray:
        """The probabilities (N,) of margins (N,)."""
        return _sigmoid(self.slope * np.asarray(margins, dtype=float) + self.intercept)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Isotonic(Brief):
    """A rising line through the points (`margins`, `values`), (K,) each, constant beyond its ends: isotonic regression.

    It is less bound to a form than Platt's sigmoid, and takes more items; many margins have the same probability.
    """

    margins: np.ndarray
    values: np.ndarray

    def __post_init__(self) -> None:
        ends = self.margins.ndim == 1 and len(self.margins) > 0 and self.margins.shape == self.values.shape
        finite = ends and np.isfinite(self.margins).all() and np.isfinite(self.values).all()
        rising = finite and (np.diff(self.margins) > 0).all() and (np.diff(self.values) >= 0).all()
        if not rising or self.values[0] < 0 or self.values[-1] > 1:
            raise LenscopeError("calibration: its points must rise, as many margins as probabilities between 0 and 1")

    def __call__(self, margins: np.ndarray) -> np.ndarray:
        """The probabilities (N,) of margins (N,)."""
        return np.interp(np.asarray(margins, dtype=float), self.margins, self.values)


Calibration = Platt | Isotonic


def calibrate(margins: np.ndarray, attacks: np.ndarray, method: str = "platt") -> Calibration:
    """Fit the probabilities of attacks on margins (N,) of items that the classifier was not fitted on.

    "platt" takes Platt's targets, (N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2), which keep it from certainty; "isotonic" is
    scikit-learn's. The share of attacks among these items is the prior of the probabilities. Raises LenscopeError for
    another method, margins that are not finite, and items of one class only.
    """
    x, y = np.asarray(margins, dtype=float), np.asarray(attacks, dtype=bool)
    check_calibration(method)
    if x.shape != y.shape or x.ndim != 1 or not np.isfinite(x).all() or y.all() or not y.any():
        raise LenscopeError(
            f"margins {x.shape}, {int(y.sum())} attacks of {y.size}: give as many finite margins, of both classes"
        )
    return _platt(x, y) if method == "platt" else _isotonic(x, y)


def check_calibration(method: str) -> None:
    """Raise LenscopeError unless a method of calibration is one of `CALIBRATIONS`."""
    if method not in CALIBRATIONS:
        raise LenscopeError(f"calibration {method!r}: give one of {', '.join(CALIBRATIONS)}")


def calibration_parts(calibration: Calibration) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A calibration as JSON values and arrays by name, which `calibration_of` reads."""
    if isinstance(calibration, Platt):
        return {"name": "platt", "slope": calibration.slope, "intercept": calibration.intercept}, {}
    arrays = {"calibration_margins": calibration.margins, "calibration_values": calibration.values}
    return {"name": "isotonic"}, arrays


def calibration_of(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Calibration:
    """What `calibration_parts` gave as a calibration again; any exception says that it is none."""
    check_calibration(config["name"])
    if config["name"] == "platt":
        return Platt(float(config["slope"]), float(config["intercept"]))
    return Isotonic(arrays["calibration_margins"], arrays["calibration_values"])


def fewest_normals(false_positives: float) -> int:
    """How many normal items it takes at least to show a share of false positives; LenscopeError for no share."""
    if not 0 < false_positives < 1:
        raise LenscopeError(f"false positives {false_positives}: give a share between 0 and 1, such as 0.05")
    return int(np.ceil(1 / false_positives - 1e-9)) - 1


def require_enough_normals(count: int, false_positives: float, what: str = "normal items") -> None:
    """Raise LenscopeError for a share of false positives that `count` normal items, called `what`, cannot show."""
    needed = fewest_normals(false_positives)
    if count < needed:
        raise LenscopeError(
            f"false positives {false_positives}: takes at least {needed} {what}, not {count}; give more, or a larger "
            "share"
        )


def conformal_threshold(scores: np.ndarray, false_positives: float) -> float:
    """The score that a share `false_positives` of normal items exceeds, from scores (N,) of such, each held out.

    The (N + 1)(1 - share) smallest, rounded up, as in conformal prediction. Raises LenscopeError for a share that so
    few items cannot show.
    """
    require_enough_normals(len(scores), false_positives)
    at = int(np.ceil((len(scores) + 1) * (1 - false_positives) - 1e-9))
    return float(np.sort(scores)[min(at, len(scores)) - 1])


def known_thresholds(scores: np.ndarray, shares: Collection[float]) -> dict[float, float]:
    """The conformal threshold at each share of false positives; NaN where there are too few scores (N,) to know it."""
    known = [share for share in shares if len(scores) >= fewest_normals(share)]
    return {share: conformal_threshold(scores, share) if share in known else float("nan") for share in shares}


def unsure_band(probabilities: np.ndarray, threshold: float, abstain: float) -> tuple[float, float]:
    """The lowest and the highest of the share `abstain` of probabilities (N,) that are nearest to a threshold.

    The band holds the threshold; it is empty, (threshold, threshold), where nothing is abstained from. Equal
    probabilities are in it together, so that it may hold more than the share. Raises LenscopeError for no share.
    """
    if not 0 <= abstain < 1:
        raise LenscopeError(f"abstain {abstain}: give a share from 0 to below 1, such as 0.1")
    p = np.asarray(probabilities, dtype=float)
    nearest = p[np.argsort(np.abs(p - threshold), kind="stable")[: int(abstain * len(p) + 0.5)]]
    return float(min([threshold, *nearest])), float(max([threshold, *nearest]))


def _platt(x: np.ndarray, y: np.ndarray) -> Platt:
    """Newton's method on standardised margins, with half steps where a whole one makes it worse."""
    middle, spread = x.mean(), x.std()
    spread = spread if spread > 1e-12 * (1 + abs(middle)) else np.inf
    rows = np.stack([(x - middle) / spread, np.ones_like(x)], 1)
    targets = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))

    def loss(w: np.ndarray) -> float:
        z = rows @ w
        return float((np.logaddexp(0, z) - targets * z).sum())

    w = np.array([0.0, np.log(y.sum() / (~y).sum())])
    for _ in range(STEPS):
        p = _sigmoid(rows @ w)
        curvature = (rows * (p * (1 - p))[:, None]).T @ rows + 1e-10 * np.eye(2)
        step = np.linalg.solve(curvature, rows.T @ (p - targets))
        while loss(w - step) > loss(w) + 1e-12 and np.abs(step).max() > 1e-12:
            step = step / 2
        w = w - step
        if np.abs(step).max() < 1e-10:
            break
    if w[0] <= 0:
        # margins that tell the wrong way round tell nothing: all items have the mean probability
        mean = targets.mean()
        return Platt(0.0, float(np.log(mean / (1 - mean))))
    slope = w[0] / spread
    return Platt(float(slope), float(w[1] - slope * middle))


def _isotonic(x: np.ndarray, y: np.ndarray) -> Isotonic:
    from sklearn.isotonic import IsotonicRegression

    fitted: Any = IsotonicRegression(y_min=0, y_max=1, increasing=True, out_of_bounds="clip").fit(x, y.astype(float))
    return Isotonic(
        np.asarray(fitted.X_thresholds_, dtype=float), np.clip(np.asarray(fitted.y_thresholds_, dtype=float), 0, 1)
    )


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(-np.logaddexp(0, -z)))
