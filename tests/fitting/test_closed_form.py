"""Ridge regressions are the textbook's least squares."""

import numpy as np
import torch

from lenscope.fitting.closed_form import SecondMoments, with_constant


def test_ridges_are_least_squares_whatever_the_size_of_the_states():
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(200, 12, generator=draw) * torch.logspace(-2, 2, 12) + 1
    y = h @ torch.randn(12, 12, generator=draw) / 10 + torch.randn(200, 12, generator=draw)

    def solved(scale):
        constant = float(h.square().mean().sqrt()) * scale
        x = with_constant(h * scale, constant)
        moments = SecondMoments(12, torch.device("cpu"))
        moments.add((x[part : part + 64], y[part : part + 64]) for part in range(0, 128, 64))
        moments.add([(x[128:], y[128:])])
        return x, moments.ridges(torch.device("cpu"), (1e-3, 1e-1))

    x, found = solved(1.0)
    for ridge, t in zip((1e-3, 1e-1), found, strict=True):
        wide = x.double().numpy()
        penalty = np.diag(np.sqrt(ridge * (wide**2).sum(0)))
        both = np.concatenate([wide, penalty]), np.concatenate([y.double().numpy(), np.zeros((13, 12))])
        wanted = np.linalg.lstsq(*both, rcond=None)[0]
        assert np.abs(wide @ t.double().numpy() - wide @ wanted).max() < 1e-3 * y.std()
        assert np.abs(t.numpy() - wanted).max() < 1e-3 * np.abs(wanted).max()
    louder, other = solved(1000.0)
    for t, u in zip(found, other, strict=True):
        assert (x @ t - louder @ u).abs().max() < 1e-3 * y.std()
