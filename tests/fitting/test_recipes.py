"""Every recipe does what it says, and bad ones are refused."""

import json

import pytest
import torch
from small_fits import LENGTH, ROOM, documents, fitted

import lenscope as ls
from lenscope.distributed.layer_owners import LayerOwners
from lenscope.distributed.processes import Group
from lenscope.fitting import tuned_lens_run as training
from lenscope.fitting.recipes import RECIPES, Recipe
from lenscope.fitting.schedule import Schedule
from lenscope.fitting.tuned_lens import fit
from lenscope.text.corpus import Corpus


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


def test_bad_recipes_are_refused(lm):
    with pytest.raises(ls.LenscopeError, match="start 'zero'"):
        Recipe("zero")
    with pytest.raises(ls.LenscopeError, match="columns 1"):
        Recipe(columns=1)
    with pytest.raises(ls.LenscopeError, match=r"empty|no text|no document"):
        fit(lm, [])
    text = Corpus.open(lm, documents(), length=LENGTH)
    plan = Schedule.of(lm, 500, LENGTH, room=ROOM, per_step=64, ridge=True, low=None)
    run = training.TunedLensRun(
        lm, text, Recipe(), plan, LayerOwners(lm.n_layers, Group(), Group()), seed=0, low=None, fast=None, progress=None
    )
    block = next(run.blocks())
    block.counted[:] = False
    with pytest.raises(ls.LenscopeError, match="no position counts"):
        run.find_sizes(block)


def test_every_named_recipe_fits(lm):
    for name in RECIPES:
        assert fitted(lm, tokens=600, recipe=name).report["recipe"]["name"] == name
