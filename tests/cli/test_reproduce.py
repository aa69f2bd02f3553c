"""The command that runs experiments, and the setting they are given: on a tiny model, with an experiment of its own."""

import json
import sys
from dataclasses import replace
from shutil import copytree
from types import ModuleType

import pytest
import tiny
import torch

import lenscope as ls
from lenscope import experiments
from lenscope.experiments.definition import Experiment
from lenscope.experiments.report import Report
from lenscope.experiments.setting import Setting
from lenscope.statistics.intervals import Estimate

TEXT = [" ".join(["the cat sat on a mat", f"number {n}"] * 30) for n in range(60)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny.model("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


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
    assert {p.name for p in folder.iterdir()} == {"report.md", "report.json", "by_layer.parquet"}
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "experiment 'nothing': there are prediction"),
        (["fake", "-d", "missing.jsonl"], "missing.jsonl: there is no such file; fake takes text"),
        (["fake", "--text", __file__], "give it as --data"),
        (["fake", "--target-model", "smollm2-135m"], "fake stays within one model"),
        (["fake", "--lens", "missing/lens/folder"], "missing/lens/folder"),
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


def test_what_is_done_is_kept_for_the_same_run(lm, tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"numbers": torch.arange(6.0).view(2, 3).T}

    def at(**changed):
        return Setting(lm, **{"folder": tmp_path, "seed": 1, **changed})

    first = at().cached("part", make, size=3)
    assert torch.equal(at().cached("part", make, size=3)["numbers"], first["numbers"])
    assert len(calls) == 1
    at().cached("part", make, size=4)
    at(seed=2).cached("part", make, size=4)
    at(quick=True).cached("part", make, size=4)
    assert len(calls) == 4
    # a damaged file is made again
    (weights,) = (tmp_path / "cached" / "part").glob("*.safetensors")
    weights.write_bytes(b"damaged")
    at(quick=True).cached("part", make, size=4)
    assert len(calls) == 5
    Setting(lm).cached("part", make)
    assert len(calls) == 6


def test_a_setting_without_text_has_the_models_own_samples(lm):
    setting = Setting(lm)
    assert setting.corpus.documents is None
    assert setting.settings()["text"] == "samples of tiny-llama"
    assert "lens" not in setting.settings()


def test_a_quick_run_has_short_samples_and_text_as_long_as_ever(lm, tmp_path, monkeypatch):
    monkeypatch.setattr("lenscope.experiments.setting.SHORT", 32)
    whole = Setting(lm).corpus.length
    assert Setting(lm, quick=True).corpus.length == 32 < whole
    (tmp_path / "text.txt").write_text("\n\n".join(TEXT))
    assert Setting(lm, text=[str(tmp_path / "text.txt")], quick=True).corpus.length == whole


def test_a_lens_is_fitted_on_the_text_once_and_kept(lm, tmp_path, monkeypatch):
    monkeypatch.setattr("lenscope.experiments.setting.FITTED", {"quick": 512, "full": 1024})
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": t}) for t in TEXT))
    setting = Setting(lm, text=(str(text),), quick=True, folder=tmp_path)
    made = setting.translators
    assert setting.translators is made
    assert made.report["tokens"] == 512
    assert setting.settings()["lens"] == "fitted on 512 tokens of the text"
    monkeypatch.setattr("lenscope.fitting.state_block.StateBlock.read", None)
    again = Setting(lm, text=(str(text),), quick=True, folder=tmp_path).translators
    assert all(torch.equal(again.weights[pair][0], weights[0]) for pair, weights in made.weights.items())
    fitted = {row for batch in setting.corpus.split(0.1)[0].batches(None) for row in map(tuple, batch.ids.tolist())}
    held = {row for batch in setting.held_out.batches(None) for row in map(tuple, batch.ids.tolist())}
    assert held
    assert not fitted & held
    chosen = ls.Lens(lm, made)
    given = Setting(lm, lens=made)
    assert given.translators is made
    assert given.settings() | {"lens": ""} == given.settings(lens="")
    assert chosen.layers


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
