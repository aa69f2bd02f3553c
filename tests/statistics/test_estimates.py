"""Statistics equal scipy's, scikit-learn's and closed forms; intervals cover what they should; units are resampled."""

from itertools import product

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from lenscope.errors import LenscopeError
from lenscope.statistics import estimates as module
from lenscope.statistics import intervals
from lenscope.statistics.estimates import auroc, difference, mean, spearman
from lenscope.statistics.intervals import Estimate, bootstrap, percentiles, tail
from lenscope.statistics.significance import holm, sign_flips


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


@pytest.mark.parametrize("ties", [False, True])
def test_spearman_is_scipys(ties):
    x, y = random(1).normal(size=(2, 60))
    y = y + x
    if ties:
        x, y = np.round(x), np.round(y)
    assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert spearman(x, x**3).value == pytest.approx(1, abs=1e-12)
    assert spearman(x, -x).value == pytest.approx(-1, abs=1e-12)


def test_spearman_of_a_constant_is_no_number():
    found = spearman(np.ones(9), np.arange(9))
    assert all(np.isnan(v) for v in found)


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_scikit_learns(ties):
    low, high = random(2).normal(size=40), random(3).normal(size=25) + 0.7
    if ties:
        low, high = np.round(low), np.round(high)
    expected = roc_auc_score([0] * 40 + [1] * 25, [*low, *high])
    found = auroc(low, high)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.low < found.value < found.high
    assert auroc(high, low).value == pytest.approx(1 - expected, abs=1e-12)


def test_auroc_resamples_both_groups_alone(monkeypatch):
    """Its resamples scatter as those of groups drawn one by one."""
    low, high = random(4).normal(size=30), random(5).normal(size=20) + 1
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(module, "percentiles", lambda d, units: (drawn.append(d), np.zeros(2))[1])
    auroc(low, high, resamples=2000)
    draw = random(6)
    plain = [roc_auc_score([0] * 30 + [1] * 20, [*draw.choice(low, 30), *draw.choice(high, 20)]) for _ in range(1500)]
    assert drawn[0].mean() == pytest.approx(np.mean(plain), abs=0.006)
    assert drawn[0].std() == pytest.approx(np.std(plain), rel=0.08)


def test_auroc_of_single_scores_has_no_interval():
    found = auroc([0.0], [1.0, 2.0])
    assert found.value == 1
    assert np.isnan(found.low)


@pytest.mark.parametrize(("low", "high"), [([], [1.0]), ([1.0], []), ([float("nan")], [1.0])])
def test_auroc_refuses_what_it_cannot_rank(low, high):
    with pytest.raises(LenscopeError, match="give at least 1 of each, none NaN"):
        auroc(low, high)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        # Holm 1979: ordered p times n, n - 1, …, each at least the one before
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.2], [0.2]),
        ([0.5, 0.6, 0.9], [1.0, 1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holm_by_hand(p, expected):
    assert holm(p) == pytest.approx(expected, abs=1e-12)


def test_holm_keeps_what_bonferroni_rejects():
    p = random(7).random(20) ** 4
    corrected = np.array(holm(p))
    assert (corrected <= np.minimum(1, p * 20) + 1e-12).all()
    assert (corrected >= p).all()
    assert (np.diff(corrected[np.argsort(p)]) >= 0).all()


def test_sign_flips_is_the_exact_test():
    values = random(8).normal(size=10) + 0.5
    flips = np.array(list(product([-1, 1], repeat=10)))
    exact = (np.abs((flips * values).mean(1)) >= abs(values.mean()) - 1e-12).mean()
    assert sign_flips(values, resamples=40_000) == pytest.approx(exact, abs=0.01)
    assert sign_flips(-values, resamples=40_000) == pytest.approx(exact, abs=0.01)


def test_sign_flips_of_nothing_and_of_no_effect():
    assert sign_flips(np.zeros(5)) == 1
    assert sign_flips(np.ones(50)) == pytest.approx(1 / 10_001)
    with pytest.raises(LenscopeError, match="none given"):
        sign_flips([])


def test_p_values_of_nothing_are_even():
    found = np.array([sign_flips(random(n).normal(size=15), resamples=400) for n in range(300)])
    assert (found < 0.05).mean() == pytest.approx(0.05, abs=0.035)
    assert (found < 0.5).mean() == pytest.approx(0.5, abs=0.09)


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
