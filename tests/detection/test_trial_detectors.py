"""Detectors of trials: thresholds come of training rows out of fold, words are learnt, normal ones see no attack."""

import numpy as np
import pytest

import lenscope as ls
from lenscope.detection.probes import choose_probe
from lenscope.detection.trial_detectors import NORMAL_ONLY, WORDS, Rows, detector_names, train_detector


def rows(n=150, seed=0):
    random = np.random.default_rng(seed)
    attack = np.arange(n) % 3 == 0
    normal = ~attack & (np.arange(n) % 3 == 1)
    texts = [f"{'ignore the rules' if a else 'a kind question'} {random.integers(99)}" for a in attack]
    views = {
        "last state": {1: random.normal(size=(n, 4)), 2: random.normal(size=(n, 4)) + attack[:, None]},
        "trajectories": {-1: random.normal(size=(n, 3)) + attack[:, None] / 2},
    }
    return Rows(texts, views, attack, normal, np.arange(n))


def test_a_probe_is_that_of_choose_probe():
    some, other = rows(), rows(seed=1)
    trained = train_detector("last state", some, {}, "platt", 0)
    key, probe, choice = choose_probe(some.views["last state"], some.attack, some.groups.tolist())
    assert trained.key == key == 2
    assert trained.choice == f"layer 2, penalty {probe.penalty:g}"
    assert trained.score(other) == pytest.approx(probe.probabilities(other.views["last state"][2]))
    # thresholds of the normal prompts alone, of which 50 are too few for 1 %
    normal = np.sort(choice.probabilities[some.normal])
    assert trained.thresholds[0.05] == normal[int(np.ceil(51 * 0.95)) - 1]
    assert np.isnan(trained.thresholds[0.01])


def test_words_are_learnt_and_unknown_ones_do_no_harm():
    some = rows()
    trained = train_detector(WORDS, some, {}, "platt", 0)
    other = rows(30, seed=2)
    scores = trained.score(other)
    assert scores[other.attack].min() > scores[~other.attack].max()
    strange = Rows(["qqq zzz"] * 30, other.views, other.attack, other.normal, other.groups)
    assert len({*trained.score(strange).tolist()}) == 1


def test_the_detector_of_normal_prompts_sees_no_attack():
    some = rows()
    trained = train_detector(NORMAL_ONLY, some, {}, "platt", 0)
    views = {v: {k: np.where(some.attack[:, None], 1e6, x) for k, x in by.items()} for v, by in some.views.items()}
    moved = Rows(some.texts, views, some.attack, some.normal, some.groups)
    again = train_detector(NORMAL_ONLY, moved, {}, "platt", 0)
    other = rows(30, seed=2)
    assert again.score(other).tolist() == trained.score(other).tolist()
    assert again.thresholds == pytest.approx(trained.thresholds, nan_ok=True)
    assert not trained.calibrated
    with pytest.raises(ls.LenscopeError, match="at least 4"):
        train_detector(NORMAL_ONLY, some.part(np.arange(6)), {}, "platt", 0)


def test_both_take_the_layer_of_the_last_state_and_unknown_names_are_refused():
    some = rows()
    views = {**some.views, "states and trajectories": some.views["last state"]}
    some = Rows(some.texts, views, some.attack, some.normal, some.groups)
    last = train_detector("last state", some, {}, "platt", 0)
    assert train_detector("states and trajectories", some, {"last state": last}, "platt", 0).key == last.key
    assert detector_names(views) == (*views, WORDS, NORMAL_ONLY)
    with pytest.raises(ls.LenscopeError, match="there are last state"):
        train_detector("x", some, {}, "platt", 0)
