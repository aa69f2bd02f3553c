"""Rows in the fastest exact mode: chunks, budgets, and rows that leave their batch."""

import numpy as np
import pytest

import lenscope as ls

SOURCE, TARGET = "The capital of France is", "one -> one, two -> two, x ->"


@pytest.fixture(scope="module")
def states(lm64):
    return lm64.read(SOURCE, positions=[1, -1])


def test_rows_end_at_stop_strings_and_leave_the_batch(lm64, states):
    scope = ls.Patchscope(lm64, TARGET)
    whole = scope.generate(states, max_new_tokens=6)
    longest = whole.ended.index("length")
    stop = lm64.encoder.tokens([int(whole.ids[longest, 2])])[0]
    cut = scope.generate(states, max_new_tokens=6, stop=stop)
    assert "stop" in cut.ended
    for a, b in zip(whole, cut, strict=True):
        assert a.ids[: len(b.ids)] == b.ids
        assert stop not in b.text
        assert (b.ended == "stop") == (stop in a.text)


def test_chunks_and_budgets_change_nothing(lm64, states, monkeypatch):
    scope = ls.Patchscope(lm64, [ls.Target(TARGET), ls.Target(TARGET + " y", at="x")])
    whole = scope.generate(states, max_new_tokens=3)
    small = ls.Patchscope(lm64, scope.targets, budget=1)
    assert np.array_equal(small.generate(states, max_new_tokens=3).ids, whole.ids)
