"""The experiment on verbalisers end to end on a tiny model, with a map of its own; numbers of the report by hand."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

import lenscope as ls
from lenscope.experiments.selfie_adapters_paper import verbaliser as module
from lenscope.experiments.selfie_adapters_paper import verbaliser_tables as tables
from lenscope.experiments.setting import Setting
from lenscope.mappings.vector_map import VectorMap
from lenscope.models.same_model import model_identity
from lenscope.patchscopes.control_runs import CONTROLS, UNTRAINED, VECTOR
from lenscope.patchscopes.label_likelihoods import label_log_likelihoods
from lenscope.patchscopes.target_prompts import Target
from lenscope.patchscopes.verbaliser import Verbaliser
from lenscope.statistics.intervals import bootstrap
from lenscope.tasks.label_recall import label_search
from lenscope.text.topic_vectors import topic_vectors

WORDS = ["cat", "mat", "sat", "test", "France", "Paris", "capital", "tokenizer"]


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    """Intervals are not looked at here."""
    monkeypatch.setattr("lenscope.statistics.estimates.bootstrap", partial(bootstrap, resamples=10))
    monkeypatch.setattr(tables, "bootstrap", partial(bootstrap, resamples=10))


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "topics.txt"
    path.write_text("\n".join(f"{a} {b}" for a in WORDS for b in [*WORDS, "is"][:9]))
    other = tmp_path / "entities.jsonl"
    other.write_text("\n".join(json.dumps({"name": f"{a} of", "description": "a thing"}) for a in WORDS))
    return str(path), str(other)


@pytest.fixture
def setting(lm, data, tmp_path, monkeypatch):
    for name, size in {"TRAIN": 24, "CHOOSE": 8, "REPORT": 12, "OF_A_KIND": 8, "TOKENS": 3}.items():
        monkeypatch.setattr(module, name, {"quick": size, "full": size})
    # the tiny model's context has no room for the usual question
    target = Target("x is x", at="x", every=True)
    prompt, places = target.resolve(lm)
    bias = torch.linspace(-2, 2, lm.hidden_size)
    own = Verbaliser(
        VectorMap(scale=torch.tensor(3.0), bias=bias),
        Target(prompt, at=list(places)),
        0,
        model_identity(lm),
        layers=(2,),
    )
    folder = tmp_path / "out"
    folder.mkdir()
    return Setting(lm, data=data, quick=True, folder=folder, verbaliser=own)


def test_the_experiment_end_to_end(setting):
    lm = setting.lm
    report = module.EXPERIMENT.run(setting)
    likely = {row["way"]: row for row in report.tables["likelihood"]}
    assert list(likely) == [VECTOR, *CONTROLS]
    parts = module.divide(module.load_kinds(setting.data), train=24, chosen=8, reported=12, of_a_kind=8, seed=0)
    assert not {*parts.train} & {*parts.reported, *parts.chosen}
    # vectors are states less the mean of those that are trained on
    labels = [*parts.train, *parts.reported]
    read = topic_vectors(lm, labels, 2)
    states = (read.vectors + read.mean)[:, 0]
    vectors = states[24:] - states[:24].mean(0)
    scope = setting.verbaliser.scope(lm)
    table = label_log_likelihoods(scope, vectors, parts.reported)[1]
    # states are read in batches of other prompts, in float32
    assert likely[VECTOR]["ln p per token"].value == pytest.approx(table.mean(), abs=1e-4)
    plain = ls.Patchscope(lm, setting.verbaliser.target, layers=0)
    table = label_log_likelihoods(plain, vectors, parts.reported)[1]
    assert likely[UNTRAINED]["ln p per token"].value == pytest.approx(table.mean(), abs=1e-4)
    # what is said, and where its label is among those that are searched
    words = [cell.text for cell in scope.generate(vectors, max_new_tokens=3, stop='"')]
    search = label_search(lm, parts.searched(()))
    at = search.layers.index(int(report.settings["searched"].partition("layer ")[2].partition(",")[0]))
    ranks = search.ranks(words, parts.reported)[:, at]
    rows = {row["way"]: row for row in report.tables["words"]}
    assert rows[VECTOR]["recall@10"].value == pytest.approx((ranks < 10).mean())
    assert rows["chance"]["recall@10"].value == pytest.approx(10 / len(search.labels))
    assert [row["weight"] for row in report.tables["contrast"]] == [0, 0.5]
    assert report.tables["contrast"][0]["less plain, @10"] == (0, 0, 0)
    assert [row["kind"] for row in report.tables["kinds never seen"]] == ["entities"]
    assert [row["map"] for row in report.tables["shapes"]] == ["affine"]
    assert report.tables["shapes"][0]["numbers"] == lm.hidden_size + 1
    for sentence in ("another topic's vector", "random vector", "bias alone", "as text", "Never seen, entities"):
        assert sentence in report.reading
    again = module.EXPERIMENT.run(setting)
    assert again.tables == report.tables
    report.save(setting.folder)


def test_a_map_is_trained_where_none_is_given(lm, data, monkeypatch):
    asked = []

    def fit(lm, vectors, labels, **how):
        asked.append((vectors.shape, len(labels), how["shape"], how["layers"], how["center"].shape))
        return how["shape"]

    monkeypatch.setattr(module, "fit_verbaliser", fit)
    train = module._Vectors(("a", "b"), torch.zeros(2, lm.hidden_size))
    maps = module._maps(Setting(lm), train, 2, torch.zeros(lm.hidden_size))
    assert maps == {shape: shape for shape in module.SHAPES["full"]}
    assert asked[0] == ((2, 1, lm.hidden_size), 2, "affine", (2,), (lm.hidden_size,))


def test_a_verbaliser_of_several_layers_is_refused(setting):
    several = replace(setting.verbaliser, layers=(1, 2))
    with pytest.raises(ls.LenscopeError, match="was trained on layers 1, 2, and this experiment reads one"):
        module.EXPERIMENT.run(replace(setting, verbaliser=several))
