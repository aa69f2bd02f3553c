"""How a model is run: what a run refuses."""

import pytest
import tiny
import torch

import lenscope as ls

PROMPT = "The capital of France is"


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_states_that_are_not_finite_are_refused_whichever_way(value):
    built = tiny.model("llama")
    lm = ls.LM(built, None, "tiny")

    def spoil(_module, _args, out):
        out = out.clone()
        out[..., 1, 2] = value
        return out

    handle = built.model.layers[1].register_forward_hook(spoil)
    with pytest.raises(ls.LenscopeError, match="layer 2: tiny has states that are NaN or infinite"):
        lm.read([20, 21, 22])
    handle.remove()
    lm.read([20, 21, 22])


@pytest.mark.parametrize("part", ["transformer.h.1", "transformer.h.2.mlp.dropout", "transformer.drop"])
def test_a_part_in_training_mode_is_refused(part):
    """Its dropout draws at random, whatever mode the model as a whole is in."""
    built = tiny.model("gpt2")
    lm = ls.LM(built, None, "tiny")
    expected = lm.read([20, 21]).tensor
    built.get_submodule(part).train()
    for call in (lambda: lm.read([20, 21]), lambda: lm.generate([20, 21], 2), lambda: ls.Lens(lm).trajectory([20, 21])):
        with pytest.raises(ls.LenscopeError, match=r"training mode.*call model\.eval\(\)"):
            call()
    built.eval()
    assert torch.equal(lm.read([20, 21]).tensor, expected)


def test_a_bare_call_inside_an_edit_is_refused(lm):
    with (
        pytest.raises(ls.LenscopeError, match="a bare call has no positions"),
        lm.edit(ls.Edit(1, 0, torch.zeros(32))),
    ):
        lm.model(torch.tensor([[5, 6]]))


def test_training_mode_is_refused(lm):
    lm.model.train()
    try:
        with pytest.raises(ls.LenscopeError, match=r"call model\.eval\(\)"):
            lm.read(PROMPT)
    finally:
        lm.model.eval()
