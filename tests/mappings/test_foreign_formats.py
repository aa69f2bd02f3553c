"""The format of tuned-lens: read as that package reads it, written as it reads."""

import hashlib
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_lenses import LAYERS, D, assert_reads, old_config, old_state, put, tuned

import lenscope as ls
from lenscope.mappings.foreign_formats import export_tuned_lens
from lenscope.mappings.lens_files import load_lens
from lenscope.models import same_model


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


def test_what_is_exported_is_read_again(lm64, tmp_path):
    model = same_model.model_identity(lm64)
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
    model = same_model.model_identity(lm64)
    with pytest.raises(ls.LenscopeError, match="none from layer 1; tuned-lens has translators from every layer 0–3"):
        export_tuned_lens(ls.Affine({(0, 4): (torch.eye(D),), (1, 3): (torch.eye(D),)}, model, model), tmp_path)
    pairs = {(n, LAYERS): (torch.eye(D),) for n in range(LAYERS)}
    with pytest.raises(ls.LenscopeError, match="one between two models"):
        export_tuned_lens(ls.Affine(pairs, model, {**model, "model": "n"}), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ls.LenscopeError, match="cannot be written"):
        export_tuned_lens(ls.Affine(pairs, model, model), tmp_path / "file")


def test_an_export_that_ends_midway_leaves_the_old_one(lm64, tmp_path, monkeypatch):
    model = same_model.model_identity(lm64)
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
