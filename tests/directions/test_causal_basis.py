"""Causal bases are orthonormal, sorted and at maxima, and find what a lens reads."""

import json

import pytest
import tiny
import torch
from affine_lens import affine
from directions_by_hand import TAILS, lm_of, rows_of, sigma, states, unit

import lenscope as ls
from lenscope.directions.causal_basis import causal_basis, principal_basis, promoted, random_basis
from lenscope.directions.influence import influence


@pytest.mark.parametrize("tuned", [False, True])
def test_the_basis_is_orthonormal_sorted_exact_and_at_maxima(tuned):
    lm = lm_of("gpt2")
    f = affine(lm) if tuned else None
    rows = rows_of(lm)
    basis = causal_basis(lm, rows, f, [1, 2], k=3)
    assert basis.layers == (1, 2)
    for i, layer in enumerate(basis.layers):
        v = basis[layer].double()
        torch.testing.assert_close(v @ v.T, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)
        h = states(lm, rows, layer)
        read = (lambda h, layer=layer: f(h, layer, lm.n_layers)) if tuned else (lambda h: h)

        def value(v, h=h, read=read):
            return sigma(lambda y: TAILS["gpt2"](lm.model, y), read, h, v)

        found = torch.stack([value(one) for one in v]).detach()
        torch.testing.assert_close(basis.energies[i].double(), found, rtol=1e-5, atol=1e-7)
        assert (found.diff() <= 0).all()
        torch.testing.assert_close(basis.mean[i].double(), h.mean(0), rtol=1e-5, atol=1e-5)
        along = (h - h.mean(0)) @ v.T
        torch.testing.assert_close(basis.spread[i].double(), along.square().mean(0).sqrt(), rtol=1e-5, atol=1e-6)
        assert (along.pow(3).mean(0) > 0).all()
        # at each, what would raise it further lies within the directions themselves
        for one, energy_of in zip(v, found, strict=True):
            one = one.clone().requires_grad_()
            (pull,) = torch.autograd.grad(value(one), one)
            outside = pull - v.T @ (v @ pull)
            assert float(outside.norm()) < 0.05 * float(energy_of)


def test_no_search_of_ones_own_finds_more_for_the_first_direction():
    lm = lm_of("gpt2")
    rows = rows_of(lm)
    h = states(lm, rows, 2)
    best = 0.0
    for seed in range(4):
        w = unit(lm.hidden_size, seed).requires_grad_()
        climb = torch.optim.LBFGS([w], max_iter=30, line_search_fn="strong_wolfe")

        def value(w=w):
            return sigma(lambda y: TAILS["gpt2"](lm.model, y), lambda h: h, h, w / w.norm())

        def step(w=w, climb=climb, value=value):
            climb.zero_grad()
            loss = -value()
            loss.backward()
            return loss

        climb.step(step)
        best = max(best, float(value().detach()))
    assert float(causal_basis(lm, rows, None, [2], k=1).energies[0, 0]) > 0.95 * best


def test_a_lens_that_reads_one_direction_has_that_one():
    lm = lm_of("gpt2")
    h = states(lm, rows_of(lm), 2)
    # the states' own longest axis: else it would pay to lean towards that
    u, w = torch.linalg.svd(h - h.mean(0)).Vh[0], 2 * unit(lm.hidden_size, 4)

    def one(h):
        return torch.ones_like(h).cumsum(-1) + (h @ u.to(h))[..., None] * w.to(h)

    basis = causal_basis(lm, rows_of(lm), one, [2], k=2)
    # what is ablated is finite, so that a little of other axes pays
    assert abs(float(basis[2][0].double() @ u)) > 1 - 1e-3
    assert basis.energies[0, 1] < 1e-2 * basis.energies[0, 0]


def test_sixteen_bit_models_are_read_in_float32():
    lm, finer = lm_of("llama", torch.bfloat16), lm_of("llama", torch.bfloat16)
    finer = ls.LM(finer.model.float(), tiny.tokenizer(), "wider")
    rows = rows_of(lm)
    basis = causal_basis(lm, rows, None, [2], k=2)
    assert basis.directions.dtype == torch.float32
    h = states(lm, rows, 2).float()
    expected = [float(sigma(lambda y: TAILS["llama"](finer.model, y), lambda h: h, h, v).detach()) for v in basis[2]]
    torch.testing.assert_close(basis.energies[0], torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert lm.model.lm_head.weight.dtype == torch.bfloat16


def test_states_that_were_read_give_the_basis_of_their_text():
    lm = lm_of("gpt2")
    rows = rows_of(lm)
    first, second = (causal_basis(lm, given, None, [1], k=2) for given in (rows, lm.read(rows, [1, 3])))
    torch.testing.assert_close(first.directions, second.directions)
    assert causal_basis(lm, lm.read(rows, [1, 3]), k=1).layers == (1, 3)


def test_corpora_count_what_they_say(tmp_path):
    lm = lm_of("gpt2")
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"the cat number {n} sat on the mat"}) for n in range(60)))
    batches = list(ls.Corpus.open(lm, path, length=16).batches(64, 2))
    basis = principal_basis(lm, batches, None, [2], k=2)
    h = torch.cat([lm.read(b.ids[n].tolist(), 2).tensor[0, 0, b.counted[n]] for b in batches for n in range(2)])
    torch.testing.assert_close(basis.mean[0].double(), h.mean(0), rtol=1e-5, atol=1e-5)
    assert basis.provenance["tokens"] == len(h) < 64
    found = influence(lm, batches, basis)
    assert found.counts.sum() == len(h)
    assert len(found.counts) == len({int(d) for b in batches for d in b.document.flatten()})


def test_controls_are_orthonormal_and_span_what_they_say():
    lm = lm_of("gpt2")
    rows = rows_of(lm)
    h = states(lm, rows, 2)
    for maker in (principal_basis, random_basis):
        v = maker(lm, rows, None, [2], k=4)[2].double()
        torch.testing.assert_close(v @ v.T, torch.eye(4, dtype=torch.float64), atol=1e-6, rtol=0)
    v = principal_basis(lm, rows, None, [2], k=4)[2].double()
    values = torch.linalg.svdvals(h - h.mean(0))[:4].square()
    assert float(((h - h.mean(0)) @ v.T).square().sum()) == pytest.approx(float(values.sum()), rel=1e-6)
    again, other = random_basis(lm, rows, None, [2], k=4), random_basis(lm, rows, None, [2], k=4, seed=1)
    assert torch.equal(random_basis(lm, rows, None, [2], k=4).directions, again.directions)
    assert not torch.equal(other.directions, again.directions)


def test_tokens_promoted_are_those_of_the_lens():
    lm = lm_of("llama")
    f, rows = affine(lm), rows_of(lm)
    basis = causal_basis(lm, rows, f, [1], k=2)
    found = promoted(lm, basis, f, top=3)
    tail = TAILS["llama"]
    for d in range(2):
        step = basis[1][d].double() * basis.spread[0, d].double()
        mean = basis.mean[0].double()
        change = (tail(lm.model, f(mean + step, 1, lm.n_layers)).log_softmax(-1)
                  - tail(lm.model, f(mean - step, 1, lm.n_layers)).log_softmax(-1))  # fmt: skip
        assert found[0, d, 0].tolist() == change.topk(3).indices.tolist()
        assert found[0, d, 1].tolist() == (-change).topk(3).indices.tolist()
