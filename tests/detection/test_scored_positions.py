"""Positions are scored by the part around them, as if it were a prompt; the oddest span is where scores are highest."""

import dataclasses

import numpy as np
import pytest
import torch
from plain_hooks import run_with_hooks

import lenscope as ls
from lenscope.detection.detector import fit_detector
from lenscope.detection.prompt_features import pooled_measures
from lenscope.detection.scored_positions import (
    WINDOW,
    mean_states_of_parts,
    moving_mean,
    oddest_span,
    parts_of_positions,
    trajectories_of_parts,
)
from lenscope.tasks import builtin_questions as quizzes

REQUESTS = quizzes.REQUESTS.splitlines()


def test_parts_stand_around_each_position_but_the_first():
    assert parts_of_positions(6, 3) == [(1, 3), (1, 4), (2, 5), (3, 6), (4, 6)]
    assert parts_of_positions(4, 1) == [(1, 2), (2, 3), (3, 4)]
    assert parts_of_positions(1, 5) == [(0, 1)]


def test_features_of_parts_are_those_of_prompts():
    draw = np.random.default_rng(0)
    values, h = draw.normal(size=(4, 9)), torch.from_numpy(draw.normal(size=(2, 9, 5)))
    parts = [(1, 9), (3, 6), (8, 9), (0, 1)]
    rows = trajectories_of_parts(values, parts, pooled_measures)
    np.testing.assert_allclose(rows[0], pooled_measures(values))
    for row, part in zip(rows[1:], ([3, 4, 5], [8], [0]), strict=True):
        v = values[:, part]
        np.testing.assert_allclose(row, np.stack([v[:, -1], v.mean(1), v.max(1)], -1).reshape(-1))
    means = mean_states_of_parts(h, parts)
    for row, (start, stop) in zip(means, parts, strict=True):
        np.testing.assert_allclose(row, h[:, start:stop].mean(1).numpy(), atol=1e-12)


def test_moving_means_and_spans():
    values = np.array([np.nan, 1.0, 2.0, 6.0, 3.0])
    np.testing.assert_allclose(moving_mean(values, 3), [np.nan, 1.5, 3.0, 11 / 3, 4.5])
    flat = np.zeros(20)
    flat[7:11] = [1, 3, 4, 2.1]
    assert oddest_span(flat) == (8, 11)
    assert oddest_span(np.array([np.nan, 2.0, 2.0])) == (1, 3)
    assert oddest_span(np.array([5.0])) == (0, 1)


@pytest.fixture(scope="module")
def lens(lm):
    return ls.Lens(lm)


@pytest.mark.parametrize("methods", [["mahalanobis"], ["forest"]])
def test_a_position_has_the_score_of_the_part_around_it(lens, methods):
    lm = lens.lm
    detector = fit_detector(lens, REQUESTS[:30], methods=methods, layers=[1, 3])
    prompt = lm.prompt(REQUESTS[40])
    where = detector.where(REQUESTS[40])
    assert where.scores.shape == (len(prompt),)
    assert np.isnan(where.scores[0])
    assert where.score == pytest.approx(detector.score(REQUESTS[40]), abs=1e-9)
    assert where.oddest in prompt.text
    assert where.text[slice(*where.characters)] == where.oddest
    if methods == ["mahalanobis"]:
        h = run_with_hooks(lm.model, [prompt.ids])[0][list(detector.layers), 0]
        for t in (1, 5, len(prompt) - 1):
            part = h[:, max(1, t - WINDOW // 2) : t + WINDOW // 2 + 1].mean(1).reshape(1, -1).numpy()
            assert where.scores[t] == pytest.approx(float(detector.scores_of_features(part)[0]), rel=1e-5)
    # nothing but what stands in the part or before it decides about a position
    longer = detector.where(REQUESTS[40] + " and something else")
    same = len(prompt) - WINDOW // 2 - 2
    np.testing.assert_allclose(longer.scores[1:same], where.scores[1:same], rtol=1e-5)


def test_one_token_has_a_score_and_answers_have_none(lens):
    detector = fit_detector(lens, REQUESTS[:30], methods=["mahalanobis"], layers=[1])
    one = detector.where([20])
    assert one.span == (0, 1)
    assert one.score == pytest.approx(detector.score([20]))
    answers = fit_detector(lens, REQUESTS[:30], choices=["yes", "no"], methods=["mahalanobis"], layers=[2])
    watching = dataclasses.replace(answers, view="answers", choices=("yes", "no"), reference=np.eye(30, 1))
    with pytest.raises(ls.LenscopeError, match="watches answers"):
        watching.where("The cat")
