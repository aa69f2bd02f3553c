"""Prompts that share a prefix have the states that each has alone, and what they share is read and measured once."""

import numpy as np
import pytest
import tiny
import torch

import lenscope as ls
from lenscope.engine import shared_prefix_states
from lenscope.engine.shared_prefix_states import (
    FEWEST_SAVED_TOKENS,
    ReadPrefixes,
    groups_that_share,
    is_sharing_exact,
    read_sharing_prefix,
)
from lenscope.errors import LenscopeError

# beyond the tiny models' windows of 32 tokens, which the rests cross
LONG = 37


def alike(lm, common, ends=(6, 9, 1, 4, 5), alone=7):
    """Prompts that begin with the same `common` tokens, and one that begins otherwise."""
    ids = tiny.ids(lm.model, len(ends) + 1, common + max(ends)).tolist()
    rows = [ids[0][:common] + row[common : common + n] for row, n in zip(ids, ends, strict=False)]
    return [lm.prompt(row) for row in [*rows, ids[-1][:alone]]]


def gap_to_plain(lm, prompts, known=None):
    """The largest difference to states that are read plainly, and the tokens of prefixes by prompt."""
    layers = list(range(lm.n_layers + 1))
    plain = [lm.read(p).tensor[0] for p in prompts]
    gaps, shared = {}, {}
    for batch in read_sharing_prefix(lm, prompts, layers, known):
        for i, h in zip(batch.numbers, batch.states(), strict=True):
            gaps[i], shared[i] = float((h - plain[i]).abs().max()), len(batch.prefix)
    assert sorted(gaps) == list(range(len(prompts)))
    return max(gaps.values()), [shared[i] for i in range(len(prompts))]


@pytest.mark.parametrize("common", [14, LONG])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2", "mamba", "jamba", "openai-gpt"])
def test_states_are_those_of_prompts_read_alone(architecture, common):
    lm = ls.LM(tiny.model(architecture, dtype=torch.float64), None, architecture)
    gap, shared = gap_to_plain(lm, alike(lm, common))
    assert gap <= 1e-10
    # recurrent states and a model without a cache are read plainly; the last common token is not of the prefix
    expected = 0 if architecture in ("mamba", "jamba", "openai-gpt") else common - 1
    assert shared == [*[expected] * 5, 0]


def test_where_sharing_is_not_exact_prompts_are_read_plainly(monkeypatch):
    lm = ls.LM(tiny.model("gemma3_text", dtype=torch.float64), None, "tiny")
    monkeypatch.setattr(shared_prefix_states, "_sharing_deviation", lambda lm, key, *_: 1.0 if any(key) else 0.0)
    assert is_sharing_exact(lm, 10, 12, 20)
    assert not is_sharing_exact(lm, LONG, LONG + 2, LONG + 4)
    assert gap_to_plain(lm, alike(lm, LONG))[1] == [0] * 6
    assert max(gap_to_plain(lm, alike(lm, 14))[1]) == 13


def test_edits_apply_to_prompts_that_begin_alike():
    lm = ls.LM(tiny.model("llama", dtype=torch.float64), None, "tiny")
    prompts = alike(lm, 14)
    with lm.edit(ls.Edit(2, 3, torch.ones(32, dtype=torch.float64))):
        gap, shared = gap_to_plain(lm, prompts)
    assert gap <= 1e-12
    assert not any(shared)


def test_a_prefix_is_read_once_and_known_in_later_calls(lm):
    read = []
    watch = lm.model.model.layers[0].register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape[:2])))
    known = ReadPrefixes()
    prompts = alike(lm, LONG)
    for _ in range(2):
        assert is_sharing_exact(lm, LONG - 1, LONG + 1, LONG + 9)
        read.clear()
        list(read_sharing_prefix(lm, prompts, [1, 2], known))
        passes = list(read)
    # the first call reads the prefix too; the prompt that is alike to none is read anyhow
    assert passes == [(5, 10), (1, 7)]
    # a prompt that comes alone goes on from it
    read.clear()
    list(read_sharing_prefix(lm, prompts[:1], [1, 2], known))
    assert read == [(1, 7)]
    # at other layers it is unknown, and so it is when the model has changed
    read.clear()
    list(read_sharing_prefix(lm, prompts[:5], [1, 3], known))
    assert (1, LONG - 1) in read
    watch.remove()


def test_prompts_that_come_one_by_one_share_what_they_begin_with():
    lm = ls.LM(tiny.model("llama", dtype=torch.float64), None, "tiny")
    known = ReadPrefixes()
    shared = []
    for prompt in alike(lm, 40, ends=(3, 5, 2, 8)):
        gap, lengths = gap_to_plain(lm, [prompt], known)
        assert gap <= 1e-10
        shared += lengths
    # of the first nobody knows what it begins with; the last one begins otherwise
    assert shared == [0, 39, 39, 39, 0]


def test_groups_read_the_fewest_tokens():
    long, other = tuple(range(100)), tuple(range(200, 260))
    rows = [(*long, 1), (*other, 1), (*long, 2), (*other, 2), (*long, 3), (7, 8)]
    groups = {tuple(sorted(members)): common for members, common in groups_that_share(rows)}
    assert groups == {(0, 2, 4): 99, (1, 3): 59, (5,): 0}
    # a few tokens that all have in common do not hide the many of two parts
    rows = [(5, 6, *row) for row in rows[:5]]
    assert {tuple(sorted(m)): n for m, n in groups_that_share(rows)} == {(0, 2, 4): 101, (1, 3): 61}
    # equal prompts have one token each behind the prefix
    assert groups_that_share([long, long, long]) == [([0, 1, 2], 99)]
    few = tuple(range(FEWEST_SAVED_TOKENS // 2))
    assert sorted(groups_that_share([(*few, 1), (*few, 2)])) == [([0], 0), ([1], 0)]
    assert groups_that_share([]) == []


def test_positions_of_a_prefix_are_measured_once():
    lm = ls.LM(tiny.model("llama", dtype=torch.float64), None, "tiny")
    prompts, known, sizes = alike(lm, 40), ReadPrefixes(), []

    def measured(h, following):
        sizes.append(h.shape[1])
        return np.stack([h[1].sum(-1).numpy(), following.numpy()])

    for _ in range(2):
        values = {}
        for batch in read_sharing_prefix(lm, prompts, [1, 2], known):
            values |= zip(batch.numbers, batch.of_positions("sum", measured), strict=True)
            means, last = batch.mean_states(), batch.last_states()
            for row, i in enumerate(batch.numbers):
                h = lm.read(prompts[i], [1, 2]).tensor[0]
                torch.testing.assert_close(means[row], h[:, 1:].mean(1), atol=1e-10, rtol=0)
                torch.testing.assert_close(last[row], h[:, -1], atol=1e-10, rtol=0)
    for i, prompt in enumerate(prompts):
        own = lm.read(prompt, [2]).tensor[0, 0]
        np.testing.assert_allclose(values[i][0], own.sum(-1).numpy(), atol=1e-9)
        assert values[i][1].tolist() == [*prompt.ids[1:], -1]
    rests = 7 + 10 + 2 + 5 + 6
    assert sizes == [39 + rests, 7, rests, 7]


def test_batches_fit_in_memory_and_states_must_be_finite(monkeypatch):
    lm = ls.LM(tiny.model("llama", dtype=torch.float64), None, "tiny")
    prompts = alike(lm, 40)
    assert is_sharing_exact(lm, 39, 41, 49)
    bytes_per_token = shared_prefix_states.cache_layout(lm).bytes_per_token
    monkeypatch.setattr(shared_prefix_states, "CARRIED_BYTES", 3 * 50 * bytes_per_token)
    batches = [b.numbers for b in read_sharing_prefix(lm, prompts, [4])]
    assert sorted(map(len, batches)) == [1, 2, 3]
    with torch.no_grad():
        lm.model.model.embed_tokens.weight[prompts[0].ids[-1]] = torch.inf
    with pytest.raises(LenscopeError, match="layer 0: tiny has states that are NaN or infinite"):
        list(read_sharing_prefix(lm, prompts, [0, 4]))
