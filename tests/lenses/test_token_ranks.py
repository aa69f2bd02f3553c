"""Ranks of chosen tokens: what a trajectory gives for each of them alone."""

import numpy as np
import pytest

import lenscope as ls

PROMPT = "The capital of France is"


@pytest.mark.parametrize("f", [None, lambda h, layer: h + 0.1 * layer])
def test_each_token_is_what_a_trajectory_gives_for_it_alone(lm, f):
    lens = ls.Lens(lm, f)
    for layers, positions in ((None, None), ([0, 3], ["France", -1])):
        ranks = lens.ranks(PROMPT, ["a", 30, 200], layers, positions)
        assert ranks.rank.shape == ranks.log_prob.shape == (3, len(ranks.layers), len(ranks.positions))
        for n, token in enumerate(ranks.ids):
            alone = lens.trajectory(PROMPT, layers, positions, target=token)
            assert (ranks.layers, ranks.positions) == (alone.layers, alone.positions)
            assert np.array_equal(ranks.rank[n], alone.rank)
            assert np.allclose(ranks.log_prob[n], -alone.cross_entropy, atol=1e-5)
            assert ranks.vocabulary[token] == alone.vocabulary[token]


def test_mistakes_are_said_in_one_line(lm):
    lens = ls.Lens(lm)
    for tokens, message in (([], "tokens: the list is empty"), (["qzx"], "tokens"), ([99999], "token 99999")):
        with pytest.raises(ls.LenscopeError, match=message):
            lens.ranks(PROMPT, tokens)
    with pytest.raises(ls.LenscopeError, match="layer 9"):
        lens.ranks(PROMPT, ["a"], [9])


def test_a_page_gets_numbers_in_arrays(lm):
    ranks = ls.Lens(lm).ranks(PROMPT, ["a", 30])
    data = ranks.page_data()
    assert (data["kind"], data["ids"], data["layers"]) == ("ranks", list(ranks.ids), list(ranks.layers))
    assert data["positions"] == list(ranks.positions)
    assert data["vocabulary"] == {
        "ids": sorted(ranks.ids),
        "texts": [ranks.vocabulary[i] for i in sorted(ranks.ids)],
    }
    index = data["arrays"]["index"]
    assert {name: (a["dtype"], a["shape"]) for name, a in index.items()} == {
        "rank": ("int32", list(ranks.rank.shape)),
        "log_prob": ("float32", list(ranks.rank.shape)),
    }
