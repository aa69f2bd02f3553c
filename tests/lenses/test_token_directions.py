"""Directions of tokens: how a logit changes along any vector, the norm's denominator held, is the product with them."""

import affine_lens
import pytest
import tiny
import torch

import lenscope as ls
from lenscope.lenses.token_directions import TokenDirections
from lenscope.mappings.mapping import Affine, LowRank, identity
from lenscope.models.same_model import model_identity

TOKENS = [5, 77, 300]
# model type → whether its final norm takes off the mean
NORMS = {"llama": False, "gemma2": False, "granite": False, "gpt2": True, "gpt_neox": True, "cohere": True, "opt": True}


def held_logits(lm, h, centred):
    """(N, V): logits before scale and cap, less what the zero state has, times the norm's denominator at h."""
    readout = lm.runner.readout

    def before(h):
        z = lm.unembed(h)
        z = z if readout.softcap is None else readout.softcap * torch.atanh(z / readout.softcap)
        return z if readout.scale is None else z / readout.scale

    c = h - h.mean(-1, keepdim=True) if centred else h
    return (before(h) - before(torch.zeros_like(h[:1]))) * c.square().mean(-1, keepdim=True).sqrt()


@pytest.mark.parametrize("model_type", NORMS)
def test_a_direction_is_the_change_of_the_logit_with_the_denominator_held(model_type):
    lm = ls.LM(tiny.model(model_type, dtype=torch.float64), tiny.tokenizer(), model_type)
    for f in (None, affine_lens.affine(lm)):
        lens = ls.Lens(lm, f)
        directions = lens.direction(TOKENS, 2)
        draw = torch.Generator().manual_seed(3)
        h, v = (2 * torch.randn(lm.hidden_size, generator=draw, dtype=torch.float64) for _ in range(2))
        ahead, behind = (held_logits(lm, lens.map((h + sign * v)[None], 2), NORMS[model_type])[0] for sign in (1, -1))
        # linear but for the small number that norms add, and computed in float32 by some of them
        assert torch.allclose(directions @ v, (ahead - behind)[TOKENS] / 2, rtol=1e-4, atol=2e-4)
        assert directions.abs().max() > 0.1


def test_one_token_several_texts_and_kinds_of_maps(lm64):
    lens = ls.Lens(lm64, affine_lens.affine(lm64))
    several = lens.direction(["a", "b", 7], 1)
    assert several.shape == (3, 32)
    assert several.dtype == torch.float64
    assert torch.equal(lens.direction("a", 1), several[0])
    assert lens.direction(7, 1).shape == (32,)
    rows = ls.Lens(lm64).direction(["a", "b", 7], 4)
    a = lens.f.weights[1, 4][0].double()
    assert torch.allclose(several, rows @ a, atol=1e-12)
    assert torch.equal(lens.direction([7], 4), ls.Lens(lm64).direction([7], 4))
    assert torch.equal(ls.Lens(lm64, identity).direction(7, 2), ls.Lens(lm64).direction(7, 2))
    u, v = (torch.randn(32, 2, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    low = LowRank({(1, 4): (u, v)}, model_identity(lm64), model_identity(lm64))
    whole = torch.eye(32, dtype=torch.float64) + u.double() @ v.double().T
    assert torch.allclose(ls.Lens(lm64, low).direction(["a", "b", 7], 1), rows @ whole, atol=1e-12)


def test_unit_directions_are_those_of_rows_less_the_mean_row(lm64):
    directions = TokenDirections(lm64, affine_lens.affine(lm64), "tuned")
    every = torch.arange(lm64.vocab_size)
    rows = directions.of(every, 2)
    centred = rows - rows.mean(0)
    expected = centred / centred.norm(dim=-1, keepdim=True)
    assert torch.allclose(directions.unit(every, 2), expected, atol=1e-10)


def test_what_has_no_directions_is_refused_in_one_line(lm64):
    missing = {(n, 4): (torch.eye(32), torch.zeros(32)) for n in (1, 2, 3)}
    jacobian = Affine(missing, model_identity(lm64), model_identity(lm64), {"lens": "Jacobian lens"})
    for call, message in (
        (lambda: ls.Lens(lm64, lambda h: 2 * h, name="twice").direction("a", 1), "twice: a function has no directions"),
        (
            lambda: ls.Lens(lm64, jacobian).direction("a", 0),
            "layer 0: Jacobian lens has maps for the layers 1, 2, 3, 4",
        ),
        (lambda: ls.Lens(lm64).direction("a", 9), "layer 9: tiny-llama has layers 0–4"),
        (lambda: ls.Lens(lm64).direction([], 1), "tokens: the list is empty"),
        (lambda: ls.Lens(lm64).direction("qzx", 1), "tokens"),
        (lambda: ls.Lens(lm64).direction(999, 1), "token 999"),
        (lambda: ls.Lens(lm64).direction(None, 1), "token"),
    ):
        with pytest.raises(ls.LenscopeError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)
