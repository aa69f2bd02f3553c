"""Direct logit attribution: parts are what by hand is added, they sum to the model's own logit, heads to attention."""

import numpy as np
import pytest
import tiny
import torch

import lenscope as ls
from lenscope.lenses import attribute_logit
from lenscope.models import edits


def load(architecture, dtype=torch.float64, **how):
    return ls.LM(tiny.model(architecture, dtype), tiny.tokenizer(), architecture, **how)


def size(a):
    return abs(a.embedding) + np.abs(a.attention).sum() + np.abs(a.mlp).sum() + abs(a.bias)


def test_parts_are_what_by_hand_is_added():
    """GPT-2's final LayerNorm by its formula, on the outputs of its modules."""
    lm = load("gpt2")
    ids = tiny.ids(lm.model, 1, 8)[0].tolist()
    added = {"attn": [], "mlp": []}
    hooks = [
        getattr(block, name).register_forward_hook(
            lambda _, __, out, name=name: added[name].append((out[0] if isinstance(out, tuple) else out)[0, 5])
        )
        for block in lm.model.transformer.h
        for name in added
    ]
    states = lm.read(ids)
    [hook.remove() for hook in hooks]
    final, norm = states[lm.n_layers, 5], lm.model.transformer.ln_f
    scale = (final.var(unbiased=False) + norm.eps) ** -0.5
    row = lm.model.lm_head.weight[40] - lm.model.lm_head.weight[41]

    @torch.no_grad()
    def by_hand(part):
        return float(((part - part.mean()) * scale * norm.weight) @ row)

    a = attribute_logit(lm, ids, 40, 5, against=41)
    assert a.embedding == pytest.approx(by_hand(states[0, 5]), abs=1e-12)
    assert a.attention == pytest.approx([by_hand(part) for part in added["attn"]], abs=1e-12)
    assert a.mlp == pytest.approx([by_hand(part) for part in added["mlp"]], abs=1e-12)
    assert a.bias == pytest.approx(float(norm.bias @ row), abs=1e-12)
    logits = lm.unembed(final)
    assert a.logit == pytest.approx(float(logits[40] - logits[41]), abs=1e-12)


def test_heads_are_columns_of_the_projection():
    lm = load("gpt2")
    ids = tiny.ids(lm.model, 1, 8)[0].tolist()
    a = attribute_logit(lm, ids, 40, heads=True)
    assert a.heads.shape == (lm.n_layers, 4)
    assert a.heads.sum(1) + a.head_bias == pytest.approx(a.attention, abs=1e-12)
    assert np.abs(a.head_bias).max() > 0
    # a head whose columns are nothing adds nothing, and the others of its block what they did
    with torch.no_grad():
        lm.model.transformer.h[3].attn.c_proj.weight[16:24] = 0
    without = attribute_logit(load_again(lm), ids, 40, heads=True)
    assert without.heads[3, 2] == 0
    same = [0, 1, 3]
    ratio = without.heads[3, same] / a.heads[3, same]
    assert np.abs(ratio - 1).max() < 1, "only the norm's denominator and centring moved"
    assert np.array_equal(np.sign(without.heads[3, same]), np.sign(a.heads[3, same]))


def load_again(lm):
    return ls.LM(lm.model, tiny.tokenizer(), lm.name)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "granite", "cohere", "gptj", "beam"])
def test_parts_sum_to_the_models_logit(architecture):
    lm = load(architecture)
    ids = tiny.ids(lm.model, 1, 9, seed=1)[0].tolist()
    a = attribute_logit(lm, ids, 17, against=23)
    with torch.no_grad():
        own = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    assert abs(a.rounding) <= 1e-9 * size(a)
    # a few families give their logits in float32 whatever they reckon in
    assert a.capped == pytest.approx(float(own[17] - own[23]), rel=1e-9 if own.dtype == torch.float64 else 1e-6)
    if a.soft_cap is None:
        assert a.logit == pytest.approx(a.capped, rel=1e-9)
    else:
        one, other = (attribute_logit(lm, ids, t).logit for t in (17, 23))
        assert a.logit == pytest.approx(one - other, rel=1e-9)
        assert a.capped == pytest.approx(
            a.soft_cap * (np.tanh(one / a.soft_cap) - np.tanh(other / a.soft_cap)), rel=1e-6
        )


def test_in_16_bits_parts_sum_up_to_rounding():
    lm = load("llama", torch.bfloat16)
    a = attribute_logit(lm, "The cat sat on", " the", heads=True)
    assert abs(a.rounding) <= 0.02 * size(a)
    full = attribute_logit(load("llama"), "The cat sat on", " the")
    assert np.abs(a.mlp - full.mlp).max() <= 0.1 * np.abs(full.mlp).max()


def test_positions_are_indices_or_substrings():
    lm = load("llama")
    a, b = (
        attribute_logit(lm, "The cat sat", " the", at) for at in (" cat", lm.prompt("The cat sat").position(" cat"))
    )
    assert a.position == b.position
    assert a.logit == b.logit


def test_what_cannot_be_attributed_is_refused_in_one_line():
    lm = load("llama", torch.float32)
    for wrong, message in (
        ({"token": " the", "against": " the"}, "is the token itself"),
        ({"token": 10**6}, "has token ids 0–319"),
        ({"token": " the", "position": 99}, "position 99"),
    ):
        with pytest.raises(ls.LenscopeError, match=message):
            attribute_logit(lm, "The cat", **wrong)
    with lm.edit(ls.Edit(1, -1, torch.ones(32), edits.add)), pytest.raises(ls.LenscopeError, match="inside edit"):
        attribute_logit(lm, "The cat", " the")
    with pytest.raises(ls.LenscopeError, match="adds one thing"):
        attribute_logit(load("mamba", torch.float32), "The cat", " the")


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("gemma2", "a norm is behind it"),
        ("jamba", "no pattern of attention each|no projection"),
        ("falcon_h1", "several"),
    ],
)
def test_where_heads_cannot_be_read_sublayers_can(architecture, reason):
    lm = load(architecture, torch.float32)
    assert abs(attribute_logit(lm, "The cat", " the").rounding) < 1e-3
    with pytest.raises(ls.LenscopeError, match=reason) as error:
        attribute_logit(lm, "The cat", " the", heads=True)
    assert "\n" not in str(error.value)
