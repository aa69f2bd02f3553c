"""Rank correlations of pairs within documents equal scipy's and a regression on ranks."""

import numpy as np
import pytest
from scipy import stats
from scipy.stats import rankdata, spearmanr

from lenscope.statistics import rank_correlations
from lenscope.statistics import rank_correlations as association
from lenscope.statistics.rank_correlations import rank_correlation


@pytest.fixture
def drawn():
    random = np.random.default_rng(0)
    n = 80
    z = random.normal(size=n)
    group = random.integers(0, 4, n)
    x = np.round(z + group + random.normal(size=n)).astype(int)
    y = np.round(2 * (z - group) + random.normal(size=n)).astype(int)
    return x, y, z, group, random.integers(0, 12, n)


def by_regression(x, y, given, group):
    """Ranks, what regression on groups and on ranks of the rest leaves of them, and the correlation of that."""
    design = np.stack([*(group == g for g in set(group.tolist())), *map(rankdata, given)], 1).astype(float)
    left = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in (rankdata(x), rankdata(y))]
    return np.corrcoef(*left)[0, 1]


def test_rank_correlation_is_spearmans(drawn):
    x, y, z, group, _ = drawn
    one, none = np.ones(80), np.zeros(80, dtype=int)
    level = association.levels
    assert association.weighted_rank_correlation([level(x), level(y)], none, one) == pytest.approx(
        spearmanr(x, y).statistic, abs=1e-12
    )
    given = association.weighted_rank_correlation([level(v) for v in (x, y, z)], group, one)
    assert given == pytest.approx(by_regression(x, y, [z], group), abs=1e-10)
    assert abs(given - spearmanr(x, y).statistic) > 0.05
    weight = np.random.default_rng(1).integers(0, 4, 80)
    again = np.repeat(np.arange(80), weight)
    weighed = association.weighted_rank_correlation([level(v) for v in (x, y, z)], group, weight.astype(float))
    assert weighed == pytest.approx(by_regression(x[again], y[again], [z[again]], group[again]), abs=1e-10)
    assert np.isnan(association.weighted_rank_correlation([level(x), none], none, one))
    assert np.isnan(association.weighted_rank_correlation([level(x), level(y), level(x)], none, one))


def test_documents_are_resampled(drawn):
    x, y, z, _, document = drawn
    first, second, apart = association.correlations(y, [x, z], document, resamples=60, seed=3)
    random = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), 60)
    members = [np.flatnonzero(document == d) for d in range(12)]
    made = []
    for times in random:
        rows = np.concatenate([m for m, t in zip(members, times, strict=True) for _ in range(t)])
        made.append([spearmanr(v[rows], y[rows]).statistic for v in (x, z)])
    made = np.array(made)
    from lenscope.statistics.intervals import percentiles

    for got, values in ((first, made[:, 0]), (second, made[:, 1]), (apart, made[:, 0] - made[:, 1])):
        assert got[1:] == pytest.approx(percentiles(values, 12), abs=1e-12)
    assert first.value == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert apart.value == pytest.approx(first.value - second.value, abs=1e-12)


def test_shuffling_stays_within_groups(drawn):
    x, _, _, group, _ = drawn
    made = association.shuffled_within(x, group, 0)
    assert not np.array_equal(made, x)
    for g in range(4):
        assert sorted(made[group == g]) == sorted(x[group == g])
        assert not np.array_equal(made[group == g], x[group == g])


def test_partial_correlations_are_those_of_residual_ranks():
    random = np.random.default_rng(0)
    z = random.normal(size=80)
    x, y = z + random.normal(size=80), z - random.normal(size=80)
    ranks = [stats.rankdata(v) for v in (x, y, z)]
    rest = [r - np.polyval(np.polyfit(ranks[2], r, 1), ranks[2]) for r in ranks[:2]]
    assert rank_correlations.partial_rank_correlation(x, y, z) == pytest.approx(np.corrcoef(*rest)[0, 1], abs=1e-12)
    assert np.isnan(rank_correlation(np.ones(4), np.arange(4.0)))
