"""Probes against scikit-learn's own pipeline, and on features whose answer is known."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lenscope import LenscopeError
from lenscope.statistics import probes

RANDOM = np.random.default_rng(0)
# 4 labels, 6 groups of each, 3 items in a group
GROUPS = np.repeat(np.arange(24), 3)
LABELS = GROUPS % 4


def noisy(width, loud=0.7):
    middle = np.random.default_rng(1).normal(size=(4, width))
    return loud * middle[LABELS] + np.random.default_rng(2).normal(size=(len(LABELS), width))


@pytest.mark.parametrize("width", [8, 120])
def test_it_is_standardised_logistic_regression(monkeypatch, width):
    monkeypatch.setattr(probes, "STRENGTHS", (1e-2,))
    x = noisy(width, 0.3)
    made = probes.probe(x, LABELS.tolist(), GROUPS.tolist(), folds=3, seed=5)
    fold = probes.deal(LABELS, GROUPS, 3, 5)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, tol=1e-10, max_iter=5000))
    said = cross_val_predict(theirs, x, LABELS, cv=PredefinedSplit(fold))
    assert 0.3 < (said == LABELS).mean() < 1
    assert made.correct.tolist() == (said == LABELS).tolist()
    assert made.accuracy.value == pytest.approx((said == LABELS).mean())


def test_groups_stay_whole_and_labels_are_spread():
    fold = probes.deal(LABELS, GROUPS, 3, 0)
    for group in range(24):
        assert len(set(fold[group == GROUPS])) == 1
    for label in range(4):
        assert [sum(fold[label == LABELS] == f) for f in range(3)] == [6, 6, 6]
    assert not np.array_equal(fold, probes.deal(LABELS, GROUPS, 3, 1))


def test_what_is_written_in_the_features_is_read():
    made = probes.probe(np.eye(4)[LABELS], LABELS.tolist(), GROUPS.tolist())
    assert made.correct.all()
    assert made.heard.all()
    # groups that exchanged their labels have nothing in common: right where the labels happen to be the same
    assert made.shuffled.mean() < 0.6


def test_a_probe_that_knows_the_group_alone_knows_nothing():
    x = np.eye(24)[GROUPS] + 0.01 * RANDOM.normal(size=(72, 24))
    held_out = probes.probe(x, LABELS.tolist(), GROUPS.tolist())
    leaking = probes.probe(x, LABELS.tolist(), list(range(72)))
    assert held_out.correct.mean() < 0.5
    assert leaking.correct.mean() > 0.9


def test_labels_of_one_group_each_cannot_be_learned():
    made = probes.probe(noisy(8), [f"label {g}" for g in GROUPS], GROUPS.tolist())
    assert not made.heard.any()
    assert not made.correct.any()
    assert not made.majority.any()


def test_the_majority_is_that_of_the_other_folds():
    labels = np.where(GROUPS < 16, "a", "b")
    made = probes.probe(RANDOM.normal(size=(72, 5)), labels.tolist(), GROUPS.tolist())
    assert made.majority.tolist() == (labels == "a").tolist()


def test_the_penalty_is_chosen_without_the_fold_it_is_tested_on():
    """Features of the tested fold that would need another penalty do not change the choice."""
    x, labels, groups = noisy(40, 0.3)[:36], LABELS[:36].tolist(), GROUPS[:36].tolist()
    fold = probes.deal(LABELS[:36], GROUPS[:36], 2, 0)
    made = probes.probe(x, labels, groups, 2)
    other = np.where(fold[:, None] == 0, 100 * RANDOM.normal(size=x.shape), x)
    assert probes.probe(other, labels, groups, 2).strengths[0] == made.strengths[0]
    # the other fold, which is trained on them, has another choice
    assert probes.probe(other, labels, groups, 2).strengths[1] != made.strengths[1]


def test_a_fold_with_one_label_says_that_label():
    made = probes.probe(RANDOM.normal(size=(4, 3)), ["a", "a", "a", "b"], [0, 1, 2, 3], folds=4)
    assert made.correct[:3].all() or made.correct.sum() >= 1
    assert not made.correct[3]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((np.zeros((3, 2)), [0, 1], [0, 1, 2]), "2 labels"),
        ((np.full((2, 2), np.nan), [0, 1], [0, 1]), "finite"),
        ((np.zeros((3, 2)), [0, 1, 0], [0, 0, 1]), "there are 2 groups, and a group is never split; give 2–2 folds"),
    ],
)
def test_what_cannot_be_probed_is_refused(arguments, told):
    with pytest.raises(LenscopeError, match=told):
        probes.probe(*arguments)
