"""Streamed measures: they equal their definitions on whole logits, and never hold logits of all states."""

import itertools

import numpy as np
import pytest
import tiny
import torch
from memory import Largest

import lenscope as ls
from lenscope.measures import definitions as measures
from lenscope.measures import streamed as reduction

PROMPT = "The capital of France is"


def definitions(lm, ids, f=None):
    """Everything a trajectory holds, from stacked log-probabilities (L, P, V)."""
    states = lm.read(ids)
    h = states[:, :]
    if f is not None:
        h = torch.stack([f(x, n) for n, x in enumerate(h)])
    log_q = lm.unembed(h).log_softmax(-1)
    log_p = lm.unembed(states[lm.n_layers, :]).log_softmax(-1).expand_as(log_q)
    following = torch.tensor([*ids[1:], 0]).expand(len(log_q), -1)
    return {
        "entropy": measures.entropy(log_q),
        "kl": measures.kl(log_p, log_q),
        "max_probability": measures.max_probability(log_q),
        "cross_entropy": measures.surprisal(log_q, following),
        "rank": measures.rank(log_q, following),
    }, log_q.topk(4)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "cohere", "gptj", "gemma3n_text"])
@pytest.mark.parametrize("f", [None, lambda h, layer: h + 0.1 * layer])
def test_streamed_measures_equal_their_definitions(architecture, f, monkeypatch):
    lm = ls.LM(tiny.model(architecture, dtype=torch.float64), None, architecture)
    ids = tiny.ids(lm.model, 1, 9)[0].tolist()
    expected, top = definitions(lm, ids, f)
    # pieces of one layer, a few columns, a few rows, and of everything at once
    for piece, states, whole in itertools.product((1, 1 << 20), (1 << 11, 1 << 26), (1 << 12, 1 << 24)):
        monkeypatch.setattr(reduction, "PIECE", piece)
        monkeypatch.setattr(reduction, "STATES", states)
        monkeypatch.setattr(reduction, "WHOLE", whole)
        h = lm.read(ids)[:, :]
        mapped = h if f is None else torch.stack([f(x, n) for n, x in enumerate(h)])
        targets = torch.tensor([*ids[1:], 0])
        r = reduction.reduce(lm.runner.readout, lm.vocab_size, mapped, h[-1], targets, 4, f is None)
        for name, value in expected.items():
            assert torch.allclose(getattr(r, name).double(), value.double(), atol=1e-9), (name, piece, states, whole)
        assert torch.equal(r.top_ids, top.indices)
        assert torch.allclose(r.top_log_probs, top.values, atol=1e-9)


def test_more_tokens_than_a_piece_holds_can_be_asked_for(lm64, monkeypatch):
    pieces = [(start, min(start + 100, lm64.vocab_size)) for start in range(0, lm64.vocab_size, 100)]
    monkeypatch.setattr(reduction, "_pieces", lambda *_: pieces)
    t = ls.Lens(lm64).trajectory(PROMPT, top_k=lm64.vocab_size)
    expected = lm64.unembed(lm64.read(PROMPT)[:, :]).log_softmax(-1).sort(-1, descending=True)
    assert np.array_equal(t.top_ids, expected.indices.numpy())
    assert np.allclose(t.top_log_probs, expected.values.numpy(), atol=1e-5)


def test_logits_of_minus_infinity_give_finite_measures():
    """Some models rule out padding tokens with -inf: 0 · -inf must not become NaN."""

    class Barred:
        description, splits = "barred", False

        def prepare(self, h):
            z = h @ torch.eye(6, dtype=h.dtype)
            z[:, 4:] = -torch.inf
            return z

        def columns(self, x, start, stop):
            return x[:, start:stop].clone()

        def tokens(self, x, ids):
            return x.gather(1, ids[:, None])[:, 0]

    h = torch.randn(3, 2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    r = reduction.reduce(Barred(), 6, h, h[-1], torch.tensor([0, 1]), 2, True)
    log_q = h[..., :4].log_softmax(-1)
    assert torch.allclose(r.entropy, measures.entropy(log_q))
    assert torch.allclose(r.kl, measures.kl(log_q[-1:].expand_as(log_q), log_q), atol=1e-12)


def test_nothing_of_the_size_of_all_logits_ever_exists(lm, monkeypatch):
    monkeypatch.setattr(reduction, "PIECE", 1 << 12)
    ids = tiny.ids(lm.model, 1, 60)[0].tolist()
    with Largest() as largest:
        ls.Lens(lm).trajectory(ids)
        ls.Lens(lm).compare(ids, ids)
    weights = max(p.numel() for p in lm.model.parameters())
    assert largest.numel <= max(weights, 5 * 60 * 256)  # the head, or one piece of 256 columns for all rows
    assert largest.numel < (lm.n_layers + 1) * 60 * lm.vocab_size / 1.2


def test_of_equal_logits_the_lowest_id_is_on_top_whatever_top_k():
    lm = ls.LM(tiny.model("llama", torch.bfloat16), None, "tiny")
    lm.model.lm_head.weight.data[100:300:7] = lm.model.lm_head.weight.data[250]
    ids = list(range(40, 60))
    z = lm.unembed(ls.Lens(lm).lm.read(ids)[:, :])
    expected = z.sort(dim=-1, descending=True, stable=True).indices
    for k in (1, 2, 5, 40):
        t = ls.Lens(lm).trajectory(ids, top_k=k)
        assert torch.equal(torch.from_numpy(t.top_ids), expected[..., :k])
