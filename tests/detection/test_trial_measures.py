"""Measures of one detector: which prompts count, means over parts."""

import numpy as np
import pytest

from lenscope.detection.trial_measures import (
    Scored,
    averaged_errors,
    false_alarms,
    mean_estimate,
    measures_of,
    paired_scores,
    scored_auroc,
    scored_error,
)
from lenscope.statistics.intervals import Estimate

SCORES = np.array([0.1, 0.2, 0.3, 0.25, 0.8, 0.15])
ATTACK = np.array([False, False, False, True, True, False])
NORMAL = np.array([True, True, False, False, False, True])


def scored(scores=SCORES, calibrated=True):
    above = {0.01: np.full(6, np.nan), 0.05: (scores > 0.18).astype(float)}
    return Scored(scores, above, ATTACK, NORMAL, np.arange(6), calibrated)


def test_attacks_are_measured_against_normal_prompts_or_insertions():
    values = measures_of(scored(), 0)
    assert {name: v[0] for name, v in values.items()} == pytest.approx(
        {
            "AUROC": 1, "TP at 1%": 1, "TP at 5%": 1, "FP, 1% threshold": np.nan, "TP, 1% threshold": np.nan,
            "FP, 5% threshold": 1 / 3, "TP, 5% threshold": 1,
        },
        nan_ok=True,
    )  # fmt: skip
    assert scored_auroc(scored(), 0, True)[0] == 0.5
    assert false_alarms(scored().above[0.05][NORMAL], np.arange(3), 0)[0] == pytest.approx(1 / 3)


def test_errors_are_of_probabilities_alone():
    error, by_chance = scored_error(scored(), 0)
    assert 0 < error.value < 1
    assert by_chance > 0
    assert np.isnan(scored_error(scored(calibrated=False), 0)[0].value)
    row = averaged_errors([(Estimate(0.1, 0.07, 0.13), 0.02), (Estimate(0.3, 0.26, 0.34), 0.04)])
    assert row["calibration error"] == pytest.approx((0.2, 0.175, 0.225))
    assert row["of a calibrated one"] == pytest.approx(0.03)


def test_means_of_parts_that_are_resampled_on_their_own():
    random = np.random.default_rng(0)
    parts = [np.concatenate([[0.5], 0.5 + random.normal(size=1000) / 10]) for _ in range(4)]
    one, four = mean_estimate(parts[:1], 500), mean_estimate(parts, 500)
    assert four.value == 0.5
    assert (one.high - one.low) / (four.high - four.low) == pytest.approx(2, rel=0.1)


def test_pairs_are_of_the_same_prompts():
    ((first, second, attack, units),) = paired_scores(scored(), scored(SCORES * 2), harmless=False)
    assert second.tolist() == (2 * first).tolist()
    assert attack.tolist() == [False, False, True, True, False]
    assert units == [0, 1, 3, 4, 5]
    assert paired_scores(scored(), scored().part(ATTACK), harmless=False) == []
    assert len(paired_scores(scored(), scored(), harmless=True)[0][0]) == 3
