"""Lenses side by side end to end, on a tiny model; numbers of the report by hand."""

import json

import affine_lens
import numpy as np
import pytest

import lenscope as ls
from lenscope.experiments.jacobian_lens_paper import which_lens as module
from lenscope.experiments.jacobian_lens_paper.prompt_sets import BridgeSwap
from lenscope.experiments.jacobian_lens_paper.thought_tables import ALL
from lenscope.experiments.setting import Setting
from lenscope.mappings.mapping import Affine
from lenscope.text.packing import after_document_mark

WORDS = ["cat", "mat", "France", "Paris", "test", "capital"]
SETS = {
    "typo": ["The cat sat on the", "The mat sat", "This is", "The capital is", "Paris is a"],
    "poetry": ["The cat\nsat", "This is\na test", "Paris is\nthe", "a mat\nis", "The test\nof the"],
    "small": ["The cat"],
}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "sets.jsonl"
    rows = [
        {"set": name, "prompt": prompt, "target": None, "intermediates": [WORDS[n], WORDS[n + 1], "qzxjv"]}
        for name, prompts in SETS.items()
        for n, prompt in enumerate(prompts)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture
def setting(lm, data, tmp_path, monkeypatch):
    for name, size in {"FREQUENCY": 128, "TEXT": 128, "DRAWS": 4}.items():
        monkeypatch.setattr(module, name, {"quick": size, "full": size})
    folder = tmp_path / "out"
    folder.mkdir()
    lenses = {"first": affine_lens.affine(lm, 1), "second": affine_lens.affine(lm, 2)}
    return Setting(lm, data=(data,), lenses=lenses, quick=True, folder=folder)


def test_the_experiment_end_to_end(setting, data):
    lm = setting.lm
    report = module.EXPERIMENT.run(setting)
    names = ["logit lens", "first", "second"]
    used = {row["set"]: row for row in report.tables["words"]}
    assert [used[name]["scored"] for name in SETS] == [5, 5, 1]
    assert used["typo"]["words"] == 15
    assert used["typo"]["words of one token"] == 10
    rows = report.tables["pass@10"]
    assert [(row["set"], row["lens"]) for row in rows] == [(s, n) for s in ("typo", "poetry", ALL) for n in names]
    assert [row["prompts"] for row in rows[::3]] == [5, 5, 10]
    # the published score of a set by Lens.ranks
    lens = ls.Lens(lm, setting.lenses["first"])
    layers = range(1, lm.n_layers)
    shares = []
    for n, text in enumerate(SETS["poetry"]):
        prompt = after_document_mark(lm, [text])[0]
        at = next(i for i, token in enumerate(prompt.tokens) if "\n" in token)
        ranks = []
        for word in WORDS[n : n + 2]:
            forms = [lm.encoder.ids(f) for f in (word, f" {word}", word.capitalize(), f" {word.capitalize()}")]
            ids = sorted({ids[0] for ids in forms if len(ids) == 1})
            ranks.append(lens.ranks(prompt, ids, layers, at).rank.min())
        shares.append(np.mean([rank < 10 for rank in ranks]))
    assert rows[4]["published"].value == pytest.approx(np.mean(shares))
    by_layer = report.tables["by layer"]
    assert [row["layer"] for row in by_layer] == list(layers)
    assert 0 <= by_layer[0]["first: above random words"].value <= 1
    assert by_layer[0]["first: KL"].value > 0
    for said in ("By the published score", "random words", "on other prompts", "At one layer", "Graded", "next token"):
        assert said in report.reading
    assert report.settings["layers"] == f"1–{lm.n_layers - 1}"
    assert report.settings["prompts"] == {"typo": 5, "poetry": 5}
    assert set(report.provenance["lenses"]) == {"first", "second"}
    # the same run again reads what it has
    again = module.EXPERIMENT.run(setting)
    assert again.tables == report.tables
    assert again.reading == report.reading
    report.save(setting.folder)


def test_lenses_without_a_layer_in_common_are_refused(setting):
    f = setting.lenses["first"]
    last = setting.lm.n_layers

    def of(layer):
        return Affine({(layer, last): f.weights[(layer, last)]}, f.source, f.target, f.report)

    other = Setting(setting.lm, data=setting.data, lenses={"a": of(1), "b": of(2)}, quick=True)
    with pytest.raises(ls.LenscopeError, match="lenses logit lens, a, b: have no layer in common between 1 and 3"):
        module.EXPERIMENT.run(other)


def test_sets_without_words_of_one_token_are_told(setting, tmp_path):
    path = tmp_path / "none.jsonl"
    path.write_text(json.dumps({"set": "typo", "prompt": "The cat", "intermediates": ["qzxjv"]}))
    given = Setting(setting.lm, data=(str(path),), lenses=setting.lenses, quick=True)
    with pytest.raises(ls.LenscopeError, match="of no set 4 have a word that is one token of tiny-llama"):
        module.EXPERIMENT.run(given)


def test_prompts_that_cannot_be_swapped_are_told(setting):
    same = BridgeSwap("a", "c", "The cat sat", "cat", "mat", "cat", "Paris")
    tables, (sentence,) = module._swaps(setting, {}, (1, 2, 3), [same])
    assert tables == {}
    assert sentence == "No two-hop prompt can be swapped: of 1 both bridges are the same token."
    assert module._swaps(setting, {}, (1, 2, 3), []) == ({}, [])


def test_which_lens_is_ahead_is_said_by_intervals():
    values = np.stack([np.full(40, 0.5), np.full(40, 0.1), np.tile([0.0, 1.0], 20)])
    said = module._ahead(["a", "b", "c"], values, 0)
    assert said.startswith("the a is ahead of b, and not surely of c (a 0.500 [0.500, 0.500], c 0.500")
    assert module._ahead(["a", "c"], values[[0, 2]], 0).startswith("no lens is surely ahead (a 0.500")
    assert module._ahead(["b", "a"], values[[1, 0]], 0).startswith("the a is ahead of b (a 0.500")


def test_lenses_are_fitted_where_none_is_given(lm, tmp_path, monkeypatch):
    monkeypatch.setattr("lenscope.experiments.setting.SAMPLED", {"quick": 256, "full": 256})
    monkeypatch.setattr(module, "JACOBIAN_TOKENS", 64)
    monkeypatch.setattr(module, "JACOBIAN_LENGTH", 32)
    setting = Setting(lm, folder=tmp_path)
    lenses = module._lenses_compared(setting)
    assert list(lenses) == ["logit lens", "tuned lens", "Jacobian lens"]
    assert lenses["Jacobian lens"].f.report["lens"] == "Jacobian lens"
    assert lenses["Jacobian lens"].f.report["prompts"] == 2
    assert module._layers_of_all(lenses) == (1, 2, 3)
    assert module._missing(setting) == []
    quick = Setting(lm, quick=True)
    assert list(module._lenses_compared(quick)) == ["logit lens", "tuned lens"]
    assert "No Jacobian lens" in module._missing(quick)[0]


def test_a_quick_run_fits_its_tuned_lens_on_less_of_the_models_samples(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAMPLED_QUICKLY", 256)
    monkeypatch.setattr("lenscope.experiments.setting.SAMPLED", {"quick": 512, "full": 512})
    seen = []
    monkeypatch.setattr(module, "_lenses_compared", lambda setting: seen.append(setting) or 1 / 0)
    for quick in (True, False):
        with pytest.raises(ZeroDivisionError):
            module.EXPERIMENT.run(Setting(lm, quick=quick))
    assert [setting.translators.report["tokens"] for setting in seen] == [256, 512]
    assert seen[0].settings()["lens"] == "fitted on 256 tokens of the text"
