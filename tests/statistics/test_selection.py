import numpy as np
import pytest

from lenscope.errors import LenscopeError
from lenscope.statistics.selection import balanced, crossed, select


def test_the_cell_is_chosen_on_other_items() -> None:
    random = np.random.default_rng(0)
    scores = (random.random((40, 7)) < np.linspace(0.1, 0.7, 7)).astype(float)
    found = select(scores, folds=4, seed=3)
    assert sorted(np.bincount(found.fold)) == [10] * 4
    for f in range(4):
        means = scores[found.fold != f].mean(0)
        assert found.chosen[f] == means.argmax()
        mine = found.fold == f
        np.testing.assert_array_equal(found.items_selected[mine], scores[mine, found.chosen[f]])
    assert found.oracle.value == scores.max(1).mean()
    assert found.mean.value == pytest.approx(scores.mean())
    assert found.selected.value == found.items_selected.mean()
    other = random.random((40, 7))
    np.testing.assert_array_equal(found.at(other), [other[n, found.chosen[found.fold[n]]] for n in range(40)])


def test_noise_has_an_oracle_but_no_selected_cell() -> None:
    # the caution of the papers' best-of-grid scores: pure chance of 1/10 a cell, 100 cells
    scores = np.random.default_rng(1).random((400, 100)) < 0.1
    found = select(scores)
    assert found.oracle.value > 0.99
    assert 0.05 < found.selected.value < 0.15


def test_units_stay_together() -> None:
    units = np.repeat(list("abcdefgh"), 3)
    found = select(np.random.default_rng(0).random((24, 3)), units=units, folds=3)
    assert all(len(set(found.fold[units == u])) == 1 for u in units)
    assert set(found.fold) == {0, 1, 2}
    one = np.zeros((24, 3))
    one[:12] = 1
    # 8 units, all of a unit alike: wider than 24 items of their own
    wide, narrow = (select(one, units=u).mean for u in (units, None))
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)


def test_cells_that_were_not_run() -> None:
    scores = np.array([[1, np.nan], [np.nan, 0.5], [0, 0.5], [1, 0.25]])
    found = select(scores, seed=1)
    np.testing.assert_array_equal(found.items_oracle, [1, 0.5, 0.5, 1])
    np.testing.assert_array_equal(found.items_mean, [1, 0.5, 0.25, 0.625])
    nothing = np.array([[np.nan, 0.1]] * 4)
    assert select(nothing).chosen == [1, 1]


def test_wrong_scores() -> None:
    for bad in (np.zeros(3), np.zeros((0, 2)), np.full((2, 2), np.nan)):
        with pytest.raises(LenscopeError, match="items × cells"):
            select(bad)
    with pytest.raises(LenscopeError, match="2–3 folds"):
        select(np.zeros((3, 2)), folds=4)
    with pytest.raises(LenscopeError, match="one unit"):
        select(np.zeros((3, 2)), units=["a"] * 3)
    with pytest.raises(LenscopeError, match="one for each"):
        select(np.zeros((3, 2)), units=["a"] * 2)
    with pytest.raises(LenscopeError, match="same 3 items"):
        select(np.zeros((3, 2))).at(np.zeros((2, 2)))


def test_cells_are_selected_on_the_other_half():
    # the two units differ in which of the first two cells is right: what is chosen on one is wrong on the other
    units = ["u", "u", "v", "v"]
    scores = np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])
    assert crossed(scores, units).tolist() == [0, 0, 0, 0]
    assert crossed(scores, units, 0, scores[:, [1, 0, 2]]).tolist() == [1, 1, 1, 1]
    # noise: selected cells are no better than the mean one
    noise = np.random.default_rng(0).integers(0, 2, (400, 30)).astype(float)
    assert abs(crossed(noise, range(400)).mean() - noise.mean()) < 0.05
    noise[:, 7] = 1
    assert crossed(noise, range(400)).mean() == 1


def test_balanced_items_can_be_exchanged():
    assert balanced(["a", "a", "a", "b", "c"], 5) == [0, 1, 3, 4]
    assert balanced(["a", "b", "a", "b"], 3) == [0, 1]
    assert balanced(["a", "a"], 2) == []
    assert balanced(["a", "b", "c", "a"], 3) == [0, 1, 2]
    for seed in range(50):
        answers = np.random.default_rng(seed).integers(0, 4, 11).tolist()
        some = [answers[n] for n in balanced(answers, 7)]
        assert len(some) <= 7
        assert all(2 * some.count(a) <= len(some) for a in some)
