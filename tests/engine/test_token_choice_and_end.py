"""How the next token is chosen: drawn by a seed, from the model's distribution."""

import numpy as np
import pytest

import lenscope as ls
from lenscope.engine import chunked_runs as rows

SOURCE, TARGET = "The capital of France is", "one -> one, two -> two, x ->"


@pytest.fixture(scope="module")
def states(lm64):
    return lm64.read(SOURCE, positions=[1, -1])


def test_drawn_texts_depend_on_the_seed_alone(lm64, states, monkeypatch):
    scope = ls.Patchscope(lm64, TARGET)
    once = scope.generate(states, max_new_tokens=6, temperature=1.0, seed=3)
    monkeypatch.setattr(rows, "MOST_ROWS", 7)
    again = scope.generate(states, max_new_tokens=6, temperature=1.0, seed=3)
    assert np.array_equal(once.ids, again.ids)
    other = scope.generate(states, max_new_tokens=6, temperature=1.0, seed=4)
    assert not np.array_equal(once.ids, other.ids)
    cold = scope.generate(states, max_new_tokens=6, temperature=1e-4, seed=3)
    assert np.array_equal(cold.ids, scope.generate(states, max_new_tokens=6).ids)
    tight = scope.generate(states, max_new_tokens=6, temperature=1.0, top_p=1e-6)
    assert np.array_equal(tight.ids, cold.ids)


def test_draws_follow_the_distribution(lm64, states):
    scope = ls.Patchscope(lm64, TARGET)
    many = states[2, -1].expand(4000, -1)
    drawn = scope.generate(many, 1, max_new_tokens=1, temperature=1.0).ids[:, 0]
    expected = np.exp(scope.predict(states[2, -1], 1, top_k=3).log_probs[0])
    found = [np.mean(drawn == i) for i in scope.predict(states[2, -1], 1, top_k=3).ids[0]]
    assert np.abs(np.array(found) - expected).max() < 4 * np.sqrt(0.25 / 4000)
