"""The readout is verified, and a wrong one is refused: scales, caps, missing norms, stale states."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

import lenscope as ls
from lenscope.measures import definitions as measures
from lenscope.models.readout import Replayed, Traced, find_readout, trace, verify
from lenscope.models.residual_stream import observe


def miswired(change):
    """An attempt that traces the readout and then breaks it."""
    return lambda anatomy: change(trace(anatomy))


@pytest.mark.parametrize(
    ("architecture", "change"),
    [
        ("llama", lambda r: replace(r, chain=r.chain[1:])),  # no final norm
        ("llama", lambda r: replace(r, scale=1.01)),
        ("llama", lambda r: replace(r, softcap=30.0)),
        ("gemma2", lambda r: replace(r, softcap=None)),
        ("gemma2", lambda r: replace(r, softcap=5.5)),
        ("cohere", lambda r: replace(r, scale=None)),
        ("granite", lambda r: replace(r, scale=4.0)),  # a divisor taken for a factor
        ("opt", lambda r: replace(r, chain=(r.chain[0], r.chain[2]))),  # no project_out
    ],
)
def test_a_miswired_readout_is_refused(architecture, change):
    anatomy = observe(tiny.model(architecture))
    with pytest.raises(ls.LenscopeError, match=r"cannot be verified|does not run alone"):
        find_readout(anatomy, [miswired(change)])
    assert find_readout(anatomy).deviation <= 1e-4


def test_when_the_traced_readout_is_wrong_the_replayed_one_is_taken():
    anatomy = observe(tiny.model("llama"))
    broken = miswired(lambda r: replace(r, chain=r.chain[1:]))
    assert isinstance(find_readout(anatomy, [broken, Replayed]).readout, Replayed)


def test_a_cap_that_only_shows_on_loud_states_is_seen_by_the_replay():
    """A cap far above the probe's logits passes there; states that make single logits large tell."""
    model = tiny.model("gemma2")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.02)
    model.config.final_logit_softcapping = 1.0
    anatomy = observe(model)
    quiet = verify(Traced(anatomy.tail), anatomy)
    assert quiet.elsewhere is not None
    assert quiet.elsewhere > quiet.deviation
    assert find_readout(anatomy).readout.softcap == 1.0


@pytest.mark.parametrize(
    ("architecture", "scale", "softcap"),
    [("gemma2", None, 5.0), ("cohere", 0.0625, None), ("granite", 0.25, None), ("llama", None, None)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scales_and_caps_are_found_as_configured(architecture, scale, softcap, dtype):
    readout = trace(observe(tiny.model(architecture, dtype=dtype)))
    assert (readout.scale, readout.softcap) == (scale, softcap)


@pytest.mark.parametrize(
    "architecture", ["llama", "gpt2", "gemma2", "opt", "bloom", "granite", "mamba", "gemma3n_text"]
)
def test_float64_is_exact_and_half_precision_is_the_models_own(architecture):
    for dtype, most in ((torch.float64, 1e-12), (torch.bfloat16, 5e-2), (torch.float16, 5e-2)):
        lm = ls.LM(tiny.model(architecture, dtype=dtype), None, architecture)
        if lm.runner.anatomy.logits.dtype == torch.float32:
            most = 1e-6  # Mamba's forward casts its logits to float32
        assert lm.runner.verified.deviation <= most
        assert lm.runner.verified.elsewhere <= most
        ids = tiny.ids(lm.model, 1, 6)[0].tolist()
        states = lm.read(ids)
        with lm.edit(ls.Edit(2, 3, states[2, 3])):
            assert torch.equal(lm.read(ids).tensor, states.tensor)


def test_columns_of_the_vocabulary_join_to_the_whole():
    for architecture in ("llama", "gemma2", "gptj", "gemma3n_text"):  # plain, capped, with a bias, replayed
        lm = ls.LM(tiny.model(architecture), None, architecture)
        h = lm.runner.anatomy.states[1].flatten(0, 1)
        r = lm.runner.readout
        whole = r.columns(r.prepare(h), 0, lm.vocab_size)
        parts = torch.cat([r.columns(r.prepare(h), a, a + 64) for a in range(0, lm.vocab_size, 64)], 1)
        assert torch.allclose(parts[:, : lm.vocab_size], whole, atol=1e-5)
        ids = torch.arange(len(h)) * 7 % lm.vocab_size
        assert torch.allclose(r.tokens(r.prepare(h), ids), whole[torch.arange(len(h)), ids], atol=1e-5)


def test_weights_with_nan_are_named():
    model = tiny.model("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3, 4] = torch.nan
    with pytest.raises(
        ls.LenscopeError, match=r"broken: weights contain NaN or infinity, first in model\.layers\.2\.mlp\.up_proj"
    ):
        ls.LM(model, None, "broken")


def test_an_encoder_is_refused():
    config = tiny.config("bert")
    config.is_decoder = False
    from transformers import AutoModelForCausalLM

    with pytest.raises(ls.LenscopeError, match="not a causal language model"):
        ls.LM(AutoModelForCausalLM.from_config(config), None, "bert")


def test_logits_are_float32_or_wider():
    half = ls.LM(tiny.model("llama", torch.bfloat16), None, "half")
    assert half.unembed(half.read([20, 21])[-1, :]).dtype == torch.float32
    assert ls.Lens(half).logits(half.read([20, 21])[1, :], 1).dtype == torch.float32


def test_a_model_whose_head_or_forward_is_wrapped_is_refused_or_read_as_it_is():
    """A head without a weight of its own; a forward that does more than its modules."""

    def wrapped_head(built):
        built.lm_head = torch.nn.Sequential(built.lm_head, torch.nn.Tanh())

    def wrapped_forward(built):
        forward = built.forward

        def twice(*args, **kwargs):
            out = forward(*args, **kwargs)
            out.logits = 2 * out.logits
            return out

        built.forward = twice

    for change in (wrapped_head, wrapped_forward):
        built = tiny.model("llama")
        lm = ls.LM(built, None, "tiny")
        change(built)
        with torch.no_grad():
            own = built(torch.tensor([[20, 21]])).logits[0, -1]
        refused, found = "", None
        try:
            found = lm.unembed(lm.read([20, 21])[-1, -1])
        except ls.LenscopeError as error:
            refused = str(error)
        assert "since it was loaded" in refused or torch.allclose(found, own, atol=1e-5)


def test_a_cap_that_is_too_far_off_for_the_model_s_own_states_is_seen_on_others():
    """On what the model says of the probe the missing cap is within the tolerance; on louder states it is not."""
    model = tiny.model("gemma2")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.0005)
    model.config.final_logit_softcapping = 1.0
    anatomy = observe(model)
    uncapped = Traced(anatomy.tail)
    assert verify(uncapped, anatomy).deviation < 1e-4
    with pytest.raises(ls.LenscopeError, match="cannot be verified"):
        find_readout(anatomy, [lambda _: uncapped])


def test_a_hook_of_the_head_counts(lm):
    """A head that is more than its weights is not taken apart by them."""
    h = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    plain = lm.unembed(h)
    handle = lm.model.lm_head.register_forward_hook(lambda _m, _a, z: 2 * z)
    try:
        torch.testing.assert_close(lm.unembed(h), 2 * plain)
        entropy = ls.Lens(lm).trajectory([20, 21]).entropy
    finally:
        handle.remove()
    log_p = (2 * lm.unembed(lm.read([20, 21])[:, :])).log_softmax(-1)
    np.testing.assert_allclose(entropy, measures.entropy(log_p), atol=1e-5)
    torch.testing.assert_close(lm.unembed(h), plain)
