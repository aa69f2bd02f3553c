"""Controls keep norms and addresses, and are scored as what they stand for."""

import numpy as np
import pytest
import torch

import lenscope as ls
from lenscope.errors import LenscopeError
from lenscope.patchscopes.controls import prompts_with_text, random_vectors, shuffled_sources
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.target_prompts import Target
from lenscope.patchscopes.with_controls import score_with_controls

TEXTS = ["one two three", "four five", "six seven eight nine", "ten"]


def test_random_vectors_keep_norms_and_addresses(lm64):
    states = lm64.read(TEXTS)
    made = random_vectors(states, seed=1)
    torch.testing.assert_close(made.tensor.norm(dim=-1), states.tensor.norm(dim=-1), rtol=1e-12, atol=1e-12)
    assert made.tensor.dtype == states.tensor.dtype
    assert (made.prompts, made.layers, made.positions) == (states.prompts, states.layers, states.positions)
    cosines = torch.nn.functional.cosine_similarity(made.tensor[:, :, 0], states.tensor[:, :, 0], dim=-1)
    assert cosines.abs().max() < 0.95
    assert abs(cosines.mean()) < 0.2
    assert torch.equal(made.tensor, random_vectors(states, seed=1).tensor)
    assert not torch.equal(made.tensor, random_vectors(states, seed=2).tensor)


def test_controls_are_scored_against_the_prompts_own_predictions(lm64):
    states = lm64.read(TEXTS, positions=-1)
    own = lm64.runner.own_logits(states[lm64.n_layers, -1]).log_softmax(-1)
    scope = Patchscope(lm64, Target("one x", at="x"))
    for made in (random_vectors(states), shuffled_sources(states), random_vectors(shuffled_sources(states))):
        grid = scope.predict(made, [1])
        for cell, row in enumerate(grid.source):
            place = int(row) // len(states.layers)
            expected = -own[place, int(grid.ids[cell, 0])]
            assert grid.measures["surprisal"][cell] == pytest.approx(float(expected), abs=1e-5)
            assert grid.measures["precision"][cell] == (own[place].argmax() == int(grid.ids[cell, 0]))
        here = slice(2 * len(states.layers), 3 * len(states.layers))
        alone = scope.predict(made.split()[2], [1])
        np.testing.assert_allclose(alone.measures["surprisal"], grid.measures["surprisal"][here], atol=1e-5)


def test_shuffled_sources_are_another_prompts(lm64):
    states = lm64.read(TEXTS, positions=[0, -1])
    made = shuffled_sources(states, ["a", "b", "a", "b"])
    for n in range(4):
        taken = [m for m in range(4) if torch.equal(made.tensor[n], states.tensor[m])]
        assert len(taken) == 1
        assert taken[0] % 2 != n % 2
    with pytest.raises(LenscopeError, match="read the same number of each"):
        shuffled_sources(lm64.read(TEXTS))
    with pytest.raises(LenscopeError, match="3 of 4 items"):
        shuffled_sources(states, ["a", "a", "a", "b"])
    with pytest.raises(LenscopeError, match="3 for 4 prompts"):
        shuffled_sources(states, ["a", "a", "b"])


def test_text_in_the_place_of_the_vector(lm64):
    scope = Patchscope(lm64, Target("one x two", at="x"))
    assert prompts_with_text(scope, ["three four", " five "]) == ["one three four two", "one five two"]
    several = Patchscope(lm64, Target("x x one x", at="x", every=True))
    assert prompts_with_text(several, ["two"]) == ["two one two"]
    with pytest.raises(LenscopeError, match="is empty"):
        prompts_with_text(scope, [" "])
    with pytest.raises(LenscopeError, match="2 targets"):
        prompts_with_text(Patchscope(lm64, [Target("one x", at="x"), Target("two x", at="x")]), ["a"])


def test_controls_of_ones_own_vectors_are_vectors(lm64):
    own = torch.randn(6, 32, dtype=torch.float64)
    made = random_vectors(own, seed=1)
    assert isinstance(made, torch.Tensor)
    assert torch.allclose(made.norm(dim=-1), own.norm(dim=-1))
    assert not torch.allclose(made, own)
    other = shuffled_sources(own, answers=["a", "a", "b", "b", "c", "c"])
    assert sorted(map(tuple, other.tolist())) == sorted(map(tuple, own.tolist()))
    assert not any(torch.equal(other[n], own[m]) for pair in ((0, 1), (2, 3), (4, 5)) for n in pair for m in pair)
    assert len(ls.Patchscope(lm64, "one x").predict(made, [1])) == 6
    of_array = random_vectors(own.numpy(), seed=1)
    assert torch.equal(of_array, made)
    assert sorted(map(tuple, shuffled_sources(own.numpy()).tolist())) == sorted(map(tuple, own.tolist()))
    for control in (random_vectors, shuffled_sources):
        with pytest.raises(ls.LenscopeError, match="states: str is no vector; give a tensor or an array"):
            control("a text")
    scores = score_with_controls(
        ls.Patchscope(lm64, "one x"), own.numpy(), ["a"] * 6, lambda text, n: float(n), [1], max_new_tokens=1
    )
    assert scores.scores["vector"].tolist() == [[float(n)] for n in range(6)]
