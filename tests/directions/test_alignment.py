"""Responses to an exchange equal those of plain hooks on the transformers model."""

import numpy as np
import pytest
import torch
from affine_lens import affine
from directions_by_hand import TAILS, behind, hooked, lm_of, rows_of, states

from lenscope.directions.alignment import aitchison_cosine, alignment, places_of_other_rows
from lenscope.directions.causal_basis import causal_basis, random_basis


def test_alignment_is_that_of_plain_hooks():
    lm = lm_of("llama")
    f, rows, layer = affine(lm), rows_of(lm, 4), 2
    basis = causal_basis(lm, rows, f, [layer], k=3)
    found = alignment(lm, rows, basis, {"tuned": f, "logit": None}, seed=5)
    h = states(lm, rows, layer)
    source = places_of_other_rows(np.repeat(np.arange(4), 8), 5)
    v = basis[layer].double()
    treated = h + (h[source] - h) @ v.T @ v
    tail = TAILS["llama"]
    for n, row in enumerate(rows):
        part = slice(8 * n, 8 * n + 8)
        before = hooked(lm, "llama", row, layer, lambda h: h)[1:].log_softmax(-1)
        after = hooked(lm, "llama", row, layer, lambda h, part=part: behind(h, treated[part][None]))[1:].log_softmax(-1)
        w = (before.exp() + after.exp()) / 2
        for i, read in enumerate((lambda y: f(y, layer, lm.n_layers), lambda y: y)):
            x = tail(lm.model, read(treated[part])) - tail(lm.model, read(h[part]))
            y = after - before
            x, y = (z - (w * z).sum(-1, keepdim=True) for z in (x, y))
            cosine = (w * x * y).sum(-1) / ((w * x * x).sum(-1) * (w * y * y).sum(-1)).sqrt()
            assert found.by_unit[i, n, 0] == pytest.approx(float(cosine.detach().sum()), rel=1e-5)
    assert (found.counts == 8).all()
    np.testing.assert_allclose(found.similarity[:, 0], found.by_unit.sum(1)[:, 0] / 32)
    assert found.estimate("tuned", layer).value == pytest.approx(found.units("tuned", layer).mean())


def test_the_last_layer_aligns_with_itself():
    lm = lm_of("gpt2")
    rows = rows_of(lm, 4)
    found = alignment(lm, rows, random_basis(lm, rows, None, [lm.n_layers], k=2))
    np.testing.assert_allclose(found.similarity, 1, rtol=1e-9)


def test_the_aitchison_cosine_with_even_weights_is_the_correlation():
    draw = torch.Generator().manual_seed(0)
    x, y, w = (torch.randn(5, 40, generator=draw, dtype=torch.float64) for _ in range(3))
    even = torch.full_like(x, 1 / 40)
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    np.testing.assert_allclose(aitchison_cosine(x, y, even), expected, rtol=1e-10)
    w = w.softmax(-1)
    found = aitchison_cosine(x, y, w)
    torch.testing.assert_close(aitchison_cosine(x + 3, 2 * y - 7, w), found)
    torch.testing.assert_close(aitchison_cosine(x, -y, w), -found)
    a, b = (np.cov(np.stack([x[0], y[0]]), aweights=w[0].numpy(), ddof=0)[i] for i in range(2))
    assert float(found[0]) == pytest.approx(a[1] / (a[0] * b[1]) ** 0.5)
    assert torch.isnan(aitchison_cosine(torch.ones(1, 4), torch.arange(4.0)[None], torch.full((1, 4), 0.25))).all()


@pytest.mark.parametrize("sizes", [(3, 3), (1, 2, 3), (5, 1, 1, 4), (2,) * 20])
def test_every_place_gets_a_state_of_another_row(sizes):
    row = np.repeat(np.arange(len(sizes)) * 7, sizes)
    for seed in range(20):
        found = places_of_other_rows(row, seed)
        assert sorted(found) == list(range(len(row)))
        assert (row[found] != row).all()
    assert len({tuple(places_of_other_rows(row, seed)) for seed in range(20)}) > 2
