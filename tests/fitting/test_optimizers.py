"""Steps of Muon and Nesterov are those of their papers and of torch."""

import pytest
import torch
from torch import nn

from lenscope.fitting.optimizers import Muon, Nesterov, orthogonal


@pytest.mark.parametrize("shape", [(33, 32), (20, 50), (50, 20)])
def test_orthogonal_makes_singular_values_about_one(shape):
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-5
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    g = u @ torch.diag(s.clamp_min(0.05 * s[0])) @ v
    done = orthogonal(g)
    found = torch.linalg.svdvals(done)
    assert found.min() > 0.6
    assert found.max() < 1.25
    # the same singular vectors
    inner = u.T @ done @ v.T
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-10
    assert not orthogonal(torch.zeros(shape)).any()


def test_muons_steps_are_in_units_of_the_weights():
    weights = [torch.eye(9, 8) * 3, torch.eye(9, 8)]
    before = [w.clone() for w in weights]
    optimizer = Muon(weights, [1.0, 1.0], lr=0.1, most=1.0)
    g = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    optimizer.step([g, g * 1e-6], 0.5)
    moved = [b - w for b, w in zip(before, weights, strict=True)]
    assert torch.allclose(moved[0], 3 * moved[1], atol=1e-5)
    assert float(torch.linalg.matrix_norm(moved[1], 2)) == pytest.approx(0.05, rel=0.3)


def test_muon_is_the_same_whatever_the_units():
    """States in other units, the same map: every step is the same map again."""
    draw = torch.Generator().manual_seed(0)
    units = torch.rand(9, generator=draw).double() + 0.5, torch.rand(8, generator=draw).double() + 0.5
    r, q = (torch.randn(n, generator=draw).exp().double() ** 3 for n in (9, 8))
    plain = torch.randn(9, 8, generator=draw).double()
    other = plain / r[:, None] * q
    a = Muon([plain], [1.0], [units], lr=0.1, most=1.0)
    b = Muon([other], [1.0], [(units[0] * r, units[1] * q)], lr=0.1, most=1.0)
    before = plain.clone()
    for n in range(4):
        g = torch.randn(9, 8, generator=draw).double()
        a.step([g], 1 - n / 4)
        b.step([g * r[:, None] / q], 1 - n / 4)
    assert (plain - before).abs().max() > 0.05
    assert (other - plain / r[:, None] * q).abs().max() < 1e-6 * other.abs().max()
    # and a step is one of the map between inputs and outputs of one size, back in its own units
    w = before.clone()
    g = torch.randn(9, 8, generator=draw).double()
    Muon([w], [1.0], [units], lr=0.1, most=1.0).step([g], 1.0)
    scaled = before * units[0][:, None] / units[1]
    step = orthogonal(g / units[0][:, None] * units[1] * 1.8) * 0.1 * scaled.norm() / 8**0.5
    assert (w - (before - step / units[0][:, None] * units[1])).abs().max() < 1e-6


def test_nesterov_is_that_of_torch_on_the_distance_from_the_identity():
    draw = torch.Generator().manual_seed(0)
    start = [torch.eye(6, 5, dtype=torch.float64) for _ in range(3)]
    ours = [w.clone() for w in start]
    theirs = [nn.Parameter(torch.zeros_like(w)) for w in start]
    mine = Nesterov(ours, lr=0.7)
    sgd = torch.optim.SGD(theirs, lr=0.0, momentum=0.9, nesterov=True, weight_decay=1e-3)
    for n in range(6):
        gradients = [torch.randn(6, 5, dtype=torch.float64, generator=draw) * (0.01 if n % 2 else 10) for _ in start]
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = g.clone()
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        sgd.param_groups[0]["lr"] = 0.7 * (1 - 0.9) * (1 - n / 6)
        sgd.step()
        mine.step(gradients, 1 - n / 6)
    for w, first, p in zip(ours, start, theirs, strict=True):
        assert (w - first - p.detach()).abs().max() < 1e-12
