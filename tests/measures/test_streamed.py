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
from lenscope.measures.divergences import diverge


class Barred:
    """A readout that rules out its last tokens, as some models rule out padding."""

    description, splits = "barred", False

    def prepare(self, h):
        z = h.clone()
        z[:, 4:] = -torch.inf
        return z

    def columns(self, x, start, stop):
        return x[:, start:stop].clone()

    def tokens(self, x, ids):
        return x.gather(1, ids[:, None])[:, 0]


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
        monkeypatch.setattr(reduction, "PIECE_BYTES", piece)
        monkeypatch.setattr(reduction, "STATES_BYTES", states)
        monkeypatch.setattr(reduction, "WHOLE_ROWS_BYTES", whole)
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
    monkeypatch.setattr(reduction, "vocabulary_pieces", lambda *_: pieces)
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
    monkeypatch.setattr(reduction, "PIECE_BYTES", 1 << 12)
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


def test_what_cannot_be_negative_is_not_by_rounding():
    """KL and entropy are differences of sums: without their clamp some come out below zero."""
    draw = torch.Generator().manual_seed(0)
    lm = ls.LM(tiny.model("llama"), None, "tiny")
    final = torch.randn(200, 32, generator=draw)
    h = torch.stack([final + scale * torch.randn(200, 32, generator=draw) for scale in (1e-7, 1e-6, 1e-5)])
    found = reduction.reduce(lm.runner.readout, lm.vocab_size, h, final, None, 1, False)
    apart = diverge((lm.runner.readout, lm.runner.readout), lm.vocab_size, (h, final.expand_as(h).clone()))
    certain = reduction.reduce(lm.runner.readout, lm.vocab_size, 50 * h, 50 * final, None, 1, False)
    for name in ("kl", "entropy"):
        assert (getattr(found, name) >= 0).all()
        assert (getattr(certain, name) >= 0).all()
    for name in ("js", "total_variation", "kl", "kl_back"):
        assert (getattr(apart, name) >= 0).all()
    # the sums themselves do fall below: the test would see it
    log_p, log_q = (lm.unembed(x).log_softmax(-1) for x in (final, h[0]))
    assert float(measures.kl(log_p, log_q).min()) < 0


def test_tokens_that_neither_side_predicts_do_not_make_distances_nan():
    """0 · (ln 0 - ln 0) is 0: where both are ruled out, so is their mean."""
    a, b = torch.randn(2, 2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = diverge((Barred(), Barred()), 6, (a, b))
    log_p, log_q = (x[..., :4].log_softmax(-1) for x in (a, b))
    torch.testing.assert_close(found.js, measures.js(log_p, log_q))
    torch.testing.assert_close(found.kl, measures.kl(log_p, log_q))
    torch.testing.assert_close(found.total_variation, measures.total_variation(log_p, log_q))


@pytest.mark.parametrize("most", range(1, 11))
def test_every_position_is_reduced_whatever_the_pieces(lm, monkeypatch, most):
    """Also the last one, when it is a piece of its own."""
    h = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    whole = reduction.reduce(lm.runner.readout, lm.vocab_size, h, h[-1], None, 1, True)
    monkeypatch.setattr(reduction, "STATES_BYTES", most * 2 * 32 * 4)
    found = reduction.reduce(lm.runner.readout, lm.vocab_size, h, h[-1], None, 1, True)
    assert found.entropy.shape == (2, 9)
    torch.testing.assert_close(found.entropy, whole.entropy)
