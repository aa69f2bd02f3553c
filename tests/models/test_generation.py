"""Greedy continuations: what is edited while tokens are written, and how far the context reaches."""

import pytest
import tiny
import torch

import lenscope as ls
from lenscope.models import generation
from lenscope.models.edits import add
from lenscope.models.generation import GenerationCheck

PROMPT = "The capital of France is"


@pytest.mark.parametrize("layer", [0, 2, 4])
@pytest.mark.parametrize("cached", [True, False])
def test_a_one_token_prompt_is_edited_at_its_own_pass_alone(lm64, layer, cached, monkeypatch):
    """A pass over one new token is as long as the prompt, and is not the prompt: `length >= 1` would edit it too."""
    v = torch.randn(32, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    if not cached:
        monkeypatch.setitem(lm64.runner.measured.values, ("generation",), GenerationCheck(1.0, 1.0))
    with lm64.edit(ls.Edit(layer, 0, v, add)):
        written = lm64.generate([20], 6).ids
        twice = [c.ids for c in lm64.generate([[20], [20], [21]], 6)]

    def change(h):
        h = h.clone()
        h[:, 0] += v
        return h

    blocks, expected = lm64.model.model.layers, []
    if layer == 0:
        handle = blocks[0].register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    else:
        handle = blocks[layer - 1].register_forward_hook(lambda _m, _a, out: change(out))
    with torch.no_grad():
        while len(expected) < 6:
            expected.append(int(lm64.model(torch.tensor([[20, *expected]])).logits[0, -1].argmax()))
    handle.remove()
    assert list(written) == expected
    assert twice[0] == twice[1] == written
    assert twice[2] != written


def test_the_context_may_be_filled_to_its_last_token(lm64):
    ids = [20] * (lm64.context - 3)
    assert len(lm64.generate(ids, 3).ids) <= 3
    with pytest.raises(ls.LenscopeError, match="reads at most"):
        lm64.generate(ids, 4)
    assert len(lm64.read([20] * lm64.context).prompts[0]) == lm64.context


def test_generation_is_greedy_whatever_the_checkpoint_asks_for(lm64):
    expected = lm64.generate(PROMPT, 12).ids
    kept = lm64.model.generation_config
    from transformers import GenerationConfig

    sampling = GenerationConfig(
        do_sample=True, temperature=5.0, top_k=3, repetition_penalty=3.0, no_repeat_ngram_size=1, min_new_tokens=2
    )
    lm64.model.generation_config = sampling
    try:
        assert lm64.generate(PROMPT, 12).ids == expected
        assert lm64.model.generation_config is sampling
    finally:
        lm64.model.generation_config = kept


def test_generation_stops_at_the_end_token_and_at_the_context(lm64):
    ids = lm64.generate(PROMPT, 8).ids
    lm64.model.generation_config.eos_token_id, kept = ids[3], lm64.model.generation_config.eos_token_id
    try:
        stopped = lm64.generate([PROMPT, PROMPT], 8)
    finally:
        lm64.model.generation_config.eos_token_id = kept
    first = ids.index(ids[3]) + 1
    assert all(c.ids == ids[:first] for c in stopped)
    with pytest.raises(ls.LenscopeError, match="reads at most 64"):
        lm64.generate(PROMPT, 60)
    with pytest.raises(ls.LenscopeError, match="max_new_tokens 0"):
        lm64.generate(PROMPT, 0)


def test_a_one_token_prompt_can_be_patched_while_generating(lm64):
    """A guard that skips passes of one token (decode steps) must not skip a prompt of one token."""
    other = lm64.read([40])[2, -1]
    plain = lm64.read([20])
    with lm64.edit(ls.Edit(2, 0, other)):
        first = lm64.generate([20], 3).ids
        logits = lm64.unembed(lm64.read([20])[lm64.n_layers, -1])
    assert first[0] == int(logits.argmax())
    assert not torch.allclose(logits, lm64.unembed(plain[lm64.n_layers, -1]))


def test_the_first_generation_may_happen_inside_an_edit():
    """The measurement of cache and padding runs then: the edit must not reach it."""
    fresh = ls.LM(tiny.model("llama", dtype=torch.float64), tiny.tokenizer(), "fresh")
    with fresh.edit(ls.Edit(2, "France", torch.ones(32, dtype=torch.float64))):
        inside = fresh.generate([PROMPT, "To France we go"], 4)
    assert generation.check_generation(fresh.runner).cached < 1e-9
    with fresh.edit(ls.Edit(2, "France", torch.ones(32, dtype=torch.float64))):
        assert [c.ids for c in fresh.generate([PROMPT, "To France we go"], 4)] == [c.ids for c in inside]


def test_where_the_cache_is_wrong_generation_recomputes(lm64, monkeypatch):
    from lenscope.models.generation import GenerationCheck

    expected = [c.ids for c in lm64.generate([PROMPT, "x"], 5)]
    monkeypatch.setitem(lm64.runner.measured.values, ("generation",), GenerationCheck(1.0, 1.0))
    assert [c.ids for c in lm64.generate([PROMPT, "x"], 5)] == expected
