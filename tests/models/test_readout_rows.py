"""Rows of readouts: a row times a state, over the norm's denominator, is the token's logit but for a constant."""

import pytest
import tiny
import torch

import lenscope as ls
from lenscope.models.readout_rows import ReadoutRows

# model type → whether its final norm takes off the mean
NORMS = {
    "llama": False,
    "gemma2": False,  # weight 1 + w, soft cap
    "granite": False,  # divides its logits
    "gpt2": True,
    "gpt_neox": True,
    "cohere": True,  # no bias, a multiplier
    "phi": True,  # a bias of the head
    "opt": True,  # a projection behind the norm
}


def before_scale_and_cap(lm, h):
    """Logits (N, V) of last states, without the scale and the soft cap that may follow the head."""
    readout, z = lm.runner.readout, lm.unembed(h)
    if readout.softcap is not None:
        z = readout.softcap * torch.atanh(z / readout.softcap)
    return z if readout.scale is None else z / readout.scale


def with_denominator(lm, h, centred):
    """(N, V): what of the logits depends on the state, times the norm's denominator: linear in h."""
    c = h - h.mean(-1, keepdim=True) if centred else h
    constant = before_scale_and_cap(lm, torch.zeros_like(h[:1]))
    return (before_scale_and_cap(lm, h) - constant) * c.square().mean(-1, keepdim=True).sqrt()


@pytest.mark.parametrize("model_type", NORMS)
def test_a_row_times_a_state_over_the_denominator_is_the_logit(model_type):
    lm = ls.LM(tiny.model(model_type, dtype=torch.float64), tiny.tokenizer(), model_type)
    ids = torch.tensor([0, 7, 100, 300])
    rows = ReadoutRows(lm).rows(ids)
    assert rows.shape == (4, lm.hidden_size)
    assert rows.dtype == torch.float64
    h = 3 * torch.randn(6, lm.hidden_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    # some norms compute in float32, whatever the model's dtype, and add a small number to the mean square
    assert torch.allclose(h @ rows.T, with_denominator(lm, h, NORMS[model_type])[:, ids], rtol=1e-4, atol=1e-4)
    assert torch.allclose(ReadoutRows(lm).mean_row, ReadoutRows(lm).rows(torch.arange(lm.vocab_size)).mean(0))


def test_16_bits_have_rows_in_float32():
    wide = ReadoutRows(ls.LM(tiny.model("llama"), tiny.tokenizer(), "tiny")).rows(torch.tensor([5, 9]))
    rows = ReadoutRows(ls.LM(tiny.model("llama", dtype=torch.bfloat16), tiny.tokenizer(), "tiny")).rows(
        torch.tensor([5, 9])
    )
    assert rows.dtype == torch.float32
    assert torch.allclose(rows, wide, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("model_type", ["bert", "gemma3n_text"])
def test_a_readout_of_another_kind_is_refused(model_type):
    lm = ls.LM(tiny.model(model_type), tiny.tokenizer(), model_type)
    with pytest.raises(ls.LenscopeError, match="its tokens have no rows") as raised:
        ReadoutRows(lm)
    assert "\n" not in str(raised.value)
