"""Trials: what is tried was never fitted on, and intervals of splits cover."""

from functools import partial

import numpy as np
import pytest
from detecting import roomy_model, tuned_lens

import lenscope as ls
from lenscope.detection.outliers import Forest, Neighbours, folds
from lenscope.experiments.tuned_lens_paper import injection_trials as trials
from lenscope.experiments.tuned_lens_paper.injection_trials import Items, Split, check_disjoint, run_splits, split_auroc


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    """Forests of a hundred trees take most of the time."""
    monkeypatch.setattr(trials, "Forest", partial(Forest, 5))


@pytest.fixture(scope="module")
def lm():
    return roomy_model()


@pytest.fixture(scope="module")
def tuned(lm):
    return tuned_lens(lm)


def items(count, features, texts=None):
    zeros = np.zeros(count)
    return Items(texts or [f"text {n}" for n in range(count)], features, (0,), np.zeros((count, 1, 2)), zeros, zeros)


def test_the_auroc_of_splits_is_the_mean_of_theirs():
    scores = {"d": {"low": np.array([0.0, 1.0]), "high": np.array([1.0, 2.0])}}
    other = {"d": {"low": np.array([5.0, 3.0]), "high": np.array([4.0, 1.0])}}
    splits = [Split(np.array([0, 2]), scores), Split(np.array([1, 3]), other)]
    # each beside the other question's: 2 > 0 and 1 = 1; 1 < 5 and 4 > 3
    assert split_auroc(splits, "d", "low", "high", True).value == pytest.approx((1.5 / 2 + 1 / 2) / 2)
    whole = split_auroc(splits, "d", "low", "high", False)
    assert whole.value == pytest.approx((3.5 / 4 + 1 / 4) / 2)
    one = split_auroc(splits, "d", "low", "high", False, np.array([True, False]))
    assert one.value == pytest.approx(((0.5 + 1) / 2 + (0 + 1) / 2) / 2)
    assert np.isnan(one.low)


def test_intervals_of_splits_cover():
    """Normal and odd items of the same distribution: 95 % of the intervals hold ½."""
    draw, held = np.random.default_rng(4), 0
    for _ in range(60):
        shift = draw.normal(size=40)
        splits = []
        for test in folds(40, 4, 0):
            # a question's two forms are alike
            low, high = (shift[test] + draw.normal(size=10) for _ in range(2))
            splits.append(Split(test, {"d": {"low": low, "high": high}}))
        found = split_auroc(splits, "d", "low", "high", True)
        held += found.low <= 0.5 <= found.high
    assert held >= 53


def test_nothing_that_is_tried_was_fitted_on(lm, monkeypatch):
    """Every reference of every method holds rows of normal items that are not held out, and no others."""
    draw, count = np.random.default_rng(5), 24
    made = {}
    for n, sort in enumerate(("normal", "disturbed", "injected")):
        features = {lens: draw.normal(size=(count, 3)) + n for lens in ("tuned", "logit")}
        made[sort] = items(count, features, [f"{sort} {i}" for i in range(count)])
    seen = []
    for kind in (Forest, Neighbours):
        plain = kind.__call__
        monkeypatch.setattr(kind, "__call__", lambda self, x, plain=plain: seen.append(x) or plain(self, x))
    splits, taken = run_splits(lm, made, paired=True, repeats=2, seed=0)
    normal = {tuple(r) for x in made["normal"].features.values() for r in x}
    assert seen
    assert all(tuple(r) in normal for x in seen for r in x)
    assert len(splits) == 8
    assert sorted(i for s in splits[:4] for i in s.test.tolist()) == list(range(count))
    assert {len(s) for split in splits for d in split.scores.values() for s in d.values()} == {6}
    assert "SRM" in taken
    assert taken["chosen"] in splits[0].scores
    # what was fitted in the last split's last detector is without its test items
    held = {tuple(r) for r in made["normal"].features["logit"][splits[-1].test]}
    assert not held & {tuple(r) for r in seen[-1]}
    # injected texts that are normal ones too are told off
    made["injected"].texts[:] = [made["normal"].texts[20]] * count
    with pytest.raises(ls.LenscopeError, match="among the normal"):
        run_splits(lm, made, paired=True, repeats=1, seed=0)
    with pytest.raises(ls.LenscopeError, match="among the normal"):
        check_disjoint(lm, made["normal"], [made["normal"].part([2])])
