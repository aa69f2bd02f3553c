"""Measures of one detector on one part of the prompts: areas, true and false positives, calibration, each resampled.

Knows: which prompts count for which measure, resamples of whole groups, means over data sets.
Does not know: trials, tables, where scores come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from lenscope.contents import Brief
from lenscope.statistics.classifier_scores import (
    Pair,
    calibrated_error,
    calibration_error,
    unit_weights,
    weighted_auroc,
    weighted_share,
    weighted_true_positives,
)
from lenscope.statistics.intervals import Estimate, estimate_of_draws


@final
@dataclass(frozen=True, eq=False, repr=False)
class Scored(Brief):
    """n prompts as a detector sees them: scores (n,), whether thresholds lie below them by share, what they are.

    `above` is NaN where there is no threshold; prompts that are neither attacks nor normal are harmless insertions.
    """

    scores: np.ndarray
    above: dict[float, np.ndarray]
    attack: np.ndarray
    normal: np.ndarray
    groups: np.ndarray
    calibrated: bool

    @property
    def units(self) -> int:
        """How many groups there are, which are resampled whole."""
        return len(np.unique(self.groups))

    def part(self, which: np.ndarray) -> "Scored":
        """The prompts that are taken (n,) of bool."""
        above = {share: flags[which] for share, flags in self.above.items()}
        return Scored(
            self.scores[which], above, self.attack[which], self.normal[which], self.groups[which], self.calibrated
        )


def scored_auroc(one: Scored, seed: int, harmless: bool = False) -> np.ndarray:
    """AUROC of attacks against normal prompts, or against harmless insertions: (1 + resamples,), the first of all."""
    part = one.part(one.attack | (~one.normal if harmless else one.normal))
    return weighted_auroc(part.scores, part.attack, unit_weights(part.groups.tolist(), seed=seed))


def measures_of(one: Scored, seed: int) -> dict[str, np.ndarray]:
    """All measures of attacks against normal prompts by name, (1 + resamples,) each, the first of all prompts.

    "TP at 1 %" is the share of attacks above what 1 % of these normal prompts exceed; "… threshold" is at the threshold
    chosen in training.
    """
    part = one.part(one.attack | one.normal)
    weights = unit_weights(part.groups.tolist(), seed=seed)
    values = {"AUROC": weighted_auroc(part.scores, part.attack, weights)}
    for share in part.above:
        values[f"TP at {share:.0%}"] = weighted_true_positives(part.scores, part.attack, share, weights)
    for share, flags in part.above.items():
        values[f"FP, {share:.0%} threshold"] = weighted_share(flags[part.normal], weights[:, part.normal])
        values[f"TP, {share:.0%} threshold"] = weighted_share(flags[part.attack], weights[:, part.attack])
    return values


def scored_error(one: Scored, seed: int) -> tuple[Estimate, float]:
    """The expected calibration error of all prompts, and what a calibrated predictor would have; NaN without p."""
    if not one.calibrated:
        return Estimate(np.nan, np.nan, np.nan), float("nan")
    error = calibration_error(one.scores, one.attack, units=one.groups.tolist(), seed=seed)
    return error, calibrated_error(one.scores, seed=seed)


def averaged_errors(errors: Sequence[tuple[Estimate, float]]) -> dict[str, Estimate | float]:
    """Means over data sets of calibration errors, whose half intervals add as independent errors do."""
    value = float(np.mean([e.value for e, _ in errors]))
    reach = float(np.sqrt(np.sum([((e.high - e.low) / 2) ** 2 for e, _ in errors]))) / len(errors)
    middle = Estimate(value, max(0.0, value - reach), min(1.0, value + reach)) if value == value else errors[0][0]
    return {"calibration error": middle, "of a calibrated one": float(np.mean([by_chance for _, by_chance in errors]))}


def mean_estimate(drawn: Sequence[np.ndarray], units: int) -> Estimate:
    """The mean over parts of a measure's values (1 + resamples,), of parts that are resampled on their own."""
    return estimate_of_draws(np.mean(drawn, 0), units)


def false_alarms(flags: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """The share of flags that are set, (1 + resamples,), NaN without thresholds."""
    return weighted_share(flags, unit_weights(groups.tolist(), seed=seed))


def paired_scores(first: Scored, second: Scored, *, harmless: bool) -> list[Pair]:
    """Two detectors' scores of the same attacks and normal prompts, or harmless insertions; none where they differ."""
    take = first.attack | (~first.attack & ~first.normal if harmless else first.normal)
    if len(first.scores) != len(second.scores) or not first.attack.any() or first.attack[take].all():
        return []
    return [(first.scores[take], second.scores[take], first.attack[take], first.groups[take].tolist())]
