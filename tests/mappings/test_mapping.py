"""Mappings: called as they take it, refused where they do not belong, saved equals loaded."""

import re
from pathlib import Path

import pytest
import safetensors.torch
import tiny
import torch
from char_tokenizers import char_model
from handmade import rewritten
from loaded_again import lens_for, named
from torch import nn

import lenscope as ls
from lenscope.mappings import mapping as mappings
from lenscope.mappings.mapping import Affine, LowRank, Scale, load_mapping
from lenscope.models import same_model


@pytest.fixture(scope="module")
def other():
    return char_model()


@pytest.fixture(scope="module")
def fitted(lm64, other):
    """A mapping between two models, from three layers to two, with a report as fits have it."""
    draw = torch.Generator().manual_seed(0)
    source, target = (same_model.model_identity(lm) for lm in (lm64, other))
    pairs = [(layer, target_layer) for layer in (0, 2, 4) for target_layer in (1, 3)]
    weights = {pair: (torch.randn(48, 32, generator=draw), torch.randn(48, generator=draw)) for pair in pairs}
    return Affine(weights, source, target, {"lens": "shortcut", "r2": [0.5, 0.25]})


# -- calling


def test_a_mapping_is_called_with_as_many_arguments_as_it_takes():
    h = torch.ones(2, 3)
    assert mappings.call_mapping(lambda h: h + 1, h, 3, 9).equal(h + 1)
    assert mappings.call_mapping(lambda h, layer: h * layer, h, 3, 9).equal(h * 3)
    assert mappings.call_mapping(lambda h, s, t: h * t - s, h, 3, 9).equal(h * 6)
    assert mappings.call_mapping(lambda *args: args[0] * args[2], h, 3, 9).equal(h * 9)
    assert mappings.call_mapping(lambda h, gain=5.0: h * gain, h, 3, 9).equal(h * 5)
    assert mappings.call_mapping(nn.Linear(3, 4), h, 3, 9).shape == (2, 4)
    assert mappings.call_mapping(torch.tanh, h, 3, 9).equal(h.tanh())
    assert mappings.call_mapping(mappings.identity, h, 3, 9) is h


@pytest.mark.parametrize(
    ("f", "remedy"),
    [
        *((f, "or f(h, layer, target_layer)") for f in (lambda: 0, lambda a, b, c, d: a, lambda h, *, gain: h)),
        ("no function", "f(h, layer, target_layer), or what load_lens reads"),
    ],
)
def test_other_arities_are_refused(f, remedy):
    with pytest.raises(ls.LenscopeError, match=re.escape("give f(h), f(h, layer)") + ".*" + re.escape(remedy)):
        mappings.argument_count(f)


MODEL = {"model": "m", "model_hash": None, "hidden_size": 3, "n_layers": 4}
WIDE = {**MODEL, "hidden_size": 5}


def test_each_kind_computes_its_formula_in_the_dtype_it_says():
    draw = torch.Generator().manual_seed(0)
    h, u, v = (torch.randn(2, n, generator=draw) for n in (3, 3, 3))
    a, b = torch.randn(5, 3, generator=draw), torch.randn(3, generator=draw)
    affine = Affine({(1, 2): (a,)}, MODEL, WIDE)
    torch.testing.assert_close(mappings.call_mapping(affine, h, 1, 2), torch.stack([a @ x for x in h]))
    torch.testing.assert_close(Scale({None: (2.0, b)}, MODEL, MODEL)(h, 0, 3), 2 * h + b)
    low = LowRank({(1, 2): (u.T, v.T, b)}, MODEL, MODEL)(h, 1, 2)
    torch.testing.assert_close(low, torch.stack([x + u.T @ (v @ x) + b for x in h]))
    for given, back in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert affine(h.to(given), 1, 2).dtype == back


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Affine({}, MODEL, WIDE), "has no weights"),
        (lambda: Affine({(1, 2): (torch.ones(3, 5),)}, MODEL, WIDE), "weights of shapes"),
        (lambda: Affine({(1, 2): (torch.full((5, 3), torch.nan),)}, MODEL, WIDE), "NaN or infinity"),
        (lambda: Affine({(1, 5): (torch.ones(5, 3),)}, MODEL, WIDE), "m has layers 0–4"),
        (lambda: Affine({(-1, 2): (torch.ones(5, 3),)}, MODEL, WIDE), "m has layers 0–4"),
        (lambda: Affine({(1, 2): (torch.ones(5, 3),)}, {}, WIDE), "must name model"),
        (lambda: Affine({(1, 2): (torch.ones(5, 3),)}, MODEL, WIDE, {"r2": float("nan")}), "JSON"),
        (lambda: Scale({None: (1.0,)}, MODEL, WIDE), "needs equal ones"),
        (lambda: LowRank({(1, 2): (torch.ones(3, 2), torch.ones(3, 1))}, MODEL, MODEL), "weights of shapes"),
    ],
)
def test_wrong_weights_are_refused(make, told):
    with pytest.raises(ls.LenscopeError, match=told):
        make()


def test_pairs_and_sizes_that_were_not_fitted_are_refused():
    affine = Affine({(1, 2): (torch.ones(5, 3),)}, MODEL, WIDE)
    with pytest.raises(ls.LenscopeError, match=r"pair \(3, 4\): this mapping was fitted for the pairs \(1, 2\)"):
        affine(torch.ones(3), 3, 4)
    with pytest.raises(ls.LenscopeError, match="states of size 5"):
        affine(torch.ones(5), 1, 2)


def test_a_mapping_of_one_model_leaves_a_layer_where_it_is():
    h = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    lens = Affine({(layer, 4): (torch.full((3, 3), layer + 1.0),) for layer in (0, 2)}, MODEL, MODEL)
    for layer in range(5):
        assert lens(h, layer, layer).equal(h)
    assert lens(h.bfloat16(), 4, 4).dtype == torch.float32
    torch.testing.assert_close(lens(h, 2, 4), 3 * h.sum(-1, keepdim=True).expand(2, 3))
    assert lens.layers(4) == (0, 2, 4)
    assert lens.layers(3) == (3,)
    # its own weights for that pair, or those for all pairs, come first
    assert Affine({(4, 4): (2 * torch.eye(3),)}, MODEL, MODEL)(h, 4, 4).equal(2 * h)
    assert Scale({None: (2.0,)}, MODEL, MODEL)(h, 4, 4).equal(2 * h)
    assert Scale({None: (2.0,)}, MODEL, MODEL).layers(1) == (0, 1, 2, 3, 4)
    # and two models have no layer in common
    between = Affine({(0, 4): (torch.eye(3),)}, MODEL, {**MODEL, "model": "n"})
    assert between.layers(4) == (0,)
    with pytest.raises(ls.LenscopeError, match=r"pair \(4, 4\)"):
        between(h, 4, 4)


# -- belonging


def test_check_refuses_another_pair_of_models(fitted, lm64, other):
    fitted.check(lm64, other)
    fitted.check(None, other)
    for source, target in ((other, lm64), (None, lm64), (other, other)):
        with pytest.raises(ls.LenscopeError, match=r"mapping: fitted from tiny-llama .* to tiny-gpt2 ") as told:
            fitted.check(source, target)
        assert "\n" not in str(told.value)
    # the same name and sizes, other weights
    stranger = ls.LM(tiny.model("llama", dtype=torch.float64, seed=5), tiny.tokenizer(), "tiny-llama")
    with pytest.raises(ls.LenscopeError, match="used from tiny-llama"):
        fitted.check(stranger, other)
    # names and sizes are no evidence
    unhashed = Affine(fitted.weights, {**fitted.source, "model_hash": None}, fitted.target)
    with pytest.raises(ls.LenscopeError, match="weights not known"):
        unhashed.check(lm64, other)


def test_a_lens_is_moved_to_a_fine_tuned_model_on_purpose(other, tmp_path):
    base, tuned = named(torch.float32), named(torch.float32, seed=5)
    again = named(torch.float32, seed=6)
    lens = lens_for(base)
    with pytest.raises(ls.LenscopeError, match=r"transferred\(lm\)") as told:
        lens.check(tuned, tuned)
    assert "\n" not in str(told.value)
    moved = lens.transferred(tuned)
    moved.check(tuned, tuned)
    with pytest.raises(ls.LenscopeError):
        moved.check(base, base)
    lens.check(base, base)
    assert moved.report["transferred_from"] == [lens.source]
    assert all(
        a.equal(b) for pair in lens.weights for a, b in zip(lens.weights[pair], moved.weights[pair], strict=True)
    )
    twice = moved.transferred(again)
    assert twice.report["transferred_from"] == [lens.source, moved.source]
    twice.save(tmp_path)
    equal(load_mapping(tmp_path), twice)
    h = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    assert twice(h, 4, 4).equal(h)
    with pytest.raises(ls.LenscopeError, match="is of another size"):
        lens.transferred(other)
    with pytest.raises(ls.LenscopeError, match="only one from a model to itself"):
        Affine({(0, 1): (torch.eye(32),)}, lens.source, moved.source).transferred(base)


# -- files


def equal(a, b):
    assert type(a) is type(b)
    assert (a.source, a.target, a.report, list(a.weights)) == (b.source, b.target, b.report, list(b.weights))
    for pair, found in a.weights.items():
        for x, y in zip(found, b.weights[pair], strict=True):
            assert x.dtype == y.dtype == torch.float32
            assert x.equal(y)


def test_saved_equals_loaded(fitted, tmp_path):
    shared = torch.ones(3, 2)
    scale = Scale({None: (0.5,), (1, 2): (2.0, torch.ones(3))}, MODEL, MODEL, {"r2": 0.5})
    for n, mapping in enumerate([fitted, scale, LowRank({(0, 0): (shared, shared)}, MODEL, MODEL)]):
        folder = tmp_path / "new" / str(n)
        for _ in range(2):
            mapping.save(folder)
            equal(load_mapping(folder), mapping)
        assert sorted(p.name for p in folder.iterdir()) == ["config.json", weights_file(folder).name]


def weights_file(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def rewrite(folder, change_config=None, change_weights=None):
    """Change a saved mapping and sign it again, as one who means harm would."""

    def changed(weights):
        if change_weights is not None:
            change_weights(weights)
        return weights

    rewritten(folder, change_config or (lambda config: None), changed)


def set_weight(name, value):
    return lambda folder: rewrite(folder, change_weights=lambda w: w.update({name: value}))


def set_config(**values):
    return lambda folder: rewrite(folder, change_config=lambda c: c.update(values))


DEFECTS = {
    "no folder": lambda f: [p.unlink() for p in f.iterdir()],
    "no weights": lambda f: weights_file(f).unlink(),
    "cut weights": lambda f: weights_file(f).write_bytes(weights_file(f).read_bytes()[:-8]),
    "no JSON": lambda f: (f / "config.json").write_text("{"),
    "JSON of another kind": lambda f: (f / "config.json").write_text("[1]"),
    "deep JSON": lambda f: (f / "config.json").write_text("[" * 100_000),
    "no text": lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
    "format": set_config(format=2),
    "kind": set_config(kind="quadratic"),
    "kind as a list": set_config(kind=["affine"]),
    "report": set_config(report=[]),
    "NaN": set_config(report={"r2": float("nan")}),
    "source": set_config(source="m"),
    "size": set_config(source={**MODEL, "hidden_size": 4}),
    "size as text": set_config(source={**MODEL, "hidden_size": "3"}),
    "weights elsewhere": set_config(weights="../mapping.safetensors"),
    "weights of another kind": set_config(weights="config.json"),
    "weights without name": set_config(weights=None),
    "others' weights": lambda f: safetensors.torch.save_file(
        {"1.2.A": torch.zeros(5, 3), "1.2.b": torch.zeros(5)}, weights_file(f)
    ),
    "three layers": set_config(pairs=[[1, 2, 3]]),
    "pair twice": set_config(pairs=[[1, 2], [1, 2]]),
    "pair without weights": set_config(pairs=[[1, 2], [1, 3]]),
    "weights without pair": set_weight("1.3.A", torch.ones(5, 3)),
    "shape": set_weight("1.2.A", torch.ones(3, 5)),
    "dtype": set_weight("1.2.A", torch.ones(5, 3, dtype=torch.float16)),
    "not finite": set_weight("1.2.b", torch.full((5,), torch.inf)),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_damaged_files_are_refused_in_one_line(defect, tmp_path):
    Affine({(1, 2): (torch.ones(5, 3),)}, MODEL, WIDE).save(tmp_path)
    rewrite(tmp_path, lambda c: None, lambda w: None)
    load_mapping(tmp_path)  # what the changes below start from is sound
    DEFECTS[defect](tmp_path)
    with pytest.raises(ls.LenscopeError) as told:
        load_mapping(tmp_path)
    assert "\n" not in str(told.value)


class Dead(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("step", ["weights", "name of the weights", "config", "name of the config"])
@pytest.mark.parametrize("way", ["full disk", "kill"])
def test_a_save_that_ends_midway_leaves_the_old_mapping(step, way, tmp_path, monkeypatch):
    old = Affine({(1, 2): (torch.ones(5, 3),)}, MODEL, WIDE, {"r2": 0.5})
    new = Affine({(1, 2): (torch.zeros(5, 3),), (1, 3): (torch.ones(5, 3),)}, MODEL, WIDE)
    old.save(tmp_path)
    end = OSError(28, "No space left on device") if way == "full disk" else Dead()
    reached = []

    def stop(path, *_):
        reached.append(path)
        if path is not None:
            Path(path).write_bytes(b"half")
        raise end

    replace = Path.replace
    names = {"name of the weights": ".safetensors", "name of the config": "config.json"}
    if step == "weights":
        monkeypatch.setattr(safetensors.torch, "save_file", lambda _, path, metadata: stop(path))
    elif step == "config":
        monkeypatch.setattr(Path, "write_text", lambda path, *_, **__: stop(path))
    else:
        monkeypatch.setattr(Path, "replace", lambda a, b: stop(None) if str(b).endswith(names[step]) else replace(a, b))
    if way == "kill":
        # nothing is cleaned up
        monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(Dead if way == "kill" else ls.LenscopeError) as told:
        new.save(tmp_path)
    assert reached
    assert "\n" not in str(told.value)
    monkeypatch.undo()
    equal(load_mapping(tmp_path), old)
    if way == "full disk":
        assert len(list(tmp_path.iterdir())) == 2
    new.save(tmp_path)
    equal(load_mapping(tmp_path), new)


def test_a_folder_of_an_earlier_lenscope_is_read(tmp_path):
    old = Affine({(1, 2): (torch.ones(5, 3),)}, MODEL, WIDE)
    old.save(tmp_path)
    rewrite(tmp_path, lambda config: config.pop("weights"))
    weights_file(tmp_path).rename(tmp_path / "mapping.safetensors")
    equal(load_mapping(tmp_path), old)
    old.save(tmp_path)
    assert weights_file(tmp_path).name != "mapping.safetensors"


def test_a_mapping_is_pushed_in_one_commit(tmp_path, monkeypatch):
    old = Affine({(1, 2): (torch.ones(5, 3),)}, MODEL, WIDE)
    pushed = []

    def upload(repo_id, folder_path, commit_message, delete_patterns):
        equal(load_mapping(folder_path), old)
        pushed.append((repo_id, commit_message, delete_patterns, {p.name for p in Path(folder_path).iterdir()}))

    monkeypatch.setattr("huggingface_hub.create_repo", lambda repo_id, exist_ok: f"https://hub/{repo_id}")
    monkeypatch.setattr("huggingface_hub.upload_folder", upload)
    assert old.push_to_hub("me/lens") == "https://hub/me/lens"
    assert old.push("me/lens") == "https://hub/me/lens"  # its first name
    old.save(tmp_path)
    names = {"README.md", *(p.name for p in tmp_path.iterdir())}
    assert pushed == 2 * [("me/lens", "lenscope: Affine(m → m: (1, 2))", ["mapping-*.safetensors"], names)]

    def refuse(**_):
        raise RuntimeError("401 Client Error\nInvalid token")

    monkeypatch.setattr("huggingface_hub.upload_folder", refuse)
    with pytest.raises(
        ls.LenscopeError, match=r"me/lens: cannot be pushed .*401 Client Error Invalid token.*auth login"
    ):
        old.push_to_hub("me/lens")


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ls.LenscopeError, match="cannot be written"):
        Affine({(1, 2): (torch.ones(5, 3),)}, MODEL, WIDE).save(tmp_path / "file")


# -- identity


def test_the_hash_of_a_mapping_is_that_of_what_it_computes():
    def made(weight=1.0, **changes):
        model = {**MODEL, **changes}
        return Affine({(0, 4): (weight * torch.eye(3), torch.ones(3))}, model, model)

    first = mappings.mapping_hash(made())
    assert len(first) == 71
    assert first.startswith("sha256:")
    assert mappings.mapping_hash(made(model="another name")) == first
    assert mappings.mapping_hash(Affine(made().weights, MODEL, MODEL, {"lens": "tuned"})) == first
    column_major = Affine({(0, 4): (torch.eye(3).T, torch.ones(3))}, MODEL, MODEL)
    assert mappings.mapping_hash(column_major) == first
    others = [
        made(1 + 2**-23),
        made(n_layers=5),
        Affine(made().weights, MODEL, {**MODEL, "model": "n"}),  # which has no layer in common with its source
        Affine({(1, 4): made().weights[0, 4]}, MODEL, MODEL),
        Affine({None: made().weights[0, 4]}, MODEL, MODEL),
        Affine({(0, 4): (torch.eye(3),)}, MODEL, MODEL),
        Scale({(0, 4): (1.0, torch.ones(3))}, MODEL, MODEL),
        None,
    ]
    assert len({first, *map(mappings.mapping_hash, others)}) == 1 + len(others)
    changed = made()
    changed.weights[0, 4][0].data.mul_(2)
    assert mappings.mapping_hash(changed) != first


def test_the_hash_of_a_function_is_its_own():
    def double(h):
        return 2 * h

    hashes = [mappings.mapping_hash(f) for f in (double, double, lambda h: 2 * h, nn.Linear(3, 3), nn.Linear(3, 3))]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4
    assert mappings.mapping_hash(None) == mappings.mapping_hash(mappings.identity)
