"""Texts that grow: states at all layers are those of one plain run, from a cache where that is exact, else anew."""

import pytest
import tiny
import torch
from plain_hooks import run_with_hooks

import lenscope as ls
from lenscope.engine import growing_texts
from lenscope.engine.growing_texts import GrowingTexts, cache_reach
from lenscope.models.deviations import deviation

EXACT = 1e-4


def grown(lm, rows, length, changes=None):
    """States (L + 1, B, T, D) of rows of ids that grow token by token from `length` on."""
    ids = torch.as_tensor(rows)
    texts = GrowingTexts(
        lm, [lm.prompt(r[:length]) for r in ids.tolist()], range(lm.n_layers + 1), ids.shape[1] - length, changes
    )
    parts = [texts.read_prompts(), *(texts.read(ids[:, n : n + 1]) for n in range(length, ids.shape[1]))]
    return torch.stack([torch.cat([p[n] for p in parts], 1) for n in range(lm.n_layers + 1)])


@pytest.mark.parametrize("cached", [True, False])
def test_states_are_those_of_one_plain_run(lm, cached, monkeypatch):
    if not cached:
        monkeypatch.setattr(growing_texts, "cache_reach", lambda *_: 0)
    ids = tiny.ids(lm.model, 2, 9)
    passes = []
    watch = lm.model.model.layers[0].register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    expected, _ = run_with_hooks(lm.model, ids)
    passes.clear()
    cache_reach(lm, 5, 9)
    passes.clear()
    assert deviation(grown(lm, ids, 5), expected) <= EXACT
    watch.remove()
    # the last token is read, and nothing goes on from it
    assert passes == ([5, 1, 1, 1, 1] if cached else [5, 6, 7, 8, 9])


@pytest.mark.parametrize("cached", [True, False])
def test_changes_are_made_at_every_position_on_the_way(lm, cached, monkeypatch):
    if not cached:
        monkeypatch.setattr(growing_texts, "cache_reach", lambda *_: 0)
    ids = tiny.ids(lm.model, 2, 9)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(0))

    def add(h, start):
        h = h.clone()
        h[1, max(0, 3 - start) :] += vector
        return h

    expected, _ = run_with_hooks(lm.model, ids, {2: lambda h: add(h, 0)})
    assert deviation(grown(lm, ids, 5, {2: add}), expected) <= EXACT
    assert deviation(grown(lm, ids, 5)[:, 1], expected[:, 1]) > EXACT


@pytest.mark.parametrize("architecture", ["gemma3_text", "gpt_oss", "qwen3_next"])
def test_lengths_that_a_configuration_names_are_crossed(architecture):
    """Windows are 32 tokens there, chunks 64."""
    lm = ls.LM(tiny.model(architecture), None, architecture)
    ids = tiny.ids(lm.model, 1, 40)
    assert any(lm.regimes.key(28, 40)) or architecture == "qwen3_next"
    expected, _ = run_with_hooks(lm.model, ids)
    assert deviation(grown(lm, ids, 28), expected) <= EXACT


def test_a_cache_that_does_not_give_the_models_numbers_is_not_used(monkeypatch):
    lm = ls.LM(tiny.model("llama"), None, "tiny")
    monkeypatch.setattr(growing_texts, "_cache_deviation", lambda *_: 1.0)
    assert cache_reach(lm, 5, 9) == 0
    # up to a length where it is not exact any more, and anew from there
    lm = ls.LM(tiny.model("gemma3_text"), None, "tiny")
    monkeypatch.setattr(growing_texts, "_cache_deviation", lambda lm, key, *_: 1.0 if "across" in key else 0.0)
    cut = lm.regimes.cuts[0]
    assert cache_reach(lm, 5, cut + 10) == cut
    ids = tiny.ids(lm.model, 1, 40)
    expected, _ = run_with_hooks(lm.model, ids)
    assert deviation(grown(lm, ids, 28), expected) <= EXACT


def test_what_a_cache_breaks_is_measured(monkeypatch):
    """A model whose cached passes are off is read anew; nothing says so but the measurement."""
    lm = ls.LM(tiny.model("llama"), None, "tiny")
    block = lm.model.model.layers[1]
    forward = block.forward

    def off(hidden_states, *args, **kwargs):
        out = forward(hidden_states, *args, **kwargs)
        return out * 1.01 if hidden_states.shape[1] == 1 and kwargs.get("past_key_values") is not None else out

    monkeypatch.setattr(block, "forward", off)
    assert cache_reach(lm, 5, 9) == 0


def test_states_that_are_not_finite_are_refused(lm):
    texts = GrowingTexts(lm, [lm.prompt([11, 12, 13])], [0], 2, {1: lambda h, start: h / 0})
    with pytest.raises(ls.LenscopeError, match=r"layer 1: .* NaN or infinite"):
        texts.read_prompts()


@pytest.mark.parametrize("fails_at", [0, 2, 4])
def test_a_read_that_is_interrupted_leaves_the_texts_as_they_were(lm, fails_at):
    """Blocks below had the token in their cache already."""
    ids = tiny.ids(lm.model, 1, 8)
    expected, _ = run_with_hooks(lm.model, ids)
    fails = True

    def interrupted(h, start):
        if fails and start == 6:
            raise KeyboardInterrupt
        return h

    texts = GrowingTexts(lm, [lm.prompt(ids[0, :5].tolist())], [2, lm.n_layers], 3, {fails_at: interrupted})
    texts.read_prompts()
    texts.read(ids[:, 5:6])
    with pytest.raises(KeyboardInterrupt):
        texts.read(ids[:, 6:7])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    fails = False
    for n in (6, 7):
        states = texts.read(ids[:, n : n + 1])
        assert deviation(states[2], expected[2, :, n : n + 1]) <= EXACT
        assert deviation(states[lm.n_layers], expected[lm.n_layers, :, n : n + 1]) <= EXACT
