"""The command that runs experiments: on a tiny model, with an experiment of its own."""

import json
import sys
from dataclasses import replace
from shutil import copytree
from types import ModuleType

import pytest
import torch

import lenscope as ls
from lenscope import experiments
from lenscope.experiments.definition import Experiment
from lenscope.experiments.report import Report
from lenscope.experiments.setting import Setting
from lenscope.mappings.mapping import mapping_hash
from lenscope.mappings.vector_map import VectorMap
from lenscope.models.same_model import model_identity
from lenscope.patchscopes.target_prompts import Target
from lenscope.patchscopes.verbaliser import Verbaliser
from lenscope.statistics.intervals import Estimate

TEXT = [" ".join(["the cat sat on a mat", f"number {n}"] * 30) for n in range(60)]


@pytest.fixture
def given(monkeypatch):
    """An experiment that tells what it was given, and the settings it was given."""
    seen: list[Setting] = []

    def made(setting: Setting) -> Report:
        seen.append(setting)
        rows = [{"layer": 0, "value": Estimate(1.0, 0.5, 1.5), "what": "a | b"}]
        return Report("fake", setting.lm.name, "a claim", "a reading", {"by layer": rows}, settings=setting.settings())

    module = ModuleType("fake")
    module.EXPERIMENT = Experiment(data="text", run=made)
    for listed in (experiments.EXPERIMENTS, experiments.PAPERS["patchscopes_paper"]):
        monkeypatch.setitem(listed, "fake", "what it shows")
    monkeypatch.setitem(sys.modules, "lenscope.experiments.patchscopes_paper.fake", module)
    return seen


def test_without_a_name_the_experiments_are_listed(run):
    status, out, _ = run("reproduce")
    assert status == 0
    for name in experiments.EXPERIMENTS:
        assert name in out
    assert json.loads(run("reproduce", "--json")[1]) == experiments.EXPERIMENTS


def test_every_experiment_says_what_it_takes_and_claims():
    for name in experiments.EXPERIMENTS:
        found = experiments.experiment(name)
        assert found.data
        assert callable(found.run)


def test_a_report_is_printed_and_saved(run, given, model, tmp_path):
    folder = tmp_path / "out"
    status, out, err = run("reproduce", "fake", "-m", model, "--quick", "-o", str(folder))
    assert status == 0
    assert "a claim" in out
    assert "1.00 [0.50, 1.50]" in out
    assert str(folder) in err
    assert {p.name for p in folder.iterdir()} == {"report.md", "report.html", "report.json", "by_layer.parquet"}
    assert given[0].quick
    status, out, _ = run("reproduce", "fake", "-m", model, "-o", str(folder), "--json")
    assert json.loads(out)["tables"] == {"by layer": [{"layer": 0, "value": [1.0, 0.5, 1.5], "what": "a | b"}]}
    assert not given[1].quick


def test_another_model_to_patch_into(run, given, model, tmp_path, monkeypatch):
    module = sys.modules["lenscope.experiments.patchscopes_paper.fake"]
    monkeypatch.setattr(module, "EXPERIMENT", replace(module.EXPERIMENT, across=True))
    for name in ("first", "second"):
        copytree(model, tmp_path / name)
    folder = str(tmp_path / "out")
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    assert run("reproduce", "fake", "-m", first, "--target-model", second, "-o", folder, "--json")[0] == 0
    assert given[0].target_lm.name == "second"
    assert given[0].lm.name == "first"
    assert given[0].settings()["target model"] == "second"
    assert run("reproduce", "fake", "-m", first, "-o", folder)[0] == 0
    assert given[1].target_lm is None
    assert "target model" not in given[1].settings()


def test_several_lenses_by_name(run, given, model, tmp_path, monkeypatch):
    module = sys.modules["lenscope.experiments.patchscopes_paper.fake"]
    monkeypatch.setattr(module, "EXPERIMENT", replace(module.EXPERIMENT, data="questions", lenses=True))
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXT))
    lens, out = str(tmp_path / "lens"), str(tmp_path / "out")
    assert run("fit", "-m", model, "--data", str(text), "--tokens", "256", "--length", "32", "-o", lens)[0] == 0
    command = ["reproduce", "fake", "-m", model, "-o", out]
    assert run(*command, "--lens", lens, "--lens", f"other={lens}", "--text", str(text))[0] == 0
    assert list(given[-1].lenses) == ["lens", "other"]
    assert given[-1].lens is None
    assert given[-1].text == (str(text),)
    assert given[-1].settings()["lens"].startswith("given: lens, other")
    assert run(*command)[0] == 0
    assert given[-1].lenses == {}
    status, _, err = run(*command, "--lens", lens, "--lens", lens)
    assert status == 2
    assert "give each lens a name of its own" in err
    monkeypatch.setattr(module, "EXPERIMENT", replace(module.EXPERIMENT, lenses=False))
    assert run(*command, "--lens", lens)[0] == 0
    assert given[-1].lenses == {}
    assert given[-1].lens is not None


def test_a_trained_verbaliser(run, given, model, tmp_path, monkeypatch):
    module = sys.modules["lenscope.experiments.patchscopes_paper.fake"]
    lm = ls.load(model)
    prompt = lm.prompt("x is x")
    f = VectorMap(scale=torch.tensor(3.0), bias=torch.ones(lm.hidden_size))
    Verbaliser(f, Target(prompt, at=[0]), 0, model_identity(lm), layers=(2,)).save(tmp_path / "trained")
    command = ["reproduce", "fake", "-m", model, "-o", str(tmp_path / "out"), "--verbaliser"]
    status, _, err = run(*command, str(tmp_path / "trained"))
    assert (status, given) == (2, [])
    assert "fake has no row of a trained map" in err
    monkeypatch.setattr(module, "EXPERIMENT", replace(module.EXPERIMENT, verbaliser=True))
    assert run(*command, str(tmp_path / "trained"))[0] == 0
    assert given[-1].verbaliser.layers == (2,)
    assert mapping_hash(given[-1].verbaliser.map) == mapping_hash(f)
    assert run(*command[:-1])[0] == 0
    assert given[-1].verbaliser is None
    status, _, err = run(*command, str(tmp_path / "none"))
    assert status == 2
    assert "no such folder" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "experiment 'nothing': there are prediction"),
        (["fake", "-d", "missing.jsonl"], "missing.jsonl: there is no such file; fake takes text"),
        (["fake", "--text", __file__], "give it as --data"),
        (["fake", "--target-model", "smollm2-135m"], "fake stays within one model"),
        (["fake", "--lens", "missing/lens/folder"], "missing/lens/folder"),
        (["fake", "--lens", "a", "--lens", "b"], "fake reads through one lens, not 2; give one"),
    ],
)
def test_mistakes_are_one_line(run, given, model, tmp_path, arguments, said):
    status, out, err = run("reproduce", *arguments, "-m", model, "-o", str(tmp_path / "out"))
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_an_interrupted_experiment_says_what_stays(run, model, tmp_path, monkeypatch):
    def stopped(setting: Setting) -> Report:
        raise KeyboardInterrupt

    module = ModuleType("fake")
    module.EXPERIMENT = Experiment(data="text", run=stopped)
    for listed in (experiments.EXPERIMENTS, experiments.PAPERS["patchscopes_paper"]):
        monkeypatch.setitem(listed, "fake", "what it shows")
    monkeypatch.setitem(sys.modules, "lenscope.experiments.patchscopes_paper.fake", module)
    status, _, err = run("reproduce", "fake", "-m", model, "-o", str(tmp_path))
    assert status == 130
    assert "goes on from there" in err


def test_a_lens_that_has_seen_what_is_held_out_is_told_of(run, given, model, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXT))
    lens, out = str(tmp_path / "lens"), str(tmp_path / "out")
    fitted = ["fit", "-m", model, "--data", str(text), "--tokens", "256", "--length", "32", "-o", lens]
    assert run(*fitted, "--held-out", "0.1")[0] == 0
    for seed, seen in (("0", False), ("1", True)):
        status, _, err = run(
            "reproduce", "fake", "-m", model, "-d", str(text), "--lens", lens, "--seed", seed, "-o", out
        )
        assert status == 0
        assert ("some of the text that is held out" in err) is seen
        assert given[-1].translators is given[-1].lens
        assert ("fitted on some" in given[-1].settings()["lens"]) is seen
