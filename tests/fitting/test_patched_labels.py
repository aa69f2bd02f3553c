"""Labels behind a patched prompt: as Patchscopes say them, as finite differences have it, in every way of running."""

import re

import pytest
import tiny
import torch
from torch.testing import assert_close

import lenscope as ls
from lenscope.fitting import patched_labels as likelihoods
from lenscope.fitting.patched_labels import PatchedLabels
from lenscope.models import edits
from lenscope.patchscopes.patchscope import Patchscope, Target


@pytest.fixture(scope="module")
def exact():
    """A model that computes everything in float64, as Llama's norms do not."""
    return ls.LM(tiny.model("gpt2", dtype=torch.float64), tiny.tokenizer(), "tiny-gpt2")


PROMPT = "the x of the x is"
LABELS = [(5, 9, 40), (7,), (12, 3), (7, 8, 9, 10)]


def drawn(lm, *shape):
    return torch.randn(len(LABELS), *shape, lm.hidden_size, generator=torch.Generator().manual_seed(3)).double()


def targets(lm):
    soft = ls.Edit(0, [1], torch.randn(1, lm.hidden_size, generator=torch.Generator().manual_seed(5)).double())
    last = len(lm.prompt(PROMPT)) - 1
    return {
        "first": (Target(PROMPT, at="x", every=True), 0, edits.replace),
        "added": (Target(PROMPT, at="x", every=True), 1, edits.add_norm_matched),
        "norm": (Target(PROMPT, at=[2, last]), 2, edits.replace_norm_matched),
        "added at the end": (Target(PROMPT, at=-1), lm.n_layers, edits.add),
        "first token": (Target(PROMPT, at=0), 0, edits.replace),
        "soft": (Target(PROMPT, at=-1, edits=[soft]), 1, edits.replace),
    }


@pytest.mark.parametrize("name", ["first", "added", "norm", "added at the end", "first token", "soft"])
def test_labels_are_as_likely_as_a_patchscope_says(lm64, name):
    target, layer, op = targets(lm64)[name]
    vectors = drawn(lm64)
    read = PatchedLabels(lm64, target, layer, op)
    found = read.log_probs(vectors, LABELS)
    scope = Patchscope(lm64, target, op=op)
    for n, label in enumerate(LABELS):
        ids = read.prompt.ids
        total = 0.0
        # token by token, each behind those before it
        for k, token in enumerate(label):
            longer = Target([*ids, *label[:k]], at=list(read.slots), edits=target.edits)
            grid = Patchscope(lm64, longer, op=op).predict(vectors[n], layer, answers=[token])
            total += float(grid.measures[next(m for m in grid.measures if m.startswith("log_prob"))][0])
        assert_close(float(found[n]), total, rtol=1e-5, atol=1e-5)
    assert scope.targets[0] is target


@pytest.mark.parametrize("name", ["first", "added", "norm", "added at the end", "first token", "soft"])
def test_gradients_are_finite_differences(exact, name):
    target, layer, op = targets(exact)[name]
    vectors, step = drawn(exact), 1e-5
    read = PatchedLabels(exact, target, layer, op)
    values, slopes = read.gradients(vectors, LABELS)
    assert_close(values, read.log_probs(vectors, LABELS), rtol=1e-12, atol=1e-10)
    for seed in range(2):
        way = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        ends = [read.log_probs(vectors + sign * step * way, LABELS) for sign in (1, -1)]
        assert_close((slopes * way).sum(-1), (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-6)


def test_each_placeholder_may_have_a_vector_of_its_own(lm64):
    target = targets(lm64)["first"][0]
    read = PatchedLabels(lm64, target, 0, edits.replace)
    same = drawn(lm64)
    values, slopes = read.gradients(same[:, None].expand(-1, 2, -1).contiguous(), LABELS)
    alone, slope = read.gradients(same, LABELS)
    assert_close(values, alone, rtol=1e-12, atol=1e-12)
    assert_close(slopes.sum(1), slope, rtol=1e-9, atol=1e-12)
    other = torch.stack([same, same.flip(0)], 1)
    assert not torch.allclose(read.log_probs(other, LABELS), alone)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba", "recurrent_gemma", "gemma3_text"])
def test_every_way_of_running_gives_the_same(kind):
    lm = ls.LM(tiny.model(kind, dtype=torch.float64), tiny.tokenizer(), kind)
    target = Target([5, 9, 11, 3, 8], at=[2, 4])
    vectors = drawn(lm)
    fast = PatchedLabels(lm, target, 0, edits.replace)
    values, slopes = fast.gradients(vectors, LABELS)
    plain = PatchedLabels(lm, target, 0, edits.replace)
    plain.start, plain.padded = 0, False
    own, own_slopes = plain.gradients(vectors, LABELS)
    # a softmax in float32 rounds
    assert_close(values, own, rtol=1e-5, atol=1e-5)
    assert_close(slopes, own_slopes, rtol=1e-3, atol=1e-4)
    assert kind not in ("llama", "gpt2") or (fast._start_of(4), len(list(fast._together(LABELS)))) == (2, 1)


def test_pieces_of_the_head_are_the_whole(lm64, monkeypatch):
    target, layer, op = targets(lm64)["first"]
    read = PatchedLabels(lm64, target, layer, op)
    vectors = drawn(lm64)
    whole = read.gradients(vectors, LABELS)
    monkeypatch.setattr(likelihoods, "LOGITS", 4 * lm64.vocab_size * 3)
    for a, b in zip(whole, read.gradients(vectors, LABELS), strict=True):
        assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_nothing_of_the_model_is_changed(lm):
    asking = [p.requires_grad for p in lm.model.parameters()]
    before = [p.clone() for p in lm.model.parameters()]
    read = PatchedLabels(lm, Target(PROMPT, at=-1), 1, edits.replace)
    read.gradients(drawn(lm).float(), LABELS)
    assert [p.requires_grad for p in lm.model.parameters()] == asking
    assert all(p.grad is None and p.equal(b) for p, b in zip(lm.model.parameters(), before, strict=True))


def test_what_no_map_is_trained_for_is_refused(lm64):
    with pytest.raises(ls.LenscopeError, match=re.escape("below 'none': a map is trained where")):
        PatchedLabels(lm64, Target(PROMPT, below="none"), 0, edits.replace)
    with (
        lm64.edit(ls.Edit(0, 0, torch.zeros(lm64.hidden_size))),
        pytest.raises(ls.LenscopeError, match="is being edited"),
    ):
        PatchedLabels(lm64, Target(PROMPT), 0, edits.replace)
