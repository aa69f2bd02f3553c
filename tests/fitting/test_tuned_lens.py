"""Fits held to their laws: losses and their gradients, closed forms, steps, what is kept, interruptions, bad input."""

import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lenscope as ls
from lenscope.distributed.processes import Group
from lenscope.fitting import held_out as choosing
from lenscope.fitting import state_block
from lenscope.fitting import tuned_lens as tuning
from lenscope.fitting import tuned_lens_run as training
from lenscope.fitting.closed_form import SecondMoments, with_constant
from lenscope.fitting.optimizers import Muon, Nesterov, orthogonal
from lenscope.fitting.recipes import RECIPES, Recipe
from lenscope.fitting.schedule import Schedule
from lenscope.fitting.tuned_lens import fit
from lenscope.mappings.mapping import load_mapping
from lenscope.measures.sampled_kl import SampledKL
from lenscope.models import precision
from lenscope.models.readout import Replayed
from lenscope.text import corpus
from lenscope.text.corpus import Corpus

TOKENS, LENGTH, ROOM = 4000, 32, 300_000
# readable ones of every kind: norms, no norm, projections, scales, caps, experts, state spaces, parallel, replayed
MANY = (
    *(
        "llama",
        "gemma2",
        "cohere",
        "granite",
        "gpt2",
        "gpt_neox",
        "opt",
        "openai-gpt",
        "bloom",
        "falcon",
        "mamba",
        "phi",
    ),
    *("qwen3", "olmo2", "mixtral", "mpt", "codegen", "starcoder2", "glm4", "nemotron", "gemma3n_text"),
)


def documents(count=150, seed=0):
    draw = random.Random(seed)
    return [[draw.randrange(10, 300) for _ in range(draw.randrange(30, 90))] for _ in range(count)]


def make(kind="llama", dtype=torch.float32, **changed):
    return ls.LM(tiny.model(kind, dtype), tiny.tokenizer(), kind)


def fitted(lm, docs=None, **changed):
    return fit(lm, docs or documents(), **{"tokens": TOKENS, "length": LENGTH, "room": ROOM, **changed})


def weights(lens):
    return {pair: [w.clone() for w in found] for pair, found in lens.weights.items()}


def same(a, b):
    return all(torch.equal(x, y) for pair in a.weights for x, y in zip(a.weights[pair], b.weights[pair], strict=True))


# -- the loss


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


def test_states_know_what_comes_next(lm):
    (batch,) = Corpus.open(lm, documents(), length=LENGTH).batches(2 * LENGTH, 2)
    block = state_block.StateBlock(lm, 2, LENGTH, None)
    block.read(batch)
    assert block.following.tolist() == [*batch.ids[0, 1:].tolist(), -1, *batch.ids[1, 1:].tolist(), -1]


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


# -- closed form and steps


def test_ridges_are_least_squares_whatever_the_size_of_the_states():
    draw = torch.Generator().manual_seed(0)
    h = torch.randn(200, 12, generator=draw) * torch.logspace(-2, 2, 12) + 1
    y = h @ torch.randn(12, 12, generator=draw) / 10 + torch.randn(200, 12, generator=draw)

    def solved(scale):
        constant = float(h.square().mean().sqrt()) * scale
        x = with_constant(h * scale, constant)
        moments = SecondMoments(12, torch.device("cpu"))
        for part in range(0, 200, 64):
            moments.add(x[part : part + 64], y[part : part + 64])
        return x, moments.ridges((1e-3, 1e-1))

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


def test_units_are_the_sizes_of_the_states(lm):
    text = Corpus.open(lm, documents(), length=LENGTH)
    plan = Schedule.of(lm, 500, LENGTH, room=ROOM, per_step=64, ridge=True, low=None)
    run = training.TunedLensRun(lm, text, Recipe(), plan, Group(), seed=0, low=None, fast=None, progress=None)
    block = next(run.blocks())
    run.find_sizes(block)
    y = block.last[block.counted].square().mean(0).sqrt()
    for layer, (inputs, outputs) in enumerate(run.units):
        h = block.states[layer][block.counted]
        x = torch.cat([h, torch.full((len(h), 1), float(h.square().mean().sqrt()))], 1).square().mean(0).sqrt()
        assert torch.allclose(inputs, x / x.square().mean().sqrt(), rtol=1e-4)
        assert torch.allclose(outputs, y / y.square().mean().sqrt(), rtol=1e-4)


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


def test_schedules_read_all_rows_and_step_on_all_tokens(lm):
    for rows, room, per_step in [(1, 1, 10), (125, 300_000, 256), (125, 1, 4000), (63, 1 << 30, 1 << 18), (40, 1, 700)]:
        plan = Schedule.of(lm, rows * 32, 32, room=room, per_step=per_step, ridge=True, low=None)
        assert plan.rows == rows
        assert sum(map(plan.size, range(plan.blocks))) == rows
        assert all(plan.size(n) > 0 for n in range(plan.blocks))
        assert plan.steps >= 1
        assert plan.together * (plan.steps - 1) < plan.all_parts
    big = Schedule.of(lm, 4000, 32, room=300_000, per_step=250, ridge=False, low=None)
    assert big.steps == pytest.approx(4000 / 250, abs=2)


# -- what is fitted


def silence(model):
    """Blocks that change nothing."""
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()


def test_layers_that_are_the_last_lose_nothing():
    model = tiny.model("llama")
    silence(model)
    lens = fitted(ls.LM(model, tiny.tokenizer(), "silent"))
    assert all(layer["kl"] < 1e-5 and layer["kl_logit_lens"] < 1e-5 for layer in lens.report["layers"])


def test_a_known_affine_map_is_recovered():
    model = tiny.model("llama", torch.float64)
    silence(model)
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(32, 32, dtype=torch.float64, generator=draw) / 5
    b = torch.randn(32, dtype=torch.float64, generator=draw)
    model.model.layers[-1].register_forward_hook(
        lambda _m, _a, out: (out[0] @ a.T + b, *out[1:]) if isinstance(out, tuple) else out @ a.T + b
    )
    lens = fitted(ls.LM(model, tiny.tokenizer(), "affine"), recipe="ridge")
    for layer in range(4):
        found = lens.weights[layer, 4]
        assert (found[0] - a).abs().max() < 5e-3
        assert (found[1] - b).abs().max() < 5e-3
        report = lens.report["layers"][layer]
        assert report["kl"] < 1e-4 < 1 < report["kl_logit_lens"]


@pytest.mark.parametrize("kind", MANY)
def test_a_lens_is_never_worse_than_the_logit_lens(kind):
    lens = fitted(make(kind), tokens=1500)
    assert [layer["layer"] for layer in lens.report["layers"]] == list(range(4))
    for layer in lens.report["layers"]:
        assert math.isfinite(layer["kl"])
        assert layer["gain_95"][1] >= 0
    assert all(math.isfinite(loss) for loss in lens.report["loss"])
    if lens.report["layers"][0]["kl_logit_lens"] > 0.1:
        assert lens.report["layers"][0]["kl"] < lens.report["layers"][0]["kl_logit_lens"]


@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 0.01)]
)
def test_the_report_is_what_is_measured_from_the_text_again(dtype, near):
    lm = make(dtype=dtype)
    lens = fitted(lm, tokens=2000)
    held = Corpus.open(lm, documents(), length=LENGTH).split(0.1)[1].split(0.5)[0]
    exact = tiny.model("llama", dtype).double() if dtype != torch.float64 else lm.model
    rows = [row for batch in held.batches(None, 8) for row in zip(batch.row, batch.ids, batch.counted, strict=True)]
    _, every = choosing.spread(LENGTH, choosing.MEASURING)
    counts = torch.arange(LENGTH) % every == every - 1
    rows = [(ids, counted & counts) for n, ids, counted in rows if n < 1024 // LENGTH]
    assert len(rows) > 8
    kept = []
    blocks = lm.model.model.layers
    hooks = [blocks[0].register_forward_pre_hook(lambda _m, args: kept.append(args[0]))]
    hooks += [
        b.register_forward_hook(lambda _m, _a, out: kept.append(out[0] if type(out) is tuple else out)) for b in blocks
    ]
    with torch.no_grad():
        lm.model(torch.stack([ids for ids, _ in rows]))
        for hook in hooks:
            hook.remove()
        states = [h[torch.stack([counted for _, counted in rows])].double() for h in kept]

        def log_probabilities(h):
            return exact.lm_head(exact.model.norm(h)).log_softmax(-1)

        log_p = log_probabilities(states[-1])
        for layer in lens.report["layers"]:
            a, b = (w.double() for w in lens.weights[layer["layer"], 4])
            h = states[layer["layer"]]
            for name, mapped in (("kl", h @ a.T + b), ("kl_logit_lens", h)):
                kl = (log_p.exp() * (log_p - log_probabilities(mapped))).sum(-1).mean().item()
                assert layer[name] == pytest.approx(kl, rel=near)
    assert lens.report["held_out"]["tokens"][1] == len(states[0])


def told(lens):
    """The layers' rows of a report, without None."""
    assert all(value is not None for row in lens.report["layers"] for value in row.values())
    return lens.report["layers"]


@pytest.mark.parametrize("length", [32, 64])
def test_documents_that_choose_and_that_measure_are_apart_and_spread(lm, length):
    held = Corpus.open(lm, documents(400), length=length).split(0.3)[1]
    some = [choosing.choose_rows(part) for part in choosing.halves(held)]
    texts = []
    for part, batches in zip(choosing.halves(held), some, strict=True):
        mine = {tuple(d) for d in part.documents.read(0, 0) if part.part[0] <= corpus._place(d, 0) < part.part[1]}
        texts.append(mine)
        tokens = sum(int(batch.counted.sum()) for batch in batches)
        assert 0.8 * choosing.COUNTED < tokens <= choosing.COUNTED
    assert not texts[0] & texts[1]
    lens = fitted(lm, documents(400), length=length, held_out=0.3)
    assert min(lens.report["held_out"]["documents"]) >= choosing.FEW
    assert "note" not in lens.report["held_out"]


def test_rows_of_held_out_text_are_many_while_few_tokens_are_read():
    for length in (2, 16, 32, 100, 128, 200, 512, 1024, 2048, 8192):
        rows, every = choosing.spread(length)
        assert rows >= 2
        assert rows * length >= choosing.COUNTED
        assert rows * length <= max(choosing.READ, 2 * length)
        assert rows >= min(choosing.ROWS, max(2, choosing.READ // length))
        assert rows * (length // every) <= 2 * choosing.COUNTED


def test_layers_have_intervals_over_documents(lm):
    lens = fitted(lm, documents(400), held_out=0.3)
    wide = 0
    for row in told(lens):
        for name in ("kl", "kl_logit_lens", "gain"):
            low, high = row[f"{name}_95"]
            assert low < row[name] < high
            wide += high - low
        assert row["gain"] == pytest.approx(row["kl_logit_lens"] - row["kl"])
        # of the same documents: the difference is surer than both
        ends = [row[f"{name}_95"][1] - row[f"{name}_95"][0] for name in ("gain", "kl_logit_lens")]
        assert ends[0] < 2 * ends[1]
    few = fitted(lm, documents(60), tokens=600).report["held_out"]
    assert min(few["documents"]) < choosing.FEW
    assert "say too little" in few["note"]


def test_what_measures_decides_nothing(lm, monkeypatch):
    """Held-out text that chooses is made to prefer a lens that is bad: the measuring text says so, and it is kept."""
    own = choosing.HeldOut.sampled_kl

    def misled(self, candidates, constants, objective):
        found = own(self, candidates, constants, objective)
        return found if len(candidates) == 1 else torch.arange(len(candidates), 0, -1)[:, None].expand_as(found) * 1.0

    monkeypatch.setattr(choosing.HeldOut, "sampled_kl", misled)
    wild = Recipe("identity", partial(Muon, lr=9.0, most=9.0), columns=64, tokens_per_step=256)
    lens = fitted(lm, documents(400), held_out=0.3, recipe=wild)
    rows = told(lens)
    assert {row["kept"] for row in rows} == {"steps"}
    assert all(row["kl"] > row["kl_logit_lens"] for row in rows)
    assert lens.report["held_out"]["worse_than_logit_lens"] == [0, 1, 2, 3]


def test_a_seed_fixes_the_lens(lm):
    recipe = Recipe(columns=64, tokens_per_step=256)
    first = fitted(lm, recipe=recipe)
    assert same(first, fitted(lm, recipe=recipe))
    assert not same(first, fitted(lm, recipe=recipe, seed=1))
    # sampled columns do about what all do
    full = fitted(lm, recipe=Recipe(columns=None, tokens_per_step=256))
    for some, every in zip(first.report["layers"], full.report["layers"], strict=True):
        assert some["kl"] == pytest.approx(every["kl"], rel=0.1)


def test_recipes_do_what_they_say(lm):
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    bias = fitted(lm, recipe="bias")
    assert all(torch.equal(a, torch.eye(32)) for a, _ in bias.weights.values())
    assert any(b.any() for _, b in bias.weights.values())
    ridge = fitted(lm, recipe="ridge")
    assert ridge.report["steps"] == 0
    best = fitted(lm)
    for a, b, c in zip(best.report["layers"], ridge.report["layers"], bias.report["layers"], strict=True):
        assert a["kl"] < b["kl"] < b["kl_logit_lens"]
        assert c["gain_95"][1] >= 0
    assert bias.report["layers"][0]["kl"] < 0.95 * bias.report["layers"][0]["kl_logit_lens"]
    assert [r.report["recipe"]["name"] for r in (bias, ridge, best)] == ["bias", "ridge", "muon"]
    assert "Muon(lr=1.0, most=1.0)" in json.dumps(bias.report)
    assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())


def test_a_step_may_take_more_than_a_block(lm, monkeypatch):
    """The published recipe's one large step, in several blocks, in one, and by plain autograd."""
    monkeypatch.setattr(tuning, "low_precision", lambda lm: None)
    several = fitted(lm, recipe="published", tokens=2000)
    one = fitted(lm, recipe="published", tokens=2000, room=1 << 30)
    assert several.report["schedule"]["together"] > 1
    assert several.report["steps"] == one.report["steps"] == 1
    assert several.report["loss"] == pytest.approx(one.report["loss"], rel=1e-5)
    text = Corpus.open(lm, documents(), length=LENGTH).split(0.1)[0]
    batches = list(text.batches(2000, 8))
    states = lm.read([row.tolist() for batch in batches for row in batch.ids])
    counted = torch.cat([b.counted for b in batches])
    gradients, sizes = [], []
    maps = [(nn.Parameter(torch.eye(32)), nn.Parameter(torch.zeros(32))) for _ in range(4)]
    y = states.tensor[:, 4][counted]
    log_p = lm.model.lm_head(lm.model.model.norm(y)).log_softmax(-1).detach()
    constants = []
    for layer, (a, b) in enumerate(maps):
        h = states.tensor[:, layer][counted]
        # x = [h, c]: the bias is c times its weight, with c from the first block, as the fit found it
        constants.append(h.square().mean().sqrt())
        log_q = lm.model.lm_head(lm.model.model.norm(h @ a + b)).log_softmax(-1)
        loss = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        gradients.append(torch.autograd.grad(loss, (a, b)))
        sizes.append(loss.item())
    assert several.report["loss"][0] == pytest.approx(sum(sizes) / 4, rel=1e-4)
    full = [torch.cat([a, (c * b)[None]]) for (a, b), c in zip(gradients, constants, strict=True)]
    factor = min(1.0, 1 / float(torch.stack([g.norm() for g in full]).norm()))
    for layer, (a, _) in enumerate(gradients):
        wanted = torch.eye(32) - 0.1 * 1.9 * factor * a
        assert (one.weights[layer, 4][0].T - wanted).abs().max() < 2e-3 * (wanted - torch.eye(32)).abs().max()
        assert (several.weights[layer, 4][0].T - wanted).abs().max() < 2e-2 * (wanted - torch.eye(32)).abs().max()


# -- interruptions


SMALL = Recipe(columns=64, tokens_per_step=256)


def stop_at(tokens: int) -> Callable[[int, int], None]:
    def progress(done, _):
        if done >= tokens:
            raise KeyboardInterrupt

    return progress


def products(monkeypatch, low):
    """Products in this dtype, whatever the processor is faster at."""
    for name in ("low_precision", "fast_products"):
        monkeypatch.setattr(tuning, name, lambda lm: low)


def checkpoints(report):
    """After how many tokens a run writes checkpoints: where a block ends a step, but for the last block."""
    plan = Schedule(**report["schedule"])
    parts = np.cumsum([plan.parts_of(n) for n in range(plan.blocks - 1)])
    if report["recipe"]["optimizer"] is None:
        parts[:] = 0
    first = plan.warm - 1
    return [(n + 1) * plan.block * LENGTH for n in range(first, plan.blocks - 1) if not parts[n] % plan.together]


@pytest.mark.parametrize("low", [None, torch.bfloat16], ids=["float32 products", "bfloat16 products"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "recipe",
    [
        SMALL,
        Recipe(columns=64, tokens_per_step=256, best=False),
        "ridge",
        "bias",
        Recipe("identity", Nesterov, tokens_per_step=256, columns=None, best=False),
        Recipe("identity", Nesterov, tokens_per_step=1500, columns=None, best=False),
        Recipe("ridge", Nesterov, tokens_per_step=256, columns=None, loss="cross_entropy"),
    ],
    ids=["muon", "muon's last", "ridge", "bias", "nesterov", "steps of several blocks", "cross-entropy from ridge"],
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, recipe, dtype, low):
    if low is not None and dtype != torch.float32:
        pytest.skip("models of other dtypes are read in their own")
    products(monkeypatch, low)
    lm = make(dtype=dtype)
    whole = fitted(lm, recipe=recipe)
    ends = checkpoints(whole.report)
    assert len(ends) > 1
    for n, tokens in enumerate((ends[0], ends[0] + 1, ends[-1] + 1)):
        with pytest.raises(KeyboardInterrupt):
            fitted(lm, recipe=recipe, folder=tmp_path, progress=stop_at(tokens))
        assert (tmp_path / "checkpoint" / "config.json").exists() == (n > 0)
    seen = []
    lens = fitted(lm, recipe=recipe, folder=tmp_path, progress=lambda *at: seen.append(at))
    assert seen[0][0] > ends[-1]
    assert seen[-1] == (4000, 4000)
    assert same(lens, whole)
    assert lens.report["loss"] == whole.report["loss"]
    assert lens.report["layers"] == whole.report["layers"]
    assert not (tmp_path / "checkpoint").exists()
    assert same(load_mapping(tmp_path), whole)


@pytest.mark.parametrize("room", [1, 30_000, 300_000, 1_000_000])
def test_resumed_equals_uninterrupted_however_large_blocks_are(tmp_path, lm, room):
    whole = fitted(lm, recipe=SMALL, room=room)
    ends = checkpoints(whole.report)
    assert ends
    for tokens in (ends[0] + 1, ends[len(ends) // 2] + 1):
        with pytest.raises(KeyboardInterrupt):
            fitted(lm, recipe=SMALL, room=room, folder=tmp_path, progress=stop_at(tokens))
    lens = fitted(lm, recipe=SMALL, room=room, folder=tmp_path)
    assert same(lens, whole)
    assert lens.report["layers"] == whole.report["layers"]


@pytest.mark.parametrize("recipe", ["muon", "ridge", "bias"])
def test_a_lens_reads_the_same_before_and_after_its_file(tmp_path, lm, recipe):
    lens = fitted(lm, recipe=recipe)
    lens.save(tmp_path)
    h = lm.read("The cat sat on the mat.").tensor[0]
    again = load_mapping(tmp_path)
    for layer in range(lm.n_layers):
        assert torch.equal(lens(h[layer], layer, lm.n_layers), again(h[layer], layer, lm.n_layers))
        assert all(w.is_contiguous() for w in lens.weights[layer, lm.n_layers])


def test_a_process_that_is_killed_can_be_resumed(tmp_path):
    """A real SIGKILL, in the middle of a block, after checkpoints were written."""
    program = (
        "import os, signal, sys, tiny, torch, test_tuned_lens as t\n"
        "torch.set_num_threads(1)\n"
        "def progress(done, _):\n"
        "    if done > 2500: os.kill(os.getpid(), signal.SIGKILL)\n"
        "t.fitted(t.make(), recipe=t.SMALL, folder=sys.argv[1], progress=progress)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=env, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert (tmp_path / "checkpoint" / "config.json").exists()
    assert same(fitted(make(), recipe=SMALL, folder=tmp_path), fitted(make(), recipe=SMALL))


@pytest.mark.parametrize("machine", [True, False])
def test_products_in_16_bits_can_be_switched_off_and_on(lm, lm64, monkeypatch, machine):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: machine, raising=False)
    monkeypatch.delenv(precision.SWITCH, raising=False)
    assert precision.fast_products(lm) == precision.low_precision(lm) == (torch.bfloat16 if machine else None)
    monkeypatch.setenv(precision.SWITCH, "1")
    assert precision.fast_products(lm) == precision.low_precision(lm) == torch.bfloat16
    assert precision.fast_products(lm64) is None
    monkeypatch.setenv(precision.SWITCH, "0")
    assert precision.fast_products(lm) is precision.low_precision(lm) is None
    monkeypatch.setenv(precision.SWITCH, "no")
    with pytest.raises(ls.LenscopeError, match="LENSCOPE_FAST_PRODUCTS 'no': set it to 0 or 1"):
        precision.fast_products(lm)


def test_text_is_hashed_a_batch_at_a_time(lm, monkeypatch):
    alive, most = weakref.WeakSet(), 0
    own = Corpus._batch

    def batch(self, *given):
        nonlocal most
        new = own(self, *given)
        alive.add(new)
        most = max(most, len(alive))
        return new

    monkeypatch.setattr(Corpus, "_batch", batch)
    text = Corpus.open(lm, documents(4000), length=LENGTH)
    (*_, last) = text.batches(100_000, 8)
    alive, most = weakref.WeakSet(), 0
    assert text.digest(100_000) == last.digest
    assert 0 < most <= 2


def test_a_checkpoint_with_other_products_is_refused(tmp_path, begun, lm, monkeypatch):
    was = precision.low_precision(lm)
    monkeypatch.setenv(precision.SWITCH, "1" if was is None else "0")
    with pytest.raises(ls.LenscopeError, match=r"of another run, with (schedule|products)"):
        again(tmp_path, begun, lm)


def test_a_checkpoint_of_the_first_version_is_gone_on_with(tmp_path, begun, lm):
    """Its config had no digest in the weights' file, and did not say in which products the steps were taken."""
    config, (weights,) = json.loads(begun["config.json"]), [n for n in begun if n.endswith(".safetensors")]
    del config["settings"]["products"]
    (tmp_path / "weights").write_bytes(begun[weights])
    save_file(load_file(tmp_path / "weights"), tmp_path / "plain")
    content = (tmp_path / "plain").read_bytes()
    config["sha256"] = hashlib.sha256(content).hexdigest()
    for name in ("weights", "plain"):
        (tmp_path / name).unlink()
    files = {weights: content, "config.json": json.dumps(config).encode()}
    assert same(again(tmp_path, files, lm), fitted(lm, recipe=SMALL))


def test_a_finished_lens_is_read_again_and_another_run_does_not_overwrite_it(lm, tmp_path, monkeypatch):
    made = fitted(lm, tokens=600, folder=tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def run(*_):
        raise AssertionError("the model ran")

    monkeypatch.setattr(state_block.StateBlock, "read", run)
    assert same(fitted(lm, tokens=600, folder=tmp_path), made)
    other = make()
    with torch.no_grad():
        other.model.model.layers[0].mlp.down_proj.weight.mul_(2)
    # how many rows a block has depends on the dtype that this processor keeps states in
    block = made.report["schedule"]["block"]
    least = Schedule.of(lm, 600, LENGTH, room=1, per_step=512, ridge=True, low=precision.low_precision(lm)).block
    room = 1 if least != block else 1 << 29
    for model, changed, why in (
        (lm, {"seed": 1}, "corpus|other text|seed 0, not 1"),
        (lm, {"tokens": 900}, "schedule rows"),
        (lm, {"recipe": "ridge"}, "recipe muon, not ridge"),
        (lm, {"recipe": SMALL}, "recipe muon, not own"),
        (lm, {"room": room}, "schedule block"),
        (lm, {"held_out": 0.2}, "other text"),
        (lm, {"docs": documents(seed=4)}, "other text"),
        (lm, {"docs": lambda: iter(documents(seed=4))}, "other text"),
        (other, {}, "another model"),
    ):
        with pytest.raises(ls.LenscopeError, match=rf"holds a lens of another run \(({why}).*; give another folder"):
            fitted(model, **{"tokens": 600, "folder": tmp_path, **changed})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ls.LenscopeError, match=r"has a config.json of something else"):
        fitted(lm, tokens=600, folder=tmp_path)
    (tmp_path / "config.json").write_bytes(before["config.json"])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_two_fits_at_once_do_not_share_a_folder(lm, tmp_path):
    refused = []

    def progress(done, _):
        if not refused:
            other = threading.Thread(target=second)
            other.start()
            other.join()

    def second():
        with pytest.raises(ls.LenscopeError, match="another run is writing to it") as error:
            fitted(make(), tokens=600, folder=tmp_path)
        refused.append(str(error.value))

    made = fitted(lm, tokens=600, folder=tmp_path, progress=progress)
    assert len(refused) == 1
    assert same(load_mapping(tmp_path), made)


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_model_runs(lm, tmp_path, monkeypatch):
    def run(*_):
        raise AssertionError("the model ran")

    monkeypatch.setattr(state_block.StateBlock, "read", run)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ls.LenscopeError, match="cannot be written to"):
        fitted(lm, tokens=600, folder=tmp_path / "file" / "lens")


@pytest.fixture(scope="module")
def begun(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun")
    with pytest.raises(KeyboardInterrupt):
        fitted(lm, recipe=SMALL, folder=folder, progress=stop_at(2500))
    return {path.name: path.read_bytes() for path in (folder / "checkpoint").iterdir()}


def again(tmp_path, begun, lm, **changed):
    folder = tmp_path / "checkpoint"
    folder.mkdir(exist_ok=True)
    for name, content in begun.items():
        (folder / name).write_bytes(content)
    return fitted(lm, **{"recipe": SMALL, "folder": tmp_path, **changed})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"seed": 1}, "corpus seed 0 where this one has 1"),
        ({"tokens": 3500}, "schedule rows 125 where this one has 110"),
        ({"recipe": Recipe(columns=65, tokens_per_step=256)}, "recipe columns 64 where this one has 65"),
        ({"docs": documents(seed=4)}, "corpus sources"),
        ({"room": 600_000}, "schedule block"),
        ({"held_out": 0.2}, "corpus part"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, begun, lm, changed, told):
    with pytest.raises(ls.LenscopeError, match=f"is of another run, with {told}.*; remove it to begin anew") as error:
        again(tmp_path, begun, lm, **changed)
    assert len(str(error.value).splitlines()) == 1


def test_a_checkpoint_of_another_model_is_refused(tmp_path, begun):
    other = ls.LM(tiny.model("llama", seed=1), tiny.tokenizer(), "other")
    with pytest.raises(ls.LenscopeError, match="of another run, with model"):
        again(tmp_path, begun, other)


def test_a_damaged_checkpoint_is_refused(tmp_path, begun, lm):
    tensors = next(name for name in begun if name.endswith(".safetensors"))
    config = json.loads(begun["config.json"])
    without = {name: value for name, value in config.items() if name != "step"}
    damaged = [
        {**begun, tensors: begun[tensors][:-100]},
        {**begun, "config.json": begun["config.json"][:50]},
        {**begun, "config.json": json.dumps(without).encode()},
        {**begun, "config.json": b"[]"},
    ]
    for files in damaged:
        with pytest.raises(ls.LenscopeError, match=r"is no checkpoint that can be read .*; remove it") as error:
            again(tmp_path, files, lm)
        assert len(str(error.value).splitlines()) == 1


def test_a_run_that_was_killed_in_its_first_checkpoint_begins_anew(tmp_path, lm):
    assert same(again(tmp_path, {".checkpoint.123": b"half"}, lm), fitted(lm, recipe=SMALL))


# -- what is refused


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"docs": documents(20)}, "ends after .* 4000 were wanted"),
        ({"docs": [[20, 21, 22]] * 3}, "less than one row of 32 tokens"),
        ({"held_out": 1e-6}, "held-out text: .*less than one row"),
        (
            {"docs": [d[:40] for d in documents() if len(d) >= 40], "held_out": 0.003},
            "held-out text: .*one half of them",
        ),
        ({"held_out": 1.5}, "held_out 1.5: give a fraction"),
        ({"tokens": 0}, "tokens 0"),
        ({"room": 0}, "room 0"),
        ({"length": 1}, "length 1"),
        ({"recipe": "sgd"}, "recipe 'sgd': there are muon, ridge"),
    ],
)
def test_bad_input_is_refused_before_the_model_runs(changed, told, monkeypatch):
    lm = make()

    def run(*_):
        raise AssertionError("the model ran")

    monkeypatch.setattr(state_block.StateBlock, "read", run)
    with pytest.raises(ls.LenscopeError, match=told) as error:
        fitted(lm, **changed)
    assert len(str(error.value).splitlines()) == 1


def test_bad_recipes_are_refused(lm):
    with pytest.raises(ls.LenscopeError, match="start 'zero'"):
        Recipe("zero")
    with pytest.raises(ls.LenscopeError, match="columns 1"):
        Recipe(columns=1)
    with pytest.raises(ls.LenscopeError, match=r"empty|no text|no document"):
        fit(lm, [])
    text = Corpus.open(lm, documents(), length=LENGTH)
    plan = Schedule.of(lm, 500, LENGTH, room=ROOM, per_step=64, ridge=True, low=None)
    run = training.TunedLensRun(lm, text, Recipe(), plan, Group(), seed=0, low=None, fast=None, progress=None)
    block = next(run.blocks())
    block.counted[:] = False
    with pytest.raises(ls.LenscopeError, match="no position counts"):
        run.find_sizes(block)


def test_states_that_are_not_finite_are_refused_with_their_layer(lm, monkeypatch):
    own = state_block.StateBlock.read

    def read(self, batch):
        own(self, batch)
        self.states[2, 5] = torch.inf

    monkeypatch.setattr(state_block.StateBlock, "read", read)
    with pytest.raises(ls.LenscopeError, match="layer 2: tiny-llama has states that are NaN or infinite"):
        fitted(lm)


def test_a_models_own_samples_are_text_too():
    lens = fit(make(), None, tokens=600, length=LENGTH, recipe="ridge")
    assert all(layer["kl"] <= layer["kl_logit_lens"] for layer in lens.report["layers"])
    assert lens.report["text"] is None


def test_every_named_recipe_fits(lm):
    for name in RECIPES:
        assert fitted(lm, tokens=600, recipe=name).report["recipe"]["name"] == name
