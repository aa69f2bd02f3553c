"""Outliers: scores equal their definitions, and only held-out items are scored."""

import numpy as np
import pytest
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor

import lenscope as ls
from lenscope.detection.outliers import FOLDS, Forest, Mahalanobis, Neighbours, folds, separation, threshold


def test_scores_equal_their_definitions():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(40, 6)) * [1, 2, 3, 4, 5, 60] + 7, draw.normal(size=(9, 6)) * 9
    forest = IsolationForest(n_estimators=100, random_state=3).fit(x)
    np.testing.assert_array_equal(Forest(seed=3)(x)(y), -forest.score_samples(y))
    scaled = (x - x.mean(0)) / x.std(0), (y - x.mean(0)) / x.std(0)
    for method, (a, b) in ((Neighbours(20), (x, y)), (Neighbours(5, "cosine", True), scaled)):
        plain = LocalOutlierFactor(n_neighbors=method.neighbours, metric=method.metric, novelty=True).fit(a)
        np.testing.assert_allclose(method(x)(y), -plain.score_samples(b), rtol=1e-9)
    # a constant column is no signal, however small its rounding
    flat = np.concatenate([x, 5 + 1e-13 * draw.normal(size=(40, 1))], 1)
    other = np.concatenate([y, np.full((9, 1), 6.0)], 1)
    np.testing.assert_allclose(Neighbours(5, scaled=True)(flat)(other), Neighbours(5, scaled=True)(x)(y), rtol=1e-9)
    assert Neighbours(20)(x[:4])(y).shape == (9,)
    for rows in (40, 4):
        near = x[:rows]
        d, ridge = y - near.mean(0), 1e-3
        cov = np.cov(near.T) + ridge * np.eye(6)
        full = np.einsum("nd,de,ne->n", d, np.linalg.inv(cov), d)
        diagonal = (d**2 / np.diag(cov)).sum(1)
        np.testing.assert_allclose(Mahalanobis()(near)(y), full - diagonal, rtol=1e-6)


def test_separation_scores_only_held_out_items(monkeypatch):
    draw = np.random.default_rng(1)
    normal, odd = draw.normal(size=(40, 3)), draw.normal(size=(40, 3)) + 6
    assert separation(Neighbours(5), normal, odd) > 0.99
    assert abs(separation(Neighbours(5), normal, normal) - 0.5) < 1e-9
    seen = []
    monkeypatch.setattr(Forest, "__call__", lambda self, x: seen.append(x) or (lambda y: np.zeros(len(y))))
    assert separation(Forest(), normal, odd) == 0.5
    assert sorted(map(len, seen)) == [20, 20]
    assert {tuple(r) for x in seen for r in x} == {tuple(r) for r in normal}


def test_the_threshold_has_the_share_it_says():
    draw = np.random.default_rng(2)
    normal, fresh = draw.normal(size=(200, 4)), draw.normal(size=(4000, 4))
    method = Neighbours(20)
    at = threshold(method, normal, 0.1)
    assert 0.05 < (method(normal)(fresh) > at).mean() < 0.16
    # by hand: every item scored by a fit on the other four parts
    scores = np.empty(200)
    for test in folds(200, FOLDS, 0):
        rest = [i for i in range(200) if i not in test]
        scores[test] = method(normal[rest])(normal[test])
    assert at == np.sort(scores)[181 - 1]
    for share, told in ((0.001, "at least 999"), (0.0, "between 0 and 1"), (1.0, "between 0 and 1")):
        with pytest.raises(ls.LenscopeError, match=told):
            threshold(method, normal, share)
