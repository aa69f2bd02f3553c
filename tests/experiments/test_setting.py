"""What an experiment keeps is found again for the same inputs alone: each input in turn is changed."""

import copy
import dataclasses
import json
from pathlib import Path

import affine_lens
import pytest
import torch

import lenscope as ls
from lenscope import _version
from lenscope.experiments import setting as settings
from lenscope.experiments.setting import Setting, content
from lenscope.mappings.mapping import Affine
from lenscope.mappings.vector_map import VectorMap
from lenscope.models import provenance
from lenscope.models.edits import Edit, add
from lenscope.models.same_model import model_identity
from lenscope.patchscopes.target_prompts import Target
from lenscope.patchscopes.verbaliser import Verbaliser

NOT_INPUTS = {"folder", "progress"}
TEXT = [" ".join(["the cat sat on a mat", f"number {n}"] * 30) for n in range(60)]


def copied(lm, change=lambda model: None, tokenizer=None, name=None):
    model = copy.deepcopy(lm.model)
    with torch.no_grad():
        change(model)
    return ls.LM(model, tokenizer or lm.tokenizer, name or lm.name)


def other_weights(model):
    model.model.layers[1].mlp.down_proj.weight.mul_(1.01)


def with_template(tokenizer):
    made = copy.deepcopy(tokenizer)
    made.chat_template = "{{ messages[0]['content'] }}"
    return made


def with_token(tokenizer):
    made = copy.deepcopy(tokenizer)
    made.add_tokens(["zebra"])
    return made


def ends(model):
    model.generation_config.eos_token_id = 7


def other_lens(f):
    """The same report, other weights."""
    weights = {pair: (a * 1.001, b) for pair, (a, b) in f.weights.items()}
    return Affine(weights, f.source, f.target, f.report)


def trained(lm):
    """A verbaliser with something of everything."""
    target = Target(lm.prompt("a x"), at=[1], edits=(Edit(0, [0], torch.ones(lm.hidden_size)),))
    f = VectorMap(scale=torch.tensor(3.0), bias=torch.ones(lm.hidden_size))
    return Verbaliser(f, target, 0, model_identity(lm), layers=(2,), center=torch.ones(1, lm.hidden_size))


def rewritten(path, text):
    path.write_text(text)


def variants(lm, root):
    """input → the ways to change it: each takes the arguments of a Setting and changes them, or what they name."""

    def file(name):
        return [
            lambda g: rewritten(Path(g[name][0]), "other content"),
            lambda g: rewritten(Path(g[name][1]) / "a.txt", "other content of a folder"),
            lambda g: rewritten(Path(g[name][1]) / "b.txt", "another file in a folder"),
            lambda g: (Path(g[name][1]) / "a.txt").rename(Path(g[name][1]) / "c.txt"),
            lambda g: g.update({name: g[name][:1]}),
            lambda g: g.update({name: g[name][::-1]}),
        ]

    def given(name, value):
        return lambda g: g.update({name: value() if callable(value) else value})

    models = [
        lambda: copied(lm, other_weights),
        lambda: copied(lm, tokenizer=with_template(lm.tokenizer)),
        lambda: copied(lm, tokenizer=with_token(lm.tokenizer)),
        lambda: copied(lm, ends),
        lambda: copied(lm, lambda m: m.config.update({"_attn_implementation": "eager"})),
        lambda: copied(lm, lambda m: m.config.update({"max_position_embeddings": 32})),
        lambda: ls.LM(copy.deepcopy(lm.model).double(), lm.tokenizer, lm.name),
    ]

    def other(**changed):
        return lambda g: g.update(verbaliser=dataclasses.replace(g["verbaliser"], **changed))

    def asked(**changed):
        return lambda g: other(target=dataclasses.replace(g["verbaliser"].target, **changed))(g)

    return {
        "lm": [given("lm", m) for m in models],
        "target_lm": [given("target_lm", m) for m in [*models, lambda: None]],
        "data": file("data"),
        "text": file("text"),
        "lens": [lambda g: g.update(lens=other_lens(g["lens"])), given("lens", None)],
        "lenses": [
            lambda g: g.update(lenses={"one": other_lens(g["lenses"]["one"])}),
            lambda g: g.update(lenses={"other": g["lenses"]["one"]}),
            given("lenses", {}),
        ],
        "verbaliser": [
            given("verbaliser", None),
            other(map=VectorMap(scale=torch.tensor(3.1), bias=torch.ones(lm.hidden_size))),
            other(target_layer=1),
            other(op=add),
            other(stop=(".",)),
            other(layers=(1,)),
            other(center=None),
            other(center=torch.zeros(1, lm.hidden_size)),
            asked(prompt=lm.prompt("the x")),
            asked(at=[0]),
            asked(below="none"),
            asked(edits=()),
            asked(edits=(Edit(0, [0], torch.zeros(lm.hidden_size)),)),
        ],
        "quick": [given("quick", True)],
        "sampled_quickly": [given("sampled_quickly", 256)],
        "seed": [given("seed", 1)],
    }


def test_every_input_of_a_setting_is_changed_below(lm, tmp_path):
    inputs = {field.name for field in dataclasses.fields(Setting)} - NOT_INPUTS
    assert set(variants(lm, tmp_path)) == inputs, "give ways to change what is new, and put it into Setting._key"


@pytest.mark.parametrize("name", sorted({f.name for f in dataclasses.fields(Setting)} - NOT_INPUTS))
def test_a_changed_input_is_a_new_value(lm, tmp_path, name):
    for number, change in enumerate(variants(lm, tmp_path)[name]):
        root = tmp_path / str(number)
        given = {"lm": lm, "target_lm": copied(lm), "lens": affine_lens.affine(lm), "folder": root / "out"}
        given["lenses"] = {"one": affine_lens.affine(lm, 1)}
        given["verbaliser"] = trained(lm)
        for kind in ("data", "text"):
            (root / kind).mkdir(parents=True)
            (root / kind / "a.txt").write_text("the cat")
            (root / f"{kind}.txt").write_text("sat on the mat")
            given[kind] = (str(root / f"{kind}.txt"), str(root / kind))
        calls = []

        def make(calls=calls):
            calls.append(1)
            return {"x": torch.ones(1)}

        for _ in range(2):
            Setting(**given).cached("part", make, size=1)
            assert len(calls) == 1
        before = Setting(**given).place("part")
        change(given)
        Setting(**given).cached("part", make, size=1)
        assert len(calls) == 2, f"{name}: change {number} was not seen"
        assert Setting(**given).place("part") != before


def test_names_settings_and_versions_are_inputs(lm, tmp_path, monkeypatch):
    keys = set()

    def key(name="part", **own):
        keys.add(Setting(lm, folder=tmp_path)._key(name, own))

    key()
    key("other")
    key(size=1)
    key(size=2)
    count = 4
    for module in (torch, provenance.transformers):
        with monkeypatch.context() as patched:
            patched.setattr(module, "__version__", "0")
            key()
        count += 1
    with monkeypatch.context() as patched:
        patched.setattr(provenance, "__version__", f"{_version.__version__}.1")
        key()
    with monkeypatch.context() as patched:
        patched.setattr(settings, "version", lambda name: "0")
        key()
    with monkeypatch.context() as patched:
        patched.setenv("LENSCOPE_FAST_PRODUCTS", "0")
        key()
        patched.setenv("LENSCOPE_FAST_PRODUCTS", "1")
        key()
    key()
    # with and without products, one of which is what the machine does
    assert len(keys) == count + 3


def test_what_a_model_without_a_hash_gives_is_not_kept(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "provenance", lambda lm: {"model_hash": None})
    calls = []
    for _ in range(2):
        Setting(lm, folder=tmp_path).cached("part", lambda: {"x": torch.ones(1) * len(calls.append(1) or calls)})
    assert len(calls) == 2
    assert Setting(lm, folder=tmp_path).place("part") is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/b", "a\\b", "..", "", "con", "x" * 3000, "\0", "東京"])
def test_names_from_files_stay_in_the_folder(lm, tmp_path, name):
    inside = tmp_path / "deep" / "out"
    inside.mkdir(parents=True)
    (tmp_path / "x").write_text("mine")
    setting = Setting(lm, folder=inside)
    assert setting.cached(name, lambda: [1, name], of=name) == [1, name]
    assert setting.cached(name, lambda: None, of=name) == [1, name]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "x"]
    assert [p.name for p in inside.iterdir()] == ["cached"]
    (place,) = (inside / "cached").iterdir()
    assert place.is_dir()
    assert setting.place(name).parent == inside


def test_a_folder_is_known_by_all_its_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("one")
    first = content(tmp_path)
    assert list(first) == ["a/x.txt"]
    (tmp_path / "a" / "x.txt").write_text("two")
    assert content(tmp_path) != first
    assert content(tmp_path / "missing") is None


def test_samples_of_a_changed_model_are_written_anew(lm):
    model = copied(lm)
    corpus = ls.Corpus.open(model, length=16)
    first = [batch.ids.tolist() for batch in corpus.batches(64, 2)]
    assert [batch.ids.tolist() for batch in corpus.batches(64, 2)] == first
    with torch.no_grad():
        model.model.lm_head.weight.copy_(model.model.lm_head.weight.flip(0))
    assert [batch.ids.tolist() for batch in corpus.batches(64, 2)] != first


def test_one_folder_with_two_lenses_shows_the_numbers_of_each(lm, tmp_path):
    """As the experiments call it: what is kept of lens A is not shown as that of lens B, of the same report."""
    a = affine_lens.affine(lm)
    b = other_lens(a)
    assert json.dumps(a.report) == json.dumps(b.report)

    def shown(lens):
        own = Setting(lm, lens=lens, folder=tmp_path)
        return own.cached("sum", lambda: {"x": sum(w[0].sum() for w in lens.weights.values())[None]})["x"].item()

    assert shown(a) != shown(b)
    assert shown(a) == sum(w[0].sum() for w in a.weights.values()).item()


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
    monkeypatch.setattr("lenscope.experiments.setting.SAMPLED_LENGTH", 32)
    whole = Setting(lm).corpus.length
    assert Setting(lm, quick=True).corpus.length == 32 < whole
    (tmp_path / "text.txt").write_text("\n\n".join(TEXT))
    assert Setting(lm, text=[str(tmp_path / "text.txt")], quick=True).corpus.length == whole


def test_held_out_samples_are_those_that_the_fit_has_measured_on(lm, monkeypatch):
    monkeypatch.setattr("lenscope.experiments.setting.SAMPLED", {"quick": 256, "full": 256})
    setting = Setting(lm, quick=True)
    assert setting.translators.report["tokens"] == 256
    monkeypatch.setattr("lenscope.text.corpus.sample", None)
    assert len(list(setting.held_out.batches(2 * setting.corpus.length, 1))) == 2
    fresh = Setting(lm, quick=True)
    with pytest.raises(TypeError):
        next(iter(fresh.held_out.batches(64, 1)))


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
