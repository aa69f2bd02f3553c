"""Statistics equal scipy's, scikit-learn's and closed forms; intervals cover what they should; units are resampled."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from lenscope.errors import LenscopeError
from lenscope.statistics import estimates as module
from lenscope.statistics.estimates import auroc, spearman, variance_explained


def random(seed=0):
    return np.random.default_rng(seed)


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


def test_variance_explained_by_hand():
    vectors = np.array([[3.0, 0], [0, 3], [-3, 0], [0, -3]])
    assert variance_explained(vectors, vectors) == (1, 1, 1)
    assert variance_explained(vectors, 0 * vectors).value == 0
    found = variance_explained(vectors, vectors * [[1], [1], [1], [0]], seed=1)
    assert found.value == 0.75
    assert found.low < 0.75 < found.high
    assert variance_explained(vectors, 2 * vectors, center=[1, 0]).value == pytest.approx(1 - 36 / 40)
    assert np.isnan(variance_explained(np.ones((3, 2)), np.ones((3, 2))).value)
    with pytest.raises(LenscopeError, match=r"vectors \(4, 2\), reconstructions \(3, 2\)"):
        variance_explained(vectors, vectors[:3])
