"""What blocks add: the modules are those that are known, the stream between them is what the second norm reads."""

import pytest
import tiny
import torch

import lenscope as ls
from lenscope.models.deviations import deviation
from lenscope.models.sublayer_states import read_points
from lenscope.models.sublayers import find_sublayers

# architecture → the module of a block that reads the stream after attention
READS_MID = {
    "llama": "post_attention_layernorm",
    "gpt2": "ln_2",
    "gemma2": "pre_feedforward_layernorm",
    "granite": "post_attention_layernorm",
    "bloom": "post_attention_layernorm",
    "opt": "final_layer_norm",
    "mixtral": "post_attention_layernorm",
    "olmo2": "mlp",
    "gemma4_text": "pre_feedforward_layernorm",
    "falcon_h1": "pre_ff_layernorm",
    "beam": "pre_feedforward_layernorm",
}
# parallel blocks → what their attention and MLP are called
PARALLEL = {"gptj": ("attn", "mlp"), "gpt_neox": ("attention", "mlp"), "phi": ("self_attn", "mlp"),
            "cohere": ("self_attn", "mlp")}  # fmt: skip


def load(architecture, dtype=torch.float64):
    return ls.LM(tiny.model(architecture, dtype), tiny.tokenizer(), architecture)


def first(value):
    return value[0] if isinstance(value, tuple) else value


def recorded(lm, ids, name):
    """What the module of each block read and gave in a run of its own."""
    seen = []
    hooks = [
        block.get_submodule(name).register_forward_hook(
            lambda _, args, kwargs, out: seen.append((first(args or tuple(kwargs.values())), first(out))),
            with_kwargs=True,
        )
        for block in lm.runner.anatomy.blocks
    ]
    with torch.no_grad():
        lm.model(input_ids=torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return [tuple(t.reshape(len(ids), -1) for t in pair) for pair in seen]


@pytest.mark.parametrize("architecture", READS_MID)
def test_the_stream_after_attention_is_what_the_second_norm_reads(architecture):
    lm = load(architecture)
    ids = tiny.ids(lm.model, 1, 11, seed=3)[0].tolist()
    layers = range(1, lm.n_layers + 1)
    mid = read_points(lm, ids, "attention", layers)
    for layer, (given, _) in zip(layers, recorded(lm, ids, READS_MID[architecture]), strict=True):
        assert deviation(mid[layer, :], given) <= 1e-12
    assert not any(block.parallel for block in find_sublayers(lm.runner))
    states = lm.read(ids)
    after = read_points(lm, ids, "mlp", layers)
    for layer in layers:
        assert deviation(after[layer, :], states[layer, :]) <= 1e-12
    assert torch.equal(mid.last[0], states[lm.n_layers, :])


@pytest.mark.parametrize("architecture", PARALLEL)
def test_in_a_parallel_block_each_is_added_to_the_input(architecture):
    lm = load(architecture)
    ids = tiny.ids(lm.model, 1, 11, seed=3)[0].tolist()
    layers, states = range(1, lm.n_layers + 1), lm.read(ids)
    assert all(block.parallel for block in find_sublayers(lm.runner))
    for point, name in zip(("attention", "mlp"), PARALLEL[architecture], strict=True):
        read = read_points(lm, ids, point, layers)
        for layer, (_, added) in zip(layers, recorded(lm, ids, name), strict=True):
            assert deviation(read[layer, :], states[layer - 1, :] + added) <= 1e-12


def test_scales_are_those_of_the_configuration():
    (first_block, *_) = find_sublayers(load("granite", torch.float32).runner)
    assert [one.factor for one in first_block.additions] == [0.5, 0.5]
    # a stream that each block scales, whose sum is scaled once more after it was read
    (scaled, *_) = find_sublayers(load("beam").runner)
    assert scaled.keep == pytest.approx(3**-0.5)
    assert scaled.after == pytest.approx((2 / 3) ** 0.5)


def test_recurrent_mixers_count_as_attention_and_experts_as_mlp():
    mixers = {block.attention[0].module for block in find_sublayers(load("jamba", torch.float32).runner)}
    assert mixers == {"mamba", "self_attn"}
    (block, *_) = find_sublayers(load("granitemoeshared", torch.float32).runner)
    assert {one.module for one in block.mlp} == {"block_sparse_moe", "shared_mlp"}
    (block, *_) = find_sublayers(load("falcon_h1", torch.float32).runner)
    assert {one.module for one in block.attention} == {"mamba", "self_attn"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_the_same_modules_are_seen(dtype):
    for architecture in ("llama", "gpt2", "gemma2", "granite", "gptj"):
        names = [
            [[one.module for one in block.additions] for block in find_sublayers(load(architecture, kind).runner)]
            for kind in (torch.float32, dtype)
        ]
        assert names[0] == names[1]


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("mamba", "block 0 adds one thing to the stream"),
        ("bert", "neither its attention's nor its MLP's output"),
        ("inkling_text", "2 things that look at other positions"),
        ("deepseek_v4", "several parts side by side"),
    ],
)
def test_other_blocks_are_refused_in_one_line(architecture, reason):
    lm = load(architecture, torch.float32)
    with pytest.raises(ls.LenscopeError, match=reason) as error:
        find_sublayers(lm.runner)
    assert str(error.value).startswith(f"{architecture}: ")
    assert "\n" not in str(error.value)


def test_a_block_that_adds_something_else_to_a_longer_prompt_is_refused_there():
    lm = load("llama")
    block = lm.runner.anatomy.blocks[2]
    own = block.forward
    block.forward = lambda h, *args, **kwargs: own(h, *args, **kwargs) + (h.shape[1] > 9)
    ids = tiny.ids(lm.model, 1, 12)[0].tolist()
    read_points(lm, ids[:8], "attention", [1, 3])
    read_points(lm, ids, "attention", [1, 2])
    with pytest.raises(ls.LenscopeError, match="block 2 adds to this prompt something that is neither"):
        read_points(lm, ids, "attention", [1, 3])
