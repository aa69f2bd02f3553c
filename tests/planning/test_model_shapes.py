"""The shape of a model that is not there is that of the model."""

import pytest
import tiny
import torch

from lenscope.errors import LenscopeError
from lenscope.models.residual_stream import observe
from lenscope.planning.model_shapes import model_shape, shape_of_config

# plain, tied, experts, latent attention, a stream of several rows, one norm for two matrices, recurrent layers
FAMILIES = ("llama", "gemma3_text", "mixtral", "deepseek_v3", "gemma3n_text", "gpt_neox", "opt", "mamba2", "zamba2")


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_and_sizes_are_those_of_the_model(family):
    shape, model = shape_of_config(tiny.config(family), family, torch.float32), tiny.model(family)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.nbytes == 4 * shape.parameters
    anatomy = observe(model)
    assert (shape.layers, shape.width, shape.vocab) == (
        anatomy.n_layers,
        anatomy.stream.width,
        anatomy.logits.shape[-1],
    )
    inside = {id(p): p.numel() for block in anatomy.blocks for p in block.parameters()}
    assert shape.blocks == sum(inside.values())
    assert shape.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)


def test_a_token_leaves_what_the_cache_then_holds():
    for family in ("llama", "gemma3_text", "gpt_neox"):
        model = tiny.model(family)
        cache = model(input_ids=tiny.ids(model, 1, 5), use_cache=True).past_key_values
        held = sum(t.numel() for layer in cache.layers for t in (layer.keys, layer.values))
        assert shape_of_config(tiny.config(family), family).cached * 5 == held


def test_a_token_meets_two_of_four_experts():
    model = tiny.model("mixtral")
    experts = sum(p.numel() for name, p in model.named_parameters() if "experts" in name)
    shape = shape_of_config(tiny.config("mixtral"), "mixtral")
    assert shape.active == shape.blocks - experts // 2
    # one that every token meets is not among them
    assert (
        shape_of_config(tiny.config("llama"), "llama").active == shape_of_config(tiny.config("llama"), "llama").blocks
    )


def test_a_shape_in_words_is_a_llama():
    shape = model_shape("layers=80,width=8192,heads=64,kv=8,inner=28672,vocab=128256")
    # Llama 3 70B (Grattafiori et al. 2024, Table 3)
    assert shape.parameters == 70_553_706_496
    assert (shape.nbytes, shape.cached, shape.dtype) == (141_107_412_992, 2 * 8 * 128 * 80, torch.bfloat16)
    assert model_shape("layers=2, width=64, heads=4, vocab=100").inner == 256


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("layers=2,width=64,heads=4", "vocab is missing"),
        ("layers=999999,width=64,heads=4,vocab=9", "give 1 to 1,000"),
        ("layers=2,width=63,heads=1,vocab=9", "need an even number"),
        ("layers=2,width=65,heads=4,vocab=9", "multiple of heads"),
        ("layers=2,depth=65,heads=4,vocab=9", "'depth=65'"),
        ("layer=2,width=64,heads=4,vocab=9", r"'layer=2'.*did you mean layers\?"),
        ("layers=-2,width=64,heads=4,vocab=9", "'layers=-2'"),
        ("nowhere/at/all", "no configuration"),
    ],
)
def test_what_is_no_shape_is_named(words, why, monkeypatch):
    with pytest.raises(LenscopeError, match=why):
        model_shape(words)


def test_a_folder_has_a_configuration_or_is_refused(tmp_path):
    with pytest.raises(LenscopeError, match=r"no config\.json"):
        model_shape(str(tmp_path))
    tiny.config("llama").save_pretrained(tmp_path)
    assert model_shape(str(tmp_path)).layers == 4
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(LenscopeError, match="no causal language model"):
        model_shape(str(tmp_path))
    with pytest.raises(LenscopeError, match="is a file"):
        model_shape(str(tmp_path / "config.json"))
