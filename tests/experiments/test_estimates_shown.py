"""Estimates as sentences have them."""

from lenscope.experiments.estimates_shown import interval
from lenscope.statistics.intervals import Estimate

NAN = float("nan")


def test_an_estimate_without_an_interval_is_its_value():
    assert interval(Estimate(0.5, 0.25, 0.75)) == "0.50 [0.25, 0.75]"
    assert interval(Estimate(0.5, 0.25, 0.75), 1) == "0.5 [0.2, 0.8]"
    assert interval(Estimate(0.5, NAN, NAN)) == "0.50"
