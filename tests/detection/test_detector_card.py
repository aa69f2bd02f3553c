"""A card says what a detector was fitted and tested on, and names each data set where it fails."""

import math
from types import SimpleNamespace

import pytest

from lenscope.detection.detector_card import detector_card
from lenscope.statistics.intervals import Estimate


@pytest.fixture
def detector(lm):
    tried = {
        "view": "last state",
        "layer": 3,
        "auroc": 0.97,
        "auroc_95": [0.95, 0.99],
        "true_positives": [
            {"false_positives": 0.01, "value": None, "interval_95": None},
            {"false_positives": 0.05, "value": 0.8, "interval_95": [0.7, 0.9]},
        ],
        "control": False,
    }
    return SimpleNamespace(
        lm=lm,
        view="last state",
        layer=3,
        lens_layers={},
        thresholds={0.01: math.nan, 0.05: 0.75},
        unsure=(0.6, 0.8),
        false_positives=0.05,
        prompts=("0" * 64,) * 60,
        report={
            "tried": [tried, {**tried, "view": "length", "layer": None, "auroc": 0.6, "control": True}],
            "data_sets": {"mails | <b>": {"attacks": 20, "normal": 30, "insertions": 10, "families": {"hijack": 20}}},
            "calibration": "platt",
            "seed": 0,
        },
    )


def test_what_it_was_fitted_on_and_its_thresholds(detector):
    card = detector_card(detector)
    for line in (
        "# A detector of attacks for tiny-llama",
        "| model | tiny-llama (4 layers of 32, float64) |",
        "| looks at | last state, layer 3 |",
        "| prompts | 60, of which the SHA-256 are kept |",
        "| mails \\| &lt;b> | 20 | 30 | 10 | hijack |",
        "| last state | 3 | 0.970 (0.950 to 0.990) | – | 0.800 (0.700 to 0.900) |",
        "| length (control) | – | 0.600 (0.950 to 0.990) | – | 0.800 (0.700 to 0.900) |",
        "| 0.01 | not to be had: it takes 99 harmless prompts |",
        "| 0.05 | 0.75 |",
    ):
        assert line in card.splitlines(), line
    assert "from 0.6 to 0.8 the verdict is “unsure”" in card
    assert "It has not been tested on prompts of other data sets" in card
    assert "- Not known, as it was not tested elsewhere." in card
    assert 'ls.load("tiny-llama")' in card


def test_where_it_fails_is_where_the_evaluation_says_so(detector):
    rows = [
        {"data set": "good", "detector": "probe", "AUROC": Estimate(0.9, 0.8, 0.95), "TP at 1%": 0.5, "attacks": 9},
        {"data set": "chance", "detector": "probe", "AUROC": {"value": 0.6, "low": 0.49, "high": 0.7}, "TP at 1%": 0.2},
        {"data set": "few", "detector": "probe", "AUROC": Estimate(0.9, 0.8, 0.95), "TP at 1%": 0.04},
        {"data set": "good", "detector": "other", "AUROC": 0.1, "TP at 1%": 0.0},
    ]
    alarms = [
        {"data set": "NotInject", "detector": "probe", "false alarms at 1%": 0.3, "false alarms at 5%": 0.04},
    ]
    evaluation = {
        "detector": "probe",
        "data sets left out": rows,
        "trigger words": alarms,
        "chosen in training": [{"layer": 3, "detector": "probe"}],
        "verdict": "in words",
    }
    card = detector_card(detector, evaluation)
    failures = card.partition("## Where it fails\n\n")[2].partition("\n\n")[0].splitlines()
    assert failures[:-2] == [
        "- chance (data sets left out): its AUROC, 0.600 (0.490 to 0.700), is not above chance.",
        "- few (data sets left out): at 1 % false positives it finds 4.0% of attacks.",
        "- NotInject (trigger words): 30.0% of harmless prompts are above the threshold at 1%.",
    ]
    assert "| good | 0.900 (0.800 to 0.950) | 0.500 |" in card
    assert "| NotInject | 0.300 | 0.040 |" in card
    assert "0.100" not in card
    assert "chosen in training" not in card.lower()
    none = detector_card(detector, {"left out": rows[:1]})
    assert "- On none of the data sets above by these marks" in none
