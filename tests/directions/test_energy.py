"""Energies of directions and their gradients equal autograd of the definition."""

import pytest
import torch
from affine_lens import affine
from directions_by_hand import TAILS, lm_of, rows_of, sigma, states, unit

from lenscope.directions import energy
from lenscope.directions.energy import FactoredEnergy, GeneralEnergy, Site, wide_readout
from lenscope.lenses.lens import Lens
from lenscope.measures.sampled_kl import SampledKL


@pytest.mark.parametrize(("kind", "factored"), [("llama", True), ("gpt2", True), ("cohere", True), ("gemma2", False)])
@pytest.mark.parametrize("tuned", [False, True])
def test_energy_and_gradient_are_those_of_the_definition(kind, factored, tuned):
    lm = lm_of(kind)
    f = affine(lm) if tuned else None
    h = states(lm, rows_of(lm), 2)
    site = Site(Lens(lm, f), wide_readout(lm), 2, h, 4, 0)
    assert (site.factors is not None) == factored
    v = unit(lm.hidden_size).requires_grad_()
    read = (lambda h: f(h, 2, lm.n_layers)) if tuned else (lambda h: h)
    expected = sigma(lambda y: TAILS[kind](lm.model, y), read, h, v)
    (gradient,) = torch.autograd.grad(expected, v)
    # most norms are computed in float32 whatever the model's dtype; LayerNorm is not
    close = {"rtol": 1e-9, "atol": 1e-10} if kind == "gpt2" else {"rtol": 2e-5, "atol": 2e-6}
    objective = SampledKL(lm, site._mean_distribution(), None, 0)
    for made in [
        GeneralEnergy(site, objective),
        *([FactoredEnergy(site, objective, *site.factors)] if factored else []),
    ]:
        found, pull = made(v.detach())
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected.detach(), **close)
        torch.testing.assert_close(pull, gradient, **close)


def test_drawn_columns_give_the_energy_of_the_weighted_vocabulary():
    lm = lm_of("gpt2")
    h = states(lm, rows_of(lm), 2)
    site = Site(Lens(lm), wide_readout(lm), 2, h, 4, 0)
    columns = SampledKL(lm, site._mean_distribution(), 64, 0).draw(0)
    assert len(columns.ids) == 64
    assert columns.added.max() > 1
    v = unit(lm.hidden_size)
    tail = TAILS["gpt2"]
    expected = sigma(lambda y: tail(lm.model, y)[:, columns.ids] + columns.added, lambda h: h, h, v)
    assert site.energy(64)(v)[0] == pytest.approx(expected.item(), rel=1e-9)


def test_logits_that_are_not_kept_are_made_again(monkeypatch):
    lm = lm_of("gpt2")
    h = states(lm, rows_of(lm), 2)
    site = Site(Lens(lm, affine(lm)), wide_readout(lm), 2, h, 4, 0)
    v = unit(lm.hidden_size)
    kept = site.energy(None)(v)
    monkeypatch.setattr(energy, "KEPT_BYTES", 0)
    monkeypatch.setattr(energy, "PIECE_BYTES", 30_000)
    again = site.energy(None)(v)
    assert again[0] == pytest.approx(kept[0], rel=1e-12)
    torch.testing.assert_close(again[1], kept[1], rtol=1e-9, atol=1e-12)
