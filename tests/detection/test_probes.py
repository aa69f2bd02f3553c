"""Probes equal scikit-learn's pipeline; what is chosen is chosen on the rows that are given, and on nothing else."""

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import lenscope as ls
from lenscope.detection.calibration import Platt
from lenscope.detection.probes import PENALTIES, Probe, choose_probe, dealt_folds, fit_probe


def _rows(n=120, width=8, signal=1.5, seed=0):
    """Features (N, F), attacks, and groups of two rows each."""
    random = np.random.default_rng(seed)
    attacks = random.random(n) < 0.4
    x = random.normal(size=(n, width)) * np.linspace(0.1, 50, width) + 3
    x[:, 1] += signal * attacks * 7
    return x, attacks, [i // 2 for i in range(n)]


@pytest.mark.parametrize("method", ["platt", "isotonic"])
@pytest.mark.parametrize("width", [8, 300])
def test_a_probe_is_scikit_learn_s_pipeline(method, width):
    x, attacks, groups = _rows(width=width)
    probe = fit_probe(x, attacks, groups, calibration=method)
    assert probe.penalty in PENALTIES
    pipeline = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=1 / probe.penalty, class_weight="balanced", tol=1e-8, max_iter=10_000),
    )
    fold = dealt_folds(attacks, groups)
    parts = [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(5)]
    sigmoid = {"platt": "sigmoid", "isotonic": "isotonic"}[method]
    theirs = CalibratedClassifierCV(pipeline, method=sigmoid, cv=parts, ensemble=False).fit(x, attacks)
    new = _rows(width=width, seed=1)[0]
    np.testing.assert_allclose(probe.probabilities(new), theirs.predict_proba(new)[:, 1], atol=2e-3)
    np.testing.assert_allclose(probe.margins(new), pipeline.fit(x, attacks).decision_function(new), atol=1e-3)


def test_a_planted_layer_is_chosen_by_rows_out_of_fold():
    x, attacks, groups = _rows()
    noise = _rows(signal=0, seed=5)[0]
    key, probe, choice = choose_probe({3: noise, 7: x, 9: noise[::-1]}, attacks, groups)
    assert (key, choice.layer) == (7, 7)
    assert choice.scores[7] > 0.8 > choice.scores[3]
    fold = dealt_folds(attacks, groups)
    # the margins of a fold come of the others
    margins = np.empty(len(x))
    for f in range(5):
        test = fold == f
        pipeline = make_pipeline(
            StandardScaler(), LogisticRegression(C=1 / probe.penalty, class_weight="balanced", tol=1e-8)
        )
        margins[test] = pipeline.fit(x[~test], attacks[~test]).decision_function(x[test])
    np.testing.assert_allclose(choice.margins, margins, atol=1e-3)
    assert choice.scores[7] == pytest.approx(roc_auc_score(attacks, choice.margins))
    np.testing.assert_array_equal(choice.probabilities, probe.calibration(choice.margins))
    normal = choice.probabilities[~attacks]
    assert np.isnan(choice.thresholds[0.01])
    assert (normal > choice.thresholds[0.05]).mean() <= 0.05
    low, high = choice.unsure
    assert low <= choice.thresholds[0.05] <= high
    assert ((choice.probabilities >= low) & (choice.probabilities <= high)).sum() == 12


def test_a_choice_never_sees_rows_that_are_not_passed():
    """The same training rows give the same layer, penalty, threshold and probe, whatever the test rows are."""
    x, attacks, groups = _rows(160)
    layers = {1: x, 2: _rows(160, seed=3, signal=0.5)[0]}
    train = np.arange(160) < 100
    first = None
    for seed in (1, 2):
        random = np.random.default_rng(seed)
        changed = {n: np.where(train[:, None], a, random.normal(size=a.shape) * 1e6) for n, a in layers.items()}
        labels = np.where(train, attacks, random.random(160) < 0.5)
        own = [g for g, t in zip(groups, train, strict=True) if t]
        key, probe, choice = choose_probe({n: a[train] for n, a in changed.items()}, labels[train], own)
        now = (key, probe.penalty, choice.thresholds[0.05], choice.unsure, probe.margins(x[:5]).tolist())
        assert first is None or now == first
        first = now


def test_permuted_labels_give_chance():
    areas = []
    for seed in range(4):
        x, attacks, groups = _rows(seed=seed)
        shuffled = np.random.default_rng(seed).permutation(attacks)
        areas.append(roc_auc_score(shuffled, choose_probe({0: x}, shuffled, groups)[2].margins))
        probe = fit_probe(x[:80], shuffled[:80], groups[:80])
        areas.append(roc_auc_score(shuffled[80:], probe.margins(x[80:])))
    assert np.mean(areas) == pytest.approx(0.5, abs=0.09)


def test_groups_are_whole_and_their_mark_tells_nothing():
    """Each group has a column of its own: within the group it would tell the class, across groups it cannot."""
    attacks = np.arange(60) // 6 % 2 == 0
    groups = (np.arange(60) // 6).tolist()
    x = np.eye(10)[groups] * 5 + np.random.default_rng(0).normal(size=(60, 10)) / 10
    fold = dealt_folds(attacks, groups)
    assert all(len({*fold[np.array(groups) == g].tolist()}) == 1 for g in range(10))
    assert max(choose_probe({0: x}, attacks, groups)[2].scores.values()) < 0.7
    assert max(choose_probe({0: x}, attacks, list(range(60)))[2].scores.values()) == 1


def test_columns_that_do_not_vary_are_left_out():
    x, attacks, groups = _rows()
    # rounding that tells the class is no signal
    rounding = np.stack([np.full(120, 4.0), 1e3 + 1e-9 * attacks, 1e-9 * attacks], 1)
    probe = fit_probe(np.hstack([x, rounding]), attacks, groups)
    assert np.isinf(probe.scale[-3:]).all()
    assert (probe.weights[-3:] == 0).all()
    np.testing.assert_allclose(probe.margins(np.hstack([x, rounding + 9])), fit_probe(x, attacks, groups).margins(x))


def test_a_choice_is_the_same_each_time_and_for_half_precision():
    x, attacks, groups = _rows()
    a, b = (choose_probe({0: x, 1: x[::-1]}, attacks, groups, seed=3) for _ in range(2))
    assert np.array_equal(a[1].weights, b[1].weights)
    assert a[2].thresholds[0.05] == b[2].thresholds[0.05]
    single = fit_probe(x.astype(np.float32), attacks, groups)
    np.testing.assert_allclose(single.margins(x), fit_probe(x, attacks, groups).margins(x), atol=1e-3)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda x, y, g: fit_probe(x, y & False, g), "0 attacks in 0 groups"),
        (lambda x, y, g: fit_probe(x, y, y.tolist()), "each in at least 2 groups"),
        (lambda x, y, g: fit_probe(x[:9], y, g), r"features \(9, 8\) of -1, 120 labels"),
        (lambda x, y, g: fit_probe(x[0], y, g), "finite"),
        (lambda x, y, g: fit_probe(x * np.nan, y, g), "finite"),
        (lambda x, y, g: fit_probe(x, y, g, calibration="beta"), "beta"),
        (lambda x, y, g: choose_probe({}, y, g), "there are none"),
        (lambda x, y, g: choose_probe({0: x}, y, g, abstain=1.5), "abstain 1.5"),
        (lambda x, y, g: choose_probe({0: x}, y, g, false_positives=0), "false positives 0"),
        (lambda x, y, g: fit_probe(x, y, g).margins(x[:, :3]), r"takes \(N, 8\)"),
        (lambda x, y, g: Probe(x[0], x[0], x[0, :2], 0.0, Platt(1.0, 0.0), 1.0), "belong|give"),
        (lambda x, y, g: Probe(x[0], x[0] * 0, x[0], 0.0, Platt(1.0, 0.0), 1.0), "scales above 0"),
    ],
)
def test_mistakes_are_one_line(call, told):
    with pytest.raises(ls.LenscopeError, match=told) as error:
        call(*_rows())
    assert "\n" not in str(error.value)
