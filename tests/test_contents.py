"""Results as values: equal by what they hold, shown in one short line."""

import copy

import numpy as np
import pytest
from every_result import every_result

import lenscope as ls
from lenscope import contents


def test_what_holds_tensors_shows_in_one_short_line(lm):
    from lenscope.models.batches import pad

    states = lm.read(["The cat\nsat", "x"])
    edit = ls.Edit(1, -1, states.tensor[0, 1, 0])
    batch = next(iter(ls.Corpus.open(lm, ["The cat sat on the mat. " * 8], length=16).batches(rows=2)))
    for value in (
        states,
        edit,
        batch,
        pad([lm.prompt("x")], "right", lm.device),
        lm.runner.anatomy,
        lm.prompt("x\n" * 20),
    ):
        assert "tensor([" not in repr(value)
        assert len(repr(value)) < 250
        assert repr(value).isprintable()


@pytest.fixture
def made():
    return every_result()


def test_results_that_differ_are_not_equal(made):
    one = made["trajectory"]
    other = copy.deepcopy(one)
    assert one == other
    other.kl[0, 0] += 1
    assert one != other
    assert one != made["predicted"]
    assert contents.same(float("nan"), float("nan"))
    assert not contents.same(np.zeros(2), np.zeros(3))
