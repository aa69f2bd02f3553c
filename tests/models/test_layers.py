"""Layers as a person names them."""

import pytest
import torch

import lenscope as ls
from lenscope.models.layers import check_layers, layers_in_words, numbers_in_runs

PROMPT = "The capital of France is"


def test_layers_out_of_range(lm):
    with pytest.raises(
        ls.LenscopeError, match=r"layer 40: tiny-llama has layers 0–4 \(0 is the input of the first block, 4"
    ):
        lm.read(PROMPT, layers=40)
    with (
        pytest.raises(ls.LenscopeError, match="layer 5"),
        lm.edit(ls.Edit(5, 0, torch.zeros(32))),
    ):
        pass


@pytest.mark.parametrize(
    ("layers", "words"),
    [(slice(3, 1), "3:1"), (slice(7, None), "7:"), (slice(None, 0), ":0"), (slice(4, 2, 2), "4:2:2")],
)
def test_a_slice_without_layers_says_which_there_are_and_how_to_name_them(layers, words):
    with pytest.raises(ls.LenscopeError) as raised:
        check_layers(layers, 4, "tiny")
    assert str(raised.value) == (
        f"layers {words}: none of the layers 0–4 of tiny; give the first layer and the one behind the last, such as "
        "0:5 for all"
    )


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([5], "layer 5"),
        ([6, 20], "layers 6, 20"),
        (range(6, 21), "layers 6–20"),
        ((8, 9, 10, 13, 20), "layers 8–10, 13, 20"),
    ],
)
def test_layers_in_words_leave_out_what_is_not_there(layers, words):
    assert layers_in_words(layers) == words
    assert numbers_in_runs(layers) == words.partition(" ")[2]
