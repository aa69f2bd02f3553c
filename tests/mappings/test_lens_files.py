"""Lenses from elsewhere: other packages' files read as those packages read them, and nothing doubtful read at all."""

import hashlib
import json
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

import lenscope as ls
from lenscope.mappings.foreign_formats import export_tuned_lens
from lenscope.mappings.lens_files import SPACE, load_lens
from lenscope.models import likeness

D, LAYERS = 32, 4
IDS = [5, 17, 99, 4, 200, 31]


def old_state(seed=0):
    """A state dict as tuned-lens 0.2.0 saves it."""
    draw = torch.Generator().manual_seed(seed)
    state = OrderedDict()
    for layer in range(LAYERS):
        state[f"{layer}.weight"] = torch.randn(D, D, generator=draw) / 10
        state[f"{layer}.bias"] = torch.randn(D, generator=draw)
    return state


def old_config(**changes):
    config = {
        "base_model_name_or_path": "someone/tiny-llama",
        "d_model": D,
        "num_hidden_layers": LAYERS,
        "bias": True,
        "base_model_revision": None,
        "unembed_hash": None,
        "lens_type": "linear_tuned_lens",
    }
    return {k: v for k, v in {**config, **changes}.items() if v is not ...}


def put(folder, state, config, name="params.pt"):
    folder.mkdir(exist_ok=True, parents=True)
    if name.endswith(".pt"):
        torch.save(state, folder / name)
    else:
        safetensors.torch.save_file(dict(state), folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def own_logits(lm, translate):
    """Logits of every layer but the last, by plain transformers: norm and head of translate(h, layer)."""
    with torch.no_grad():
        hidden = lm.model(torch.tensor([IDS]), output_hidden_states=True).hidden_states[:-1]
        return [lm.model.lm_head(lm.model.model.norm(translate(h[0], layer))) for layer, h in enumerate(hidden)]


def tuned(state, lm):
    """What tuned-lens computes: h + W h + b, then the model's own norm and head."""
    return own_logits(lm, lambda h, n: h + h @ state[f"{n}.weight"].double().T + state[f"{n}.bias"].double())


def assert_reads(lens, lm, expected, layers=range(LAYERS)):
    states = lm.read(IDS)
    for layer in layers:
        got = ls.Lens(lm, lens).logits(states[layer, :], layer)
        torch.testing.assert_close(got, expected[layer], atol=2e-6, rtol=1e-6)
    with torch.no_grad():
        own = lm.model(torch.tensor([IDS])).logits[0]
    assert ls.Lens(lm, lens).logits(states[LAYERS, :], LAYERS).equal(lm.unembed(states[LAYERS, :]))
    torch.testing.assert_close(ls.Lens(lm, lens).logits(states[LAYERS, :], LAYERS), own, atol=1e-9, rtol=1e-9)


# -- tuned-lens


@pytest.mark.parametrize("name", ["params.pt", "params.safetensors"])
def test_a_folder_of_tuned_lens_gives_its_logits(name, lm64, tmp_path):
    state = old_state()
    lens = load_lens(put(tmp_path / "lens", state, old_config(), name), lm64)
    assert_reads(lens, lm64, tuned(state, lm64))
    assert not torch.allclose(tuned(state, lm64)[2], own_logits(lm64, lambda h, _: h)[2], atol=0.1)
    assert isinstance(lens, ls.Affine)
    assert list(lens.weights) == [(n, LAYERS) for n in range(LAYERS)]
    assert ls.Lens(lm64, lens).name == "tuned lens"
    # once read it is a mapping like any other
    lens.save(tmp_path / "saved")
    again = load_lens(tmp_path / "saved", lm64)
    assert_reads(again, lm64, tuned(state, lm64))
    assert again.report == lens.report


def test_early_folders_of_tuned_lens_are_read(lm64, tmp_path):
    """Version 0.0.x: an input translator, layers from 1 on, and a copy of the readout."""
    state = old_state()
    for word in ("translator", "probe", "adapter"):
        early = OrderedDict({f"input_{word}.{part}": state[f"0.{part}"] for part in ("weight", "bias")})
        for layer in range(1, LAYERS):
            early |= {f"layer_{word}s.{layer - 1}.{part}": state[f"{layer}.{part}"] for part in ("weight", "bias")}
        early |= {"unembedding.weight": torch.zeros(9, D), "layer_norm.weight": torch.zeros(D)}
        config = {"base_model_name_or_path": "tiny-llama", "d_model": D, "num_layers": LAYERS, "extra_layers": 0}
        lens = load_lens(put(tmp_path / word, early, config), lm64)
        assert_reads(lens, lm64, tuned(state, lm64))


def test_translators_that_are_missing_are_the_identity(lm64, tmp_path):
    state = old_state()
    some = OrderedDict((k, v) for k, v in state.items() if k not in ("0.weight", "0.bias", "2.bias"))
    lens = load_lens(put(tmp_path, some, old_config()), lm64)
    assert lens.report["identity"] == [0]
    expected = tuned({**state, "0.weight": torch.zeros(D, D), "0.bias": torch.zeros(D), "2.bias": torch.zeros(D)}, lm64)
    assert_reads(lens, lm64, expected)


def test_tensors_saved_on_a_gpu_are_read_without_one(lm64, tmp_path):
    state = old_state()
    put(tmp_path, state, old_config())
    moved = tmp_path / "moved.pt"
    with zipfile.ZipFile(tmp_path / "params.pt") as old, zipfile.ZipFile(moved, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry).replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(moved, weights_only=True)
    moved.replace(tmp_path / "params.pt")
    assert_reads(load_lens(tmp_path, lm64), lm64, tuned(state, lm64))


def test_the_unembedding_s_hash_or_the_name_tells_the_model(lm, lm64, tmp_path):
    state = old_state()
    printed = np.array_str(lm.model.lm_head.weight.detach().numpy(), precision=1)
    right = hashlib.sha256(printed.encode()).hexdigest()
    for base, hashed, known in (
        ("/home/me/some-folder", right, "equal"),
        ("TINY-llama/", "0" * 64, "different"),
        ("tiny-llama", None, "unknown"),
    ):
        config = old_config(base_model_name_or_path=base, unembed_hash=hashed)
        with np.printoptions(precision=3, threshold=5):
            lens = load_lens(put(tmp_path, state, config), lm64)
        assert lens.report["unembed_hash"] == known
    for base, hashed in (("gpt2", None), ("gpt2", "0" * 64), (None, None), (..., ...)):
        config = old_config(base_model_name_or_path=base, unembed_hash=hashed)
        with pytest.raises(ls.LenscopeError, match=r"was fitted for .*, and tiny-llama is another model") as told:
            load_lens(put(tmp_path, state, config), lm64)
        assert "\n" not in str(told.value)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_a_pickle_that_would_run_code_is_refused(lm64, tmp_path):
    ran = tmp_path / "ran"
    for new in (True, False):
        put(tmp_path / "lens", {"0.weight": Evil(ran)}, old_config())
        torch.save({"0.weight": Evil(ran)}, tmp_path / "lens" / "params.pt", _use_new_zipfile_serialization=new)
        with pytest.raises(ls.LenscopeError, match="could run code; it was not loaded") as told:
            load_lens(tmp_path / "lens", lm64)
        assert "\n" not in str(told.value)
        assert not ran.exists()
        torch.save({"J": {0: Evil(ran)}}, tmp_path / "j.pt", _use_new_zipfile_serialization=new)
        with pytest.raises(ls.LenscopeError, match="could run code"):
            load_lens(tmp_path / "j.pt", lm64)
        assert not ran.exists()
    # the file is as dangerous as it looks
    torch.load(tmp_path / "j.pt", weights_only=False)
    assert ran.exists()


def changed(**tensors):
    return lambda: ({**old_state(), **tensors}, old_config())


BROKEN = {
    "NaN": (changed(**{"1.weight": torch.full((D, D), torch.nan)}), "NaN or infinity"),
    "infinity": (changed(**{"1.bias": torch.full((D,), torch.inf)}), "NaN or infinity"),
    "shape": (changed(**{"1.weight": torch.zeros(D, 3)}), "layer 1 has a translator of shapes"),
    "bias shape": (changed(**{"1.bias": torch.zeros(1)}), "layer 1 has a translator of shapes"),
    "more layers": (changed(**{"4.weight": torch.zeros(D, D)}), "include '4.weight', which is no translator"),
    "other tensors": (changed(lora=torch.zeros(1)), "include 'lora'"),
    "no tensor": (changed(**{"1.weight": "text"}), "include '1.weight'"),
    "no translators": (lambda: ({}, old_config()), "lacks the weight"),
    "bias alone": (lambda: ({"1.bias": torch.zeros(D)}, old_config()), "lacks the weight"),
    "a list": (lambda: ([torch.zeros(D, D)], old_config()), "holds a list"),
    "wrong width": (lambda: (old_state(), old_config(d_model=48)), "fitted for 4 layers of 48; tiny-llama has 4 of 32"),
    "wrong depth": (lambda: (old_state(), old_config(num_hidden_layers=6)), "6 layers of 32"),
    "no depth": (lambda: (old_state(), old_config(num_hidden_layers=...)), "not that of a lens"),
    "a model's config": (lambda: (old_state(), old_config(model_type="t5")), "not that of a lens"),
    "extra layers": (lambda: (old_state(), old_config(extra_layers=1)), "has extra_layers, of an early"),
    "own unembedding": (lambda: (old_state(), old_config(reuse_unembedding=False)), "has reuse_unembedding"),
}


@pytest.mark.parametrize("defect", BROKEN)
def test_a_broken_folder_of_tuned_lens_is_refused_in_one_line(defect, lm64, tmp_path):
    make, message = BROKEN[defect]
    put(tmp_path, *make())
    with pytest.raises(ls.LenscopeError, match=message) as told:
        load_lens(tmp_path, lm64)
    assert "\n" not in str(told.value)
    assert str(tmp_path) in str(told.value)


def test_damaged_files_are_told(lm64, tmp_path):
    put(tmp_path, old_state(), old_config())
    whole = (tmp_path / "params.pt").read_bytes()
    for content in (whole[:-100], whole[: len(whole) // 2], whole[:10], b"", b"no tensors at all", b"\x80\x02."):
        (tmp_path / "params.pt").write_bytes(content)
        with pytest.raises(ls.LenscopeError, match="is damaged, or no file of tensors") as told:
            load_lens(tmp_path, lm64)
        assert "\n" not in str(told.value)
    put(tmp_path, old_state(), old_config(), "params.safetensors")
    (tmp_path / "params.pt").unlink()
    (tmp_path / "params.safetensors").write_bytes((tmp_path / "params.safetensors").read_bytes()[:-9])
    with pytest.raises(ls.LenscopeError, match="is damaged, or no file of tensors"):
        load_lens(tmp_path, lm64)
    (tmp_path / "params.safetensors").unlink()
    with pytest.raises(ls.LenscopeError, match=r"but no params\.pt or params\.safetensors"):
        load_lens(tmp_path, lm64)
    for content in (b"{", b"[]", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ls.LenscopeError, match=r"config\.json"):
            load_lens(tmp_path, lm64)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ls.LenscopeError, match=r"it has no config\.json"):
        load_lens(tmp_path, lm64)


# -- lenscope's own


def test_a_folder_of_lenscope_is_checked_against_the_model(lm64, lm, tmp_path):
    model = likeness.model_identity(lm64)
    weights = {(n, LAYERS): (torch.eye(D) * n,) for n in range(LAYERS)}
    ls.Affine(weights, model, model).save(tmp_path)
    assert load_lens(tmp_path, lm64).weights[2, LAYERS][0].equal(torch.eye(D) * 2)
    load_lens(str(tmp_path), lm)  # the same weights in float32
    stranger = ls.LM(tiny.model("llama", seed=5), None, "tiny-llama")
    with pytest.raises(ls.LenscopeError, match="fitted from tiny-llama"):
        load_lens(tmp_path, stranger)


# -- Jacobian lens


def jacobian_file(path, blocks=range(LAYERS - 1), **changes):
    draw = torch.Generator().manual_seed(3)
    js = {k: (torch.randn(D, D, generator=draw) / 5).half() for k in blocks}
    content = {"J": js, "n_prompts": 7, "source_layers": list(blocks), "d_model": D}
    torch.save({k: v for k, v in {**content, **changes}.items() if v is not ...}, path)
    return js


def test_a_jacobian_lens_counts_block_outputs_from_zero(lm64, tmp_path):
    js = jacobian_file(tmp_path / "lens.pt")
    for where in (tmp_path / "lens.pt", tmp_path):
        lens = load_lens(where, lm64)
        assert lens.layers(LAYERS) == (1, 2, 3, 4)
        assert lens.report == {"lens": "Jacobian lens", "format": "jacobian-lens", "base_model": None, "prompts": 7}
        # the reference records the outputs of blocks: hooks on the model itself
        found = {}
        hooks = [
            block.register_forward_hook(lambda _, __, out, k=k, to=found: to.update({k: out[0]}))
            for k, block in enumerate(lm64.model.model.layers)
        ]
        with torch.no_grad():
            lm64.model(torch.tensor([IDS]))
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            expected = {
                k + 1: lm64.model.lm_head(lm64.model.model.norm(found[k].reshape(-1, D) @ j.double().T))
                for k, j in js.items()
            }
        assert_reads(lens, lm64, expected, [1, 2, 3])
        trajectory = ls.Lens(lm64, lens).trajectory(IDS)
        assert trajectory.layers == (1, 2, 3, 4)
        assert trajectory.lens == "Jacobian lens"
        with pytest.raises(ls.LenscopeError, match=r"pair \(0, 4\)"):
            ls.Lens(lm64, lens).trajectory(IDS, layers=[0, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 48}, "states of size 48; tiny-llama has 32"),
        ({"blocks": range(LAYERS)}, "has blocks 0–3; of tiny-llama it would have 0–2"),
        ({"blocks": [0, 1]}, "has blocks 0–1; of tiny-llama it would have 0–2"),
        ({"blocks": [-1, 2]}, "has blocks -1–2"),
        ({"J": {}}, "must hold matrices"),
        ({"J": {"0": torch.eye(D)}}, "must hold matrices"),
        ({"J": {0: torch.eye(D), 1: torch.eye(D), 2: torch.zeros(D, 3)}}, "block 2 has a matrix"),
        ({"J": dict.fromkeys(range(3), torch.full((D, D), torch.nan))}, "NaN or infinity"),
        ({"J": ..., "jacobian_sum": {0: torch.eye(D)}}, "is no Jacobian lens: it has no J"),
        ({"metadata": {"target_layer": 2}}, "maps to block 2; tiny-llama is read after block 3"),
        ({"metadata": {"model_name": "google/gemma-2-2b"}}, "was fitted for 'google/gemma-2-2b'"),
    ],
)
def test_a_jacobian_lens_that_does_not_fit_is_refused(changes, message, lm64, tmp_path):
    jacobian_file(tmp_path / "lens.pt", **changes)
    with pytest.raises(ls.LenscopeError, match=message) as told:
        load_lens(tmp_path / "lens.pt", lm64)
    assert "\n" not in str(told.value)


def test_a_jacobian_lens_is_known_by_its_file_s_name(lm64, tmp_path):
    jacobian_file(tmp_path / "Tiny-Llama_jacobian_lens_n1000.pt", [0, 1])
    assert load_lens(tmp_path / "Tiny-Llama_jacobian_lens_n1000.pt", lm64).layers(LAYERS) == (1, 2, 4)
    jacobian_file(tmp_path / "gpt2_jacobian_lens.pt")
    with pytest.raises(ls.LenscopeError, match="was fitted for 'gpt2'"):
        load_lens(tmp_path / "gpt2_jacobian_lens.pt", lm64)


# -- the way back


def test_what_is_exported_is_read_again(lm64, tmp_path):
    model = likeness.model_identity(lm64)
    draw = torch.Generator().manual_seed(1)
    pairs = [(n, LAYERS) for n in range(LAYERS)]

    def some(*shape):
        return torch.randn(*shape, generator=draw)

    for n, lens in enumerate(
        [
            ls.Affine({p: (torch.eye(D) + some(D, D) / 10, some(D)) for p in pairs}, model, model),
            ls.mappings.LowRank({p: (some(D, 2), some(D, 2) / 10, some(D)) for p in pairs}, model, model),
            ls.mappings.Scale({None: (0.5, some(D))}, model, model),
        ]
    ):
        folder = tmp_path / str(n)
        for _ in range(2):
            export_tuned_lens(lens, folder)
        assert sorted(p.name for p in folder.iterdir()) == ["config.json", "params.pt"]
        state = torch.load(folder / "params.pt", weights_only=True)
        assert list(state) == [f"{n}.{part}" for n in range(LAYERS) for part in ("weight", "bias")]
        h = some(3, D).double()
        for layer in range(LAYERS):
            theirs = h + h @ state[f"{layer}.weight"].double().T + state[f"{layer}.bias"].double()
            torch.testing.assert_close(theirs, lens(h, layer, LAYERS), atol=1e-5, rtol=1e-6)
        back = load_lens(folder, lm64)
        torch.testing.assert_close(back(h, 2, LAYERS), lens(h, 2, LAYERS), atol=1e-5, rtol=1e-6)
    config = json.loads((tmp_path / "0" / "config.json").read_text())
    assert config == old_config(base_model_name_or_path="tiny-llama")


def test_what_tuned_lens_cannot_hold_is_not_exported(lm64, tmp_path):
    model = likeness.model_identity(lm64)
    with pytest.raises(ls.LenscopeError, match="none from layer 1; tuned-lens has translators from every layer 0–3"):
        export_tuned_lens(ls.Affine({(0, 4): (torch.eye(D),), (1, 3): (torch.eye(D),)}, model, model), tmp_path)
    pairs = {(n, LAYERS): (torch.eye(D),) for n in range(LAYERS)}
    with pytest.raises(ls.LenscopeError, match="one between two models"):
        export_tuned_lens(ls.Affine(pairs, model, {**model, "model": "n"}), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ls.LenscopeError, match="cannot be written"):
        export_tuned_lens(ls.Affine(pairs, model, model), tmp_path / "file")


def test_an_export_that_ends_midway_leaves_the_old_one(lm64, tmp_path, monkeypatch):
    model = likeness.model_identity(lm64)
    old, new = (ls.Affine({(n, LAYERS): (torch.eye(D) * k,) for n in range(LAYERS)}, model, model) for k in (2.0, 3.0))
    export_tuned_lens(old, tmp_path)

    def full(_, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ls.LenscopeError, match="No space left"):
        export_tuned_lens(new, tmp_path)
    monkeypatch.undo()
    assert load_lens(tmp_path, lm64).weights[1, LAYERS][0].equal(torch.eye(D) * 2)
    assert len(list(tmp_path.iterdir())) == 2


# -- the hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of folders: tmp_path/hub/KIND/OWNER/REPOSITORY; what is asked for is recorded."""
    asked = []

    def download(repo_id, file, repo_type):
        asked.append((repo_type, repo_id, file))
        path = tmp_path / "hub" / repo_type / repo_id / file
        if not path.is_file():
            raise EntryNotFoundError(f"404: {file}")
        return str(path)

    def names(repo_id):
        folder = tmp_path / "hub" / "model" / repo_id
        return [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.list_repo_files", names)
    return tmp_path / "hub", asked


def test_lenses_are_found_on_the_hub(hub, lm64):
    root, asked = hub
    state = old_state()
    # lenscope's own
    model = likeness.model_identity(lm64)
    ls.Affine({(n, LAYERS): (torch.eye(D) * n,) for n in range(LAYERS)}, model, model).save(root / "model/me/lens")
    assert load_lens("me/lens", lm64).weights[3, LAYERS][0].equal(torch.eye(D) * 3)
    assert [a[:2] for a in asked] == [("model", "me/lens")] * 2
    # a model's repository is no lens: the space has it
    (root / "model/someone/tiny-llama").mkdir(parents=True)
    (root / "model/someone/tiny-llama/config.json").write_text('{"model_type": "t5", "d_model": 32, "num_layers": 4}')
    for name in ("someone/tiny-llama", "tiny-llama"):
        put(root / "space" / SPACE / "lens" / name, state, old_config())
        assert_reads(load_lens(name, lm64), lm64, tuned(state, lm64))
    # a repository in tuned-lens' format
    put(root / "model/me/old", state, old_config())
    assert_reads(load_lens("me/old", lm64), lm64, tuned(state, lm64))
    # Jacobian lenses, by path and by the model's name
    folder = root / "model/np/jacobian/tiny/jlens/wiki"
    folder.mkdir(parents=True)
    jacobian_file(folder / "tiny-llama_jacobian_lens.pt")
    jacobian_file(folder / "gpt2_jacobian_lens.pt")
    for where in ("np/jacobian", "np/jacobian/tiny/jlens/wiki/tiny-llama_jacobian_lens.pt"):
        assert load_lens(where, lm64).layers(LAYERS) == (1, 2, 3, 4)
    with pytest.raises(ls.LenscopeError, match="was fitted for 'gpt2'"):
        load_lens("np/jacobian/tiny/jlens/wiki/gpt2_jacobian_lens.pt", lm64)
    jacobian_file(folder / "tiny-llama_jacobian_lens_n9.pt")
    with pytest.raises(ls.LenscopeError, match="has 2 lenses for tiny-llama; give one, as np/jacobian/tiny"):
        load_lens("np/jacobian", lm64)


def test_what_is_nowhere_is_told(hub, lm64, tmp_path, monkeypatch):
    for where in ("nobody/nothing", "nothing", "a/b/c", "a/b/c.pt"):
        with pytest.raises(ls.LenscopeError, match=f"{where}: no such folder, and no lens for tiny-llama") as told:
            load_lens(where, lm64)
        assert "\n" not in str(told.value)
    _, asked = hub
    asked.clear()
    for where in (tmp_path / "none", "./none", "none.pt", "~/none"):
        with pytest.raises(ls.LenscopeError, match="no such file or folder"):
            load_lens(where, lm64)
    assert not asked

    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("no connection\nat all")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    for where in ("me/lens", "gpt2", "me/lens/a.pt"):
        with pytest.raises(
            ls.LenscopeError, match=r"hub cannot be reached .*no connection at all.* while online"
        ) as told:
            load_lens(where, lm64)
        assert "\n" not in str(told.value)
    monkeypatch.undo()
    with pytest.raises(ls.LenscopeError, match="hub cannot be reached"):
        load_lens("me/lens-that-is-nowhere", lm64)  # the tests run with HF_HUB_OFFLINE
