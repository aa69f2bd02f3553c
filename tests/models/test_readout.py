"""The readout is verified, and a wrong one is refused: scales, caps, missing norms, stale states."""

from dataclasses import replace

import pytest
import tiny
import torch

import lenscope as ls
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
