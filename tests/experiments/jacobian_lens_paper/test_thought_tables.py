"""Tables of the scores: a layer is chosen on other prompts, differences are paired, sets are joined."""

from dataclasses import replace

import numpy as np
import pytest
from thoughts_by_hand import scores_of

from lenscope.experiments.jacobian_lens_paper.thought_scores import KS
from lenscope.experiments.jacobian_lens_paper.thought_tables import (
    ALL,
    at_one_layer,
    graded_at_one_layer,
    pooled_thoughts,
    thought_layer_rows,
    thought_tables,
)
from lenscope.statistics.intervals import Estimate

LAST = len(KS) - 1


def test_the_layer_never_sees_the_prompt():
    """Each prompt's word is read at a layer of its own: the best of all layers is 1, and what others choose is 0."""
    prompts = 12
    rank = np.full((1, prompts, prompts, 1), 99)
    rank[0, range(prompts), range(prompts)] = 0
    scores = scores_of(rank)
    assert scores.best()[0, :, LAST].tolist() == [1] * prompts
    assert at_one_layer(scores, 0, LAST, 0).tolist() == [0] * prompts
    scores = replace(scores, graded=scores.hits()[..., LAST])
    assert graded_at_one_layer(scores, 0, 0).tolist() == [0] * prompts


def test_a_layer_that_is_good_for_all_is_chosen():
    rank = np.full((1, 8, 5, 1), 99)
    rank[0, :, 3] = 2
    random_hits = np.zeros((1, 8, 5, len(KS)))
    random_hits[0, :, 3] = 0.25
    scores = scores_of(rank, random_hits)
    assert at_one_layer(scores, 0, LAST, 0).tolist() == [1] * 8
    assert at_one_layer(scores, 0, LAST, 0, less_random=True).tolist() == [0.75] * 8
    assert at_one_layer(scores, 0, 0, 0).tolist() == [0] * 8


def test_layers_with_as_many_hits_are_told_apart_by_the_graded_score():
    scores = scores_of(np.full((1, 6, 4, 1), 99))
    graded = np.zeros((1, 6, 4))
    graded[0, :, 2] = 0.9
    specific = np.full((1, 6, 4), 0.1)
    specific[0, :, 2] = 0.7
    random_hits = scores.random_hits.copy()
    random_hits[0, :, 2] = 0.5
    scores = replace(scores, graded=graded, specific=specific, random_hits=random_hits)
    assert at_one_layer(scores, 0, LAST, 0, less_random=True).tolist() == [-0.5] * 6
    assert graded_at_one_layer(scores, 0, 0, specific=True) == pytest.approx(0.7)


def test_sets_are_joined_with_their_words():
    few, many = scores_of([[[[0]], [[99]]]]), scores_of([[[[0, 0, 99]]]])
    both = pooled_thoughts([few, many])
    assert both.best()[0, :, LAST].tolist() == pytest.approx([1, 0, 2 / 3])
    assert both.rank[0, 0, 0].tolist() == [0, -1, -1]


def test_the_tables_by_hand():
    random = np.random.default_rng(0)
    rank = random.integers(0, 15, (2, 20, 3, 2))
    random_hits = random.random((2, 20, 3, len(KS)))
    one = replace(
        scores_of(rank, random_hits), graded=random.random((2, 20, 3)), specific=random.random((2, 20, 3)),
        other_best=random.random((2, 20, len(KS))),
    )  # fmt: skip
    tables = thought_tables({"a": one, ALL: one}, ["x", "y"], (4, 5, 6), 0)
    assert list(tables) == [
        *(f"pass@{k}" for k in KS), "graded", *(f"differences of pass@{k}" for k in KS), "differences of graded",
    ]  # fmt: skip
    row = tables["pass@10"][1]
    assert (row["set"], row["lens"], row["prompts"]) == ("a", "y", 20)
    best = (rank[1].min(1) < 10).mean(-1)
    assert row["published"].value == pytest.approx(best.mean())
    assert row["random words"].value == pytest.approx(random_hits[1, :, :, LAST].max(1).mean())
    assert row["minus random words"].value == pytest.approx(row["published"].value - row["random words"].value)
    assert row["minus other prompts"].value == pytest.approx((best - one.other_best[1, :, LAST]).mean())
    (apart, _) = tables["differences of pass@10"]
    assert apart["lenses"] == "y - x"
    first = tables["pass@10"][0]
    for name in ("published", "minus random words", "one layer", "one layer minus random words"):
        assert apart[name].value == pytest.approx(row[name].value - first[name].value)
    graded = tables["graded"][0]
    assert graded["best layer"] == 4 + one.graded[0].mean(0).argmax()
    at = rank[0, :, one.graded[0].mean(0).argmax()]
    assert graded["typical rank"] == pytest.approx(np.exp(np.log(at + 1).mean()))
    kl = [[Estimate(1.0 * n, 0, 2) for n in range(3)]] * 2
    rows = thought_layer_rows(one, ["x", "y"], (4, 5, 6), kl, 0)
    assert [r["layer"] for r in rows] == [4, 5, 6]
    assert rows[2]["y: KL"] == kl[1][2]
    assert rows[1]["x: above random words"].value == pytest.approx(one.graded[0, :, 1].mean())
