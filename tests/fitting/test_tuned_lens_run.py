"""The run of a fit: units, steps, interruptions, checkpoints and what is refused."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from small_fits import LENGTH, ROOM, SMALL, documents, fitted, make, same, stop_at
from torch import nn

import lenscope as ls
from lenscope.distributed.layer_owners import LayerOwners
from lenscope.distributed.processes import Group
from lenscope.fitting import state_block
from lenscope.fitting import tuned_lens as tuning
from lenscope.fitting import tuned_lens_run as training
from lenscope.fitting.optimizers import Nesterov
from lenscope.fitting.recipes import Recipe
from lenscope.fitting.schedule import Schedule
from lenscope.mappings.mapping import load_mapping
from lenscope.models import precision
from lenscope.text.corpus import Corpus


def test_units_are_the_sizes_of_the_states(lm):
    text = Corpus.open(lm, documents(), length=LENGTH)
    plan = Schedule.of(lm, 500, LENGTH, room=ROOM, per_step=64, ridge=True, low=None)
    owners = LayerOwners(lm.n_layers, Group(), Group())
    run = training.TunedLensRun(lm, text, Recipe(), plan, owners, seed=0, low=None, fast=None, progress=None)
    block = next(run.blocks())
    run.find_sizes(block)
    y = block.last[block.counted].square().mean(0).sqrt()
    for layer, (inputs, outputs) in enumerate(run.units):
        h = block.states[layer][block.counted]
        x = torch.cat([h, torch.full((len(h), 1), float(h.square().mean().sqrt()))], 1).square().mean(0).sqrt()
        assert torch.allclose(inputs, x / x.square().mean().sqrt(), rtol=1e-4)
        assert torch.allclose(outputs, y / y.square().mean().sqrt(), rtol=1e-4)


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


def test_a_process_that_is_killed_can_be_resumed(tmp_path):
    """A real SIGKILL, in the middle of a block, after checkpoints were written."""
    program = (
        "import os, signal, sys, tiny, torch, small_fits as t\n"
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


def test_a_checkpoint_with_other_products_is_refused(tmp_path, begun, lm, monkeypatch):
    was = precision.low_precision(lm)
    monkeypatch.setenv(precision.SWITCH, "1" if was is None else "0")
    with pytest.raises(ls.LenscopeError, match=r"of another run, with (schedule|products)"):
        again(tmp_path, begun, lm)


def test_a_checkpoint_of_the_first_version_is_refused_in_one_line(tmp_path, lm):
    config = {"settings": {}, "number": 1, "weights": "checkpoint-0123456789abcdef.safetensors", "sha256": "0"}
    with pytest.raises(ls.LenscopeError, match=r"is no checkpoint that can be read .*; remove it"):
        again(tmp_path, {"config.json": json.dumps(config).encode()}, lm)


@pytest.fixture(scope="module")
def begun(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun")
    with pytest.raises(KeyboardInterrupt):
        fitted(lm, recipe=SMALL, folder=folder, progress=stop_at(2500))
    place = folder / "checkpoint"
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}


def again(tmp_path, begun, lm, **changed):
    folder = tmp_path / "checkpoint"
    folder.mkdir(exist_ok=True)
    for name, content in begun.items():
        (folder / name).parent.mkdir(exist_ok=True)
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
    tensors, other = sorted(name for name in begun if name.endswith(".safetensors"))[:2]
    config = json.loads(begun["config.json"])
    flipped = begun[tensors][:-9] + bytes([begun[tensors][-9] ^ 1]) + begun[tensors][-8:]
    without = {name: value for name, value in config.items() if name != "step"}
    damaged = [
        {**begun, tensors: begun[tensors][:-100]},
        {**begun, tensors: flipped},
        {**begun, tensors: begun[other]},
        {**begun, tensors.replace("model", "more"): begun[tensors]},
        {name: content for name, content in begun.items() if name != tensors},
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


def test_states_that_are_not_finite_are_refused_with_their_layer(lm, monkeypatch):
    own = state_block.StateBlock.read

    def read(self, batch, rows):
        own(self, batch, rows)
        self.states[2, 5] = torch.inf

    monkeypatch.setattr(state_block.StateBlock, "read", read)
    with pytest.raises(ls.LenscopeError, match="layer 2: tiny-llama has states that are NaN or infinite"):
        fitted(lm)
