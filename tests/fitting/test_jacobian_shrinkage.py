"""Shrinkage finds the weight that statistics says, and leaves alone what it would make worse."""

import pytest
import torch
from small_fits import documents, make

from lenscope.fitting.jacobian_lens import fit_jacobian_lens
from lenscope.fitting.jacobian_shrinkage import HeldOutJacobians, shrunk

LAYERS, SIZE, PROMPTS = 3, 24, 40


def drawn(noise, apart, seed=0, prompts=PROMPTS):
    """True matrices whose neighbours differ by `apart`, two noisy halves, and noisy held-out prompts."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(SIZE, SIZE, generator=draw)
    true = torch.stack([base + apart * torch.randn(SIZE, SIZE, generator=draw) for _ in range(LAYERS)])
    first, second = (true + noise * torch.randn(true.shape, generator=draw) for _ in range(2))
    probes = torch.randn(8, SIZE, generator=draw)
    held = true + torch.randn(prompts, *true.shape, generator=draw)
    states = torch.randn(LAYERS, 50, SIZE, generator=draw)
    return true, first, second, HeldOutJacobians(probes, probes @ held, states)


def test_noise_is_drawn_towards_a_neighbour_that_is_near():
    true, first, second, held = drawn(noise=1.0, apart=0.2)
    mean = (first + second) / 2
    better, rows = shrunk(first, second, mean, None, held)
    helped = [n for n, row in enumerate(rows) if row["weight"]]
    assert helped
    for n in helped:
        assert (better[n] - true[n]).norm() < 0.9 * (mean[n] - true[n]).norm()
        assert rows[n]["error_change_95"][1] < 0
    # to within what 24 × 24 numbers can say: half the noise's variance against the neighbour's distance and noise
    assert rows[helped[0]]["weight"] == pytest.approx(0.5 / (0.5 + 0.5 + 2 * 0.04), abs=0.15)


@pytest.mark.parametrize("seed", range(8))
def test_what_needs_no_shrinkage_is_not_made_worse(seed):
    true, first, second, held = drawn(noise=0.02, apart=3.0, seed=seed)
    mean = (first + second) / 2
    better, _ = shrunk(first, second, mean, None, held)
    assert ((better - true).norm() <= 1.02 * (mean - true).norm()).item()


def test_one_held_out_prompt_decides_nothing():
    _, first, second, held = drawn(noise=1.0, apart=0.2, prompts=1)
    better, rows = shrunk(first, second, (first + second) / 2, None, held)
    assert torch.equal(better, (first + second) / 2)
    assert not any(row["weight"] for row in rows)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_a_shrunk_lens_is_nowhere_further_from_a_long_one(kind):
    lm, docs = make(kind), documents(400)
    how = {"length": 24, "skip": 4}
    short = fit_jacobian_lens(lm, docs, tokens=24 * 8, **how)
    plain = fit_jacobian_lens(lm, docs, tokens=24 * 8, shrink=False, **how)
    # other text than the short ones read
    long = fit_jacobian_lens(lm, documents(400, seed=9), tokens=24 * 100, shrink=False, **how)
    for pair, (j, _) in long.weights.items():
        far, near = ((lens.weights[pair][0] - j).norm() for lens in (plain, short))
        assert near <= 1.01 * far
