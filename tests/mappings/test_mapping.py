"""Mappings: called as they take it, refused where they do not belong, saved equals loaded; fits equal a textbook's."""

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from char_tokenizers import char_tokenizer
from handmade import rewritten
from torch import nn
from transformers import AutoModelForCausalLM

import lenscope as ls
from lenscope.fitting import model_to_model as regression
from lenscope.mappings import mapping as mappings
from lenscope.mappings.mapping import Affine, LowRank, Scale, load_mapping
from lenscope.models import likeness, provenance
from lenscope.models.prompts import Prompt

WORDS = ["the", "cat", "sat", "on", "a mat", "capital", "of France", "is", "Paris", "this", "test", "river", "stone"]
RIDGES = (1e-6, 1e-3)


@pytest.fixture(scope="module")
def other():
    """A model of another architecture, hidden size, depth and tokenizer than `lm`."""
    config = tiny.config("gpt2")
    config.n_embd, config.n_layer = 48, 3
    torch.manual_seed(1)
    built = AutoModelForCausalLM.from_config(config).eval()
    tiny._randomise(built, 1)
    return ls.LM(built.double(), char_tokenizer(), "tiny-gpt2")


@pytest.fixture(scope="module")
def texts():
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=12)) for _ in range(60)]


@pytest.fixture(scope="module")
def fitted(lm64, other, texts):
    return regression.fit_mapping(
        lm64, other, texts, layers=[0, 2, 4], target_layers=[1, 3], ridges=RIDGES, held_out=0.2, length=48
    )


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


@pytest.mark.parametrize("f", [lambda: 0, lambda a, b, c, d: a, lambda h, *, gain: h, "no function"])
def test_other_arities_are_refused(f):
    with pytest.raises(ls.LenscopeError, match=r"give f\(h\), f\(h, layer\) or f\(h, layer, target_layer\)"):
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


def test_vectors_without_address_go_through_a_mapping_that_is_the_same_everywhere(lm64):
    model = likeness.model_identity(lm64)
    vectors = torch.randn(2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    b = torch.randn(32, generator=torch.Generator().manual_seed(1))
    same = Scale({None: (0.5, b)}, model, model)
    got = ls.Patchscope(lm64, ls.Target("the cat x"), same).predict(vectors, [1, 3])
    own = ls.Patchscope(lm64, ls.Target("the cat x")).predict(vectors / 2 + b, [1, 3])
    np.testing.assert_allclose(got.log_probs, own.log_probs, atol=1e-6)
    assert np.array_equal(got.ids, own.ids)
    plain = ls.Patchscope(lm64, ls.Target("the cat x")).predict(vectors, [1, 3])
    assert not np.allclose(got.log_probs, plain.log_probs, atol=1e-3)
    for weights in ({None: (0.5,), (1, 3): (2.0,)}, {(0, 1): (0.5,), (0, 3): (0.5,)}):
        with pytest.raises(ls.LenscopeError, match="give HiddenStates, not vectors"):
            ls.Patchscope(lm64, ls.Target("the cat x"), Scale(weights, model, model)).predict(vectors, [1, 3])


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


def named(dtype, change=None, seed=0):
    """The tiny Llama in a dtype, its float32 weights changed before they are rounded to it."""
    built = tiny.model("llama", seed=seed)
    if change is not None:
        with torch.no_grad():
            change(built)
    return ls.LM(built.to(dtype), None, "tiny-llama")


def lens_for(lm):
    model = likeness.model_identity(lm)
    return Affine({(n, lm.n_layers): (torch.eye(32),) for n in range(lm.n_layers)}, model, model)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("fitted_in", DTYPES)
@pytest.mark.parametrize("used_in", DTYPES)
def test_the_same_weights_in_another_dtype_are_the_same_model(fitted_in, used_in, tmp_path):
    if {fitted_in, used_in} == {torch.bfloat16, torch.float16}:
        pytest.skip("two roundings of a float32 checkpoint: neither can be told from the other")
    lens_for(named(fitted_in)).save(tmp_path)
    lens = load_mapping(tmp_path)
    lens.check(named(used_in), named(used_in))

    def head(model):
        model.lm_head.weight[7] *= 1.02

    def one_weight(model):
        model.model.layers[2].mlp.up_proj.weight[3, 5] *= 1.02

    def norm(model):
        model.model.norm.weight[0] += 0.05

    for change in (head, one_weight, norm):
        other = named(used_in, change)
        with pytest.raises(ls.LenscopeError, match="fitted from tiny-llama"):
            lens.check(other, other)


@pytest.mark.parametrize("native", [torch.bfloat16, torch.float16])
def test_a_16_bit_checkpoint_is_known_in_every_dtype(native):
    def rounded(model):
        model.to(native)

    lms = [named(dtype, rounded) for dtype in DTYPES]
    for a in lms:
        for b in lms:
            lens_for(a).check(b, b)


def test_in_one_dtype_every_byte_counts():
    def least(model):
        head = model.lm_head.weight
        head[7, 3] = torch.nextafter(head[7, 3], torch.tensor(torch.inf))

    other = named(torch.float32, least)
    lens = lens_for(named(torch.float32))
    with pytest.raises(ls.LenscopeError, match="load the weights it was fitted with"):
        lens.check(other, other)
    # nor is a float64 model compared by what 16 bits can hold
    wide = named(torch.float64, least)
    with pytest.raises(ls.LenscopeError, match="load the weights it was fitted with"):
        lens.check(wide, wide)
    lens.check(named(torch.float64), named(torch.float64))
    # which no 16-bit model can hold
    lens.check(named(torch.bfloat16, least), named(torch.bfloat16, least))


def test_the_hash_of_the_head_is_of_the_head_alone():
    first, other = tiny.model("llama"), tiny.model("llama")
    assert provenance.head_hash(first) == provenance.head_hash(other)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    assert provenance.head_hash(first) == provenance.head_hash(other)
    assert provenance.model_hash(first) != provenance.model_hash(other)
    with torch.no_grad():
        other.lm_head.weight[9, 0] += 1e-3
    assert provenance.head_hash(first) != provenance.head_hash(other)
    weight = other.lm_head.weight.detach()
    described = f"weight {tuple(weight.shape)} torch.float32 ".encode()
    total = hashlib.sha256(described + hashlib.sha256(weight.numpy().tobytes()).digest())
    assert provenance.head_hash(other) == f"sha256:{total.hexdigest()}"


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
    assert old.push("me/lens") == "https://hub/me/lens"
    old.save(tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert pushed == [("me/lens", "lenscope: Affine(m → m: (1, 2))", ["mapping-*.safetensors"], names)]

    def refuse(**_):
        raise RuntimeError("401 Client Error\nInvalid token")

    monkeypatch.setattr("huggingface_hub.upload_folder", refuse)
    with pytest.raises(
        ls.LenscopeError, match=r"me/lens: cannot be pushed .*401 Client Error Invalid token.*auth login"
    ):
        old.push("me/lens")


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ls.LenscopeError, match="cannot be written"):
        Affine({(1, 2): (torch.ones(5, 3),)}, MODEL, WIDE).save(tmp_path / "file")


# -- fitting


def test_positions_are_aligned_by_the_character_they_end_at(lm, other):
    text = "the cat é the mat"
    source, target = lm.prompt(text), other.prompt(text)
    pairs = regression.aligned(source, target)
    assert len(pairs) >= 4
    assert [s for s, _ in pairs] == sorted({s for s, _ in pairs})
    for s, t in pairs:
        assert s > 0
        assert t > 0
        assert text[: source.spans[s][1]] == text[: target.spans[t][1]]
    # every token of the coarser tokenizer but its first ends where some byte does, é where its last byte does
    assert {source.spans[s][1] for s, _ in pairs} == {stop for _, stop in source.spans[1:]}
    accent = next((s, t) for s, t in pairs if source.spans[s][1] == text.index("é") + 1)
    assert target.spans[accent[1]] == target.spans[accent[1] - 1]
    special = Prompt("ab", (5, 6, 0), ("a", "b", "</s>"), ((0, 1), (1, 2), (0, 0)))
    assert regression.aligned(special, special) == [(1, 1)]


def test_the_fit_is_the_textbooks(lm64, other, texts, fitted):
    """Least squares of rows [x/std, √(n ridge) I], centred, in numpy; the ridge best on some texts, R² on others."""
    train, select, test = parts = regression._three_parts_of_pairs(
        regression._read_together(lm64, other, texts, 48), 0.2, 0
    )
    assert sum(map(len, parts)) == len({t.source.text for part in parts for t in part}) == len(texts)

    def rows(part, s, t):
        x = np.concatenate([lm64.read(p.source, s).tensor[0, 0, [i for i, _ in p.positions]].numpy() for p in part])
        y = np.concatenate([other.read(p.target, t).tensor[0, 0, [j for _, j in p.positions]].numpy() for p in part])
        return x, y

    report = {(p["layer"], p["target_layer"]): p for p in fitted.report["pairs"]}
    assert list(report) == list(fitted.weights) == [(s, t) for s in (0, 2, 4) for t in (1, 3)]
    for pair in report:
        x, y = rows(train, *pair)
        assert len(x) == fitted.report["tokens"]["fitted"]
        mean, std, y_mean = x.mean(0), x.std(0), y.mean(0)
        tried = []
        for ridge in RIDGES:
            stacked = np.concatenate([(x - mean) / std, np.sqrt(len(x) * ridge) * np.eye(x.shape[1])])
            w = np.linalg.lstsq(stacked, np.concatenate([y - y_mean, np.zeros((x.shape[1], y.shape[1]))]), rcond=None)[
                0
            ]
            a = (w / std[:, None]).T
            sx, sy = rows(select, *pair)
            tried.append((np.square(sy - y_mean - (sx - mean) @ a.T).sum(), ridge, a, y_mean - a @ mean))
        _, ridge, a, b = min(tried, key=lambda one: one[0])
        assert report[pair]["ridge"] == ridge
        for mine, book in zip(fitted.weights[pair], (a, b), strict=True):
            assert np.abs(mine.numpy() - book).max() <= 1e-6 * np.abs(book).max()
        tx, ty = rows(test, *pair)
        spread = np.square(ty - y_mean).sum()
        assert report[pair]["r2"] == pytest.approx(1 - np.square(ty - tx @ a.T - b).sum() / spread, abs=1e-5)
        alpha = ((x - mean) * (y - y_mean)[:, :32]).sum() / np.square(x - mean).sum()
        copied = y_mean + np.pad(alpha * (tx - mean), [(0, 0), (0, 16)])
        assert report[pair]["r2_copy"] == pytest.approx(1 - np.square(ty - copied).sum() / spread, abs=1e-6)
        if pair[1] == other.n_layers:
            own, guess = (other.unembed(torch.from_numpy(h)).argmax(-1) for h in (ty, tx @ a.T + b))
            assert len(own) <= regression.PREDICTED
            assert report[pair]["precision_at_1"] == float((own == guess).double().mean())
        else:
            assert "precision_at_1" not in report[pair]


def test_a_linear_relation_is_recovered_and_the_shuffled_control_is_not(lm64, texts, monkeypatch):
    draw = torch.Generator().manual_seed(2)
    a, b = torch.randn(32, 32, generator=draw).double(), 5 * torch.randn(32, generator=draw).double()
    twin = ls.LM(tiny.model("llama", dtype=torch.float64), tiny.tokenizer(), "twin")
    read = twin.read

    def moved(*args):
        found = read(*args)
        found.tensor.copy_(found.tensor @ a.T + b)
        return found

    monkeypatch.setattr(twin, "read", moved)
    mapping = regression.fit_mapping(
        lm64, twin, texts, layers=[1, 4], target_layers=[1, 4], ridges=[1e-9, 1.0], length=48
    )
    for found in mapping.report["pairs"]:
        if found["layer"] == found["target_layer"]:
            assert found["r2"] > 1 - 1e-9
            assert found["ridge"] == 1e-9
            got = mapping.weights[found["layer"], found["layer"]]
            torch.testing.assert_close(got[0].double(), a, atol=1e-4, rtol=0)
            torch.testing.assert_close(got[1].double(), b, atol=1e-3, rtol=0)
        else:
            assert found["r2"] < 0.999
        assert found["r2_shuffled"] <= 0.1
        assert found["r2_copy"] < 0.5
    last = mapping.report["pairs"][-1]
    assert last["precision_at_1"] == 1
    assert last["precision_at_1_shuffled"] < 0.5


def test_wrong_pairs_are_of_other_texts(lm64):
    job = regression.PairReader(lm64, lm64, ((0,), (0,)), torch.Generator().manual_seed(0), None)
    for counts in ([5, 9, 7, 3], [4, 4], [1, 2, 3, 4, 5, 6]):
        text = torch.tensor([n for n, count in enumerate(counts) for _ in range(count)])
        order = job.elsewhere(counts)
        assert sorted(order.tolist()) == list(range(len(text)))
        assert (text[order] != text).all()
        # nor the same place in the other text
        assert (order.diff() == 1).sum() < len(order) / 2


def test_one_model_as_both_is_the_shortcut_between_its_layers(lm64, texts):
    told = []
    mapping = regression.fit_mapping(
        lm64, lm64, texts, layers=[-1, 2, 2], length=48, progress=lambda done, total: told.append((done, total))
    )
    assert [p for p in mapping.weights if p[0] == 2] == [(2, t) for t in range(5)]
    same = next(p for p in mapping.report["pairs"] if p["layer"] == p["target_layer"] == 4)
    assert min(same["r2"], same["r2_copy"]) > 1 - 1e-6
    assert same["precision_at_1"] == same["precision_at_1_copy"] == 1
    assert told == [(n + 1, len(told)) for n in range(len(told))]
    h = lm64.read(texts[0])[2, 1:]
    assert mapping(h, 2, 2).dtype == torch.float64
    torch.testing.assert_close(mapping(h, 2, 2), h, atol=1e-3, rtol=0)


def test_float32_sums_agree_with_float64(lm, lm64, texts):
    options = {"layers": [2], "target_layers": [4], "ridges": [1e-4], "length": 48}
    one, two = (regression.fit_mapping(m, m, texts, **options) for m in (lm, lm64))
    for a, b in zip(one.weights[2, 4], two.weights[2, 4], strict=True):
        assert (a - b).abs().max() <= 1e-3 * b.abs().max()
    assert one.report["pairs"][0]["r2"] == pytest.approx(two.report["pairs"][0]["r2"], abs=1e-4)


def test_states_that_are_not_finite_are_refused(lm64, texts, monkeypatch):
    twin = ls.LM(tiny.model("llama", dtype=torch.float64), tiny.tokenizer(), "twin")
    read = twin.read

    def broken(*args):
        found = read(*args)
        found.tensor[0, 0, 1] = torch.inf
        return found

    monkeypatch.setattr(twin, "read", broken)
    with pytest.raises(ls.LenscopeError, match="twin: a state holds NaN or infinity"):
        regression.fit_mapping(lm64, twin, texts, layers=[1], target_layers=[1])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"texts": "one text"}, "is one string"),
        ({"texts": ["the cat sat on the mat"] * 9}, "texts: 1 different"),
        ({"texts": ["a b c", "b c d", "c d e", "d e f", ""]}, "pairs of tokens to fit; tiny-llama needs over 32"),
        ({"layers": [9]}, "layer 9: tiny-llama has layers 0–4"),
        ({"target_layers": []}, "the list is empty"),
        ({"ridges": [0.0]}, "give positive numbers"),
        ({"ridges": []}, "give positive numbers"),
        ({"held_out": 1.0}, "between 0 and 1"),
        ({"held_out": 0.99}, "59 of them held out"),
        ({"length": 1}, "at least 2 tokens"),
    ],
)
def test_what_cannot_be_fitted_is_told(lm64, texts, options, told):
    with pytest.raises(ls.LenscopeError, match=told):
        regression.fit_mapping(lm64, lm64, **{"texts": texts, **options})
    bare = ls.LM(lm64.model, None, "bare")
    with pytest.raises(ls.LenscopeError, match="bare was loaded without a tokenizer"):
        regression.fit_mapping(bare, lm64, texts)


def test_ahead_pairs_each_state_with_a_later_one(lm64):
    draw = random.Random(0)
    words = ["the", "cat", "sat", "on", "a mat", "capital", "of France", "is", "Paris", "this", "test"]
    texts = list(dict.fromkeys(" ".join(draw.choices(words, k=12)) for _ in range(60)))
    f = regression.fit_mapping(lm64, lm64, texts, layers=[2], target_layers=[4], ahead=2, ridges=[1e-13], length=48)
    fitted = random.Random(0).sample(texts, len(texts))[round(0.1 * len(texts)) :]
    read = [lm64.read(lm64.prompt(text).ids[:48]) for text in fitted]
    x = np.concatenate([s.tensor[0, 2, 1:-2].numpy() for s in read])
    y = np.concatenate([s.tensor[0, 4, 3:].numpy() for s in read])
    solution = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
    found = f(lm64.read(texts[0]).tensor[0, 2, 1:4], 2, 4).numpy()
    expected = np.column_stack([lm64.read(texts[0]).tensor[0, 2, 1:4].numpy(), np.ones(3)]) @ solution
    assert np.allclose(found, expected, atol=1e-4)
    assert f.report["ahead"] == 2
    with pytest.raises(ls.LenscopeError, match="ahead -1"):
        regression.fit_mapping(lm64, lm64, texts, ahead=-1)


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
