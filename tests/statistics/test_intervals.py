"""Intervals: their tails are those of Student's t."""

from math import sqrt
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from lenscope.errors import LenscopeError
from lenscope.statistics import estimates as module
from lenscope.statistics import intervals
from lenscope.statistics.estimates import difference, mean
from lenscope.statistics.intervals import Estimate, bootstrap, interval, percentiles, tail

# 97.5 percentiles of Student's t by degrees of freedom, from tables
STUDENT = {3: 3.1824, 7: 2.3646, 19: 2.0930, 59: 2.0010}


@pytest.mark.parametrize("degrees", STUDENT)
def test_tails_are_those_of_students_t(degrees):
    t = -NormalDist().inv_cdf(intervals.tail(degrees + 1)) / sqrt((degrees + 1) / degrees)
    assert t == pytest.approx(STUDENT[degrees], rel=0.01)


def random(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("units", [4, 5, 8, 12, 30, 1000])
def test_the_tail_is_that_of_students_t(units):
    v = units - 1
    t = -stats.norm.ppf(tail(units)) * np.sqrt(v / units)
    assert t == pytest.approx(stats.t.ppf(0.975, v), rel=0.01)
    assert tail(units) < tail(units + 1) < 0.025


def test_percentiles_are_cut_at_the_tail():
    drawn = random().normal(size=(1000, 3))
    share = 100 * tail(7)
    low, high = percentiles(drawn, 7)
    assert low == pytest.approx(np.percentile(drawn, share, axis=0), abs=1e-12)
    assert high == pytest.approx(np.percentile(drawn, 100 - share, axis=0), abs=1e-12)


def test_an_estimate_reads_as_a_value_in_its_interval():
    assert str(Estimate(0.5, 0.25, 0.75)) == "0.5 [0.25, 0.75]"


def test_the_interval_of_a_mean_is_that_of_students_t():
    values = random(9).normal(size=12) * 3 + 1
    found = bootstrap(np.mean, values, resamples=20_000)
    expected = stats.t.interval(0.95, 11, values.mean(), values.std(ddof=1) / np.sqrt(12))
    assert found.value == pytest.approx(values.mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx(expected, abs=0.15 * (expected[1] - expected[0]) / 2)


@pytest.mark.parametrize("units", [8, 20])
def test_intervals_of_means_cover(units):
    hits = 0
    for n in range(300):
        found = bootstrap(np.mean, random(n).normal(size=units), seed=n, resamples=200)
        hits += found.low <= 0 <= found.high
    assert hits / 300 == pytest.approx(0.95, abs=0.035)


def test_whole_units_are_resampled():
    """Ten values of each unit are no more than one: the interval is that of the units' means."""
    own = random(10).normal(size=15)
    values, units = np.repeat(own, 10), np.repeat(np.arange(15), 10)
    clustered = mean(values, units=units)
    alone = mean(own)
    naive = mean(values)
    assert clustered.value == pytest.approx(alone.value, abs=1e-12)
    assert (clustered.low, clustered.high) == pytest.approx((alone.low, alone.high), abs=0.12)
    assert naive.high - naive.low < 0.5 * (clustered.high - clustered.low)


def test_units_of_unequal_size_and_any_name():
    values = np.array([1.0, 1, 1, 4])
    seen: set[float] = set()

    def statistic(v):
        seen.add(round(float(v.mean()), 12))
        return float(v.mean())

    bootstrap(statistic, values, units=["b", "b", "b", "a"])
    # both units, one of them twice: never a part of "b"
    assert seen == {1.0, 4.0, 1.75}


def test_samples_are_resampled_together():
    x = random(11).normal(size=30)
    found = bootstrap(lambda a, b: float((a - b).mean()), x, x - 2)
    assert found == pytest.approx((2, 2, 2), abs=1e-12)
    assert difference(x, x - 2) == pytest.approx((2, 2, 2), abs=1e-12)


def test_a_seed_fixes_the_interval():
    x = random(12).normal(size=20)
    assert mean(x, seed=3) == mean(x, seed=3)
    assert mean(x, seed=3) != mean(x, seed=4)


def test_a_single_unit_has_no_interval():
    for found in (mean([2.0]), mean([1.0, 3.0], units=["a", "a"])):
        assert found.value == 2
        assert np.isnan(found.low)
        assert np.isnan(found.high)


def test_resamples_that_are_no_number_are_left_out():
    values = np.array([np.nan] + [1.0] * 5)
    found = bootstrap(lambda v: float("nan") if np.isnan(v).all() else float(np.nanmean(v)), values)
    assert found == pytest.approx((1, 1, 1), abs=1e-12)
    nothing = bootstrap(lambda v: float("nan"), values)
    assert all(np.isnan(v) for v in nothing)


@pytest.mark.parametrize("samples", [([],), ([1.0], [1.0, 2.0])])
def test_samples_that_do_not_fit_are_refused(samples):
    with pytest.raises(LenscopeError, match="give samples of the same length, at least 1"):
        bootstrap(np.mean, *samples)


def test_ratios_of_sums_are_means_over_units_resampled_whole():
    random = np.random.default_rng(0)
    counts = random.integers(1, 9, 40)
    values = [random.normal(1.0, 1.0, (n, 2)) for n in counts]
    sums = np.stack([v.sum(0) for v in values])
    found = intervals.ratios(sums, counts)
    rows = np.concatenate(values)
    units = np.repeat(np.arange(40), counts)
    for column, one in enumerate(found):
        direct = module.mean(rows[:, column], units=units)
        assert one.value == pytest.approx(direct.value)
        assert one.low < one.value < one.high
        assert one.high - one.low == pytest.approx(direct.high - direct.low, rel=0.2)
    (alone,) = intervals.ratios([[3.0]], [2])
    assert (alone.value, np.isnan(alone.low), np.isnan(alone.high)) == (1.5, True, True)
    for sums, counts in (([[1.0]], [0]), ([[1.0]], [1, 2]), ([1.0], [1]), ([[1.0], [1.0]], [2, -1])):
        with pytest.raises(LenscopeError, match=r"give \(units, columns\)"):
            intervals.ratios(sums, counts)


def test_an_estimate_in_a_sentence_has_what_there_is_of_it():
    nan = float("nan")
    assert interval(Estimate(0.5, 0.25, 0.75)) == "0.50 [0.25, 0.75]"
    assert interval(Estimate(0.5, 0.25, 0.75), 1) == "0.5 [0.2, 0.8]"
    assert interval(Estimate(0.5, nan, nan)) == "0.50"
    assert interval(Estimate(nan, nan, nan)) == "–"
