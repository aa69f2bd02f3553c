"""The loss of fits and its gradient equal autograd of the definition, over all columns and over drawn ones."""

import math

import pytest
import tiny
import torch
from small_fits import make
from torch import nn

import lenscope as ls
from lenscope.measures.sampled_kl import SampledKL
from lenscope.models.readout import Replayed


def plain_head(kind, model):
    """Logits of states, as the transformers code of the architecture makes them."""
    config = model.config
    if kind == "openai-gpt":
        return model.lm_head
    if kind == "gemma2":
        cap = config.final_logit_softcapping
        return lambda h: torch.tanh(model.lm_head(model.model.norm(h)) / cap) * cap
    scale = {"cohere": lambda: config.logit_scale, "granite": lambda: 1 / config.logits_scaling}.get(kind, lambda: 1)()
    return lambda h: model.lm_head(model.model.norm(h)) * scale


class Unknown(nn.Linear):
    """A head that is no plain Linear, as quantised ones are not."""


def unsplit(lm):
    head = lm.model.lm_head
    head.__class__ = Unknown
    return ls.LM(lm.model, tiny.tokenizer(), "unsplit")


def readouts():
    for kind in ("llama", "gemma2", "cohere", "granite", "openai-gpt"):
        yield kind, "own"
    yield "gemma2", "replayed"
    yield "gemma2", "unsplit"


@pytest.fixture(params=list(readouts()), ids="-".join)
def case(request):
    kind, how = request.param
    lm = make(kind, torch.float64)
    if how == "replayed":
        lm.runner.readout = Replayed(lm.runner.anatomy)
    if how == "unsplit":
        lm = unsplit(lm)
    assert lm.runner.readout.splits == (how == "own")
    draw = torch.Generator().manual_seed(3)
    y = torch.randn(40, lm.hidden_size, dtype=torch.float64, generator=draw) * 2
    h = torch.randn(40, lm.hidden_size, dtype=torch.float64, generator=draw) * 2
    mean = torch.rand(lm.vocab_size, generator=draw)
    return lm, plain_head(kind, lm.model), y, h, mean / mean.sum()


def by_hand(head, y, h, ids, added):
    """Σ KL over some columns, and its gradient, by autograd of the definition."""
    h = h.clone().requires_grad_()
    log_p = torch.log_softmax(head(y).detach()[:, ids] + added, -1)
    loss = (log_p.exp() * (log_p - torch.log_softmax(head(h)[:, ids] + added, -1))).sum()
    return loss.detach(), torch.autograd.grad(loss, h)[0]


@pytest.mark.parametrize("columns", [None, 48])
def test_the_gradient_is_that_of_the_kl(case, columns):
    lm, head, y, h, mean = case
    objective = SampledKL(lm, mean, columns, 0)
    drawn = objective.draw(5)
    p = objective.target(y, drawn)
    loss, gradient = objective.gradient(h, p, drawn)
    wanted, pull = by_hand(head, y, h, drawn.ids, drawn.added)
    assert wanted > 1e-3
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-10)
    assert (gradient - pull).abs().max() <= 1e-10 * pull.abs().max()
    assert objective.loss(h, p, drawn).item() == pytest.approx(wanted.item(), rel=1e-10)
    way = torch.randn(h.shape, dtype=h.dtype, generator=torch.Generator().manual_seed(1))
    # RMS norms are in float32 even here
    step, digits = (1e-5, 1e-6) if lm.name == "openai-gpt" else (3e-3, 2e-3)
    slope = (objective.loss(h + step * way, p, drawn) - objective.loss(h - step * way, p, drawn)) / (2 * step)
    assert slope.item() == pytest.approx((gradient * way).sum().item(), rel=digits, abs=digits)


def test_the_cross_entropy_is_that_of_the_next_token(lm64):
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(7, lm64.hidden_size, dtype=torch.float64, generator=draw)
    ids = torch.randint(lm64.vocab_size, (7,), generator=draw)
    objective = SampledKL(lm64, torch.ones(lm64.vocab_size), None, 0, next_token=True)
    loss, gradient = objective.gradient(h, objective.following(ids), objective.draw(0))
    leaf = h.clone().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(lm64.model.lm_head(lm64.model.model.norm(leaf)), ids, reduction="sum")
    (pull,) = torch.autograd.grad(wanted, leaf)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-10)
    assert (gradient - pull).abs().max() <= 1e-10 * pull.abs().max()


def test_the_models_own_states_lose_nothing(case):
    lm, _, y, _, mean = case
    objective = SampledKL(lm, mean, None, 0)
    drawn = objective.draw(0)
    loss, gradient = objective.gradient(y, objective.target(y, drawn), drawn)
    assert abs(loss.item()) < 1e-10
    assert gradient.abs().max() < 1e-12


def test_sampled_sums_are_without_bias_and_keep_the_most_probable(lm64):
    mean = torch.rand(lm64.vocab_size, generator=torch.Generator().manual_seed(0))
    z = torch.randn(lm64.vocab_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    objective = SampledKL(lm64, mean, 32, 0)
    top = set(mean.topk(16).indices.tolist())
    sums = []
    for step in range(3000):
        drawn = objective.draw(step)
        ids = drawn.ids.tolist()
        assert len(set(ids)) == 32
        assert top <= set(ids)
        sums.append((z[drawn.ids] + drawn.added).exp().sum())
    sums = torch.stack(sums)
    error = sums.std() / math.sqrt(len(sums))
    assert error < 0.01 * z.exp().sum()
    assert abs(sums.mean() - z.exp().sum()) < 4 * error
    again = SampledKL(lm64, mean, 32, 0)
    assert torch.equal(again.draw(7).ids, objective.draw(7).ids)
    assert not torch.equal(objective.draw(7).ids, objective.draw(8).ids)
    assert objective.draw(0).weight.shape == (32, lm64.hidden_size)


def test_the_gradient_survives_float16():
    """States a thousand times as large: their gradient is below float16's smallest number."""
    exact, half = make(dtype=torch.float64), make(dtype=torch.float16)
    draw = torch.Generator().manual_seed(0)
    y, h = (torch.randn(20, exact.hidden_size, generator=draw) * 2000 for _ in range(2))
    # near the model's own: small pulls
    h = y + h / 20
    mean = torch.ones(exact.vocab_size)
    found = []
    for lm in (exact, half):
        objective = SampledKL(lm, mean, None, 0)
        drawn = objective.draw(0)
        found.append(objective.gradient(h, objective.target(y, drawn), drawn)[1].double())
    assert found[0].abs().max() < 1e-3
    assert (found[0] - found[1]).norm() < 0.02 * found[0].norm()
