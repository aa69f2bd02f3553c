"""Layers as a person names them."""

import pytest
import torch

import lenscope as ls

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
