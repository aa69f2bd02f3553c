"""A model's identity moves with all that moves its logits, and with nothing else."""

import copy
import functools
import hashlib

import pytest
import tiny
import torch
from char_tokenizers import char_model
from torch import nn
from transformers import AutoModelForCausalLM

import lenscope as ls
from lenscope.mappings.mapping import Affine, load_mapping
from lenscope.models import identity, same_model
from lenscope.models.constituents import tensors
from lenscope.models.identity import model_hash
from lenscope.models.same_model import is_same_model, model_identity

ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 16}
LONGROPE = {**ROPE, "rope_type": "longrope", "factor": 8.0, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
DYNAMIC = {**ROPE, "rope_type": "dynamic", "factor": 2.0}


def llama(**changes):
    config = tiny.config("llama")
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(config).eval()
    tiny._randomise(built, 0)
    return built.requires_grad_(False)


def lens_for(lm):
    n, me = lm.n_layers, model_identity(lm)
    return Affine({(layer, n): (torch.eye(lm.hidden_size),) for layer in range(n)}, me, me)


class Adapted(nn.Module):
    """A low-rank adapter around a layer, in the way of PEFT: a scale in a dict, a private switch."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.scaling = {"default": 2.0}
        self._disabled = False
        draw = torch.Generator().manual_seed(3)
        self.a = nn.Parameter(torch.randn(4, layer.in_features, generator=draw) / 4)
        self.b = nn.Parameter(torch.randn(layer.out_features, 4, generator=draw) / 4)

    def forward(self, x):
        own = self.layer(x)
        return own if self._disabled else own + x @ self.a.T @ self.b.T * self.scaling["default"]


class Packed(nn.Module):
    """A linear layer of 8-bit numbers that are no parameter, with scales in an object of its own."""

    class State:
        def __init__(self, scale):
            self.scale = scale

    def __init__(self, layer):
        super().__init__()
        scale = layer.weight.abs().amax(1, keepdim=True) / 127
        self.packed = (layer.weight / scale).round().to(torch.int8)
        self.state = [self.State(scale)]

    def forward(self, x):
        return x @ (self.packed * self.state[0].scale).T


def wrapped(kind, **changes):
    built = llama(**changes)
    mlp = built.model.layers[1].mlp
    mlp.up_proj = kind(mlp.up_proj)
    return built.requires_grad_(False)


def with_buffer(persistent):
    """A norm whose weight is a buffer."""
    built = llama()
    norm = built.model.layers[1].input_layernorm
    weight = norm.weight.detach().clone()
    del norm.weight
    norm.register_buffer("weight", weight, persistent=persistent)
    return built


def up(model):
    return model.model.layers[1].mlp.up_proj


def numpy_change(model):
    up(model).weight.numpy()[3, 5] += 1.0


def one_bit(model):
    up(model).weight.numpy().view("int32")[3, 5] ^= 1 << 20


def swapped(model):
    w = up(model).weight.data
    w[0, 0], w[0, 2] = w[0, 2].clone(), w[0, 0].clone()


def replaced_forward(model):
    layer = up(model)
    layer.forward = lambda x: nn.functional.linear(x, layer.weight) * 2


def set_to(path, value):
    def change(model):
        *parents, name = path.split(".")
        module = functools.reduce(getattr, parents, model)
        setattr(module, name, value)

    return change


def turned_off(model):
    up(model)._disabled = True


def rescaled(model):
    up(model).scaling["default"] = 1.0


# how a model is made, and a change of it that moves its logits
CHANGES = {
    "data": (llama, lambda m: up(m).weight.data.mul_(2)),
    "data of one row": (llama, lambda m: up(m).weight.data[7].zero_()),
    "data copied": (llama, lambda m: up(m).weight.data.copy_(up(m).weight.roll(2, 1))),
    "data replaced": (llama, lambda m: setattr(up(m).weight, "data", up(m).weight * 1.5)),
    "two numbers swapped": (llama, swapped),
    "numpy": (llama, numpy_change),
    "one bit": (llama, one_bit),
    "in place": (llama, lambda m: up(m).weight.mul_(2)),
    "persistent buffer": (
        functools.partial(with_buffer, True),
        lambda m: m.model.layers[1].input_layernorm.weight.mul_(2),
    ),
    "buffer that is not saved": (
        functools.partial(with_buffer, False),
        lambda m: m.model.layers[1].input_layernorm.weight.data.mul_(2),
    ),
    "RoPE frequencies": (llama, lambda m: m.model.rotary_emb.inv_freq.mul_(0.5)),
    "RoPE scale": (llama, set_to("model.rotary_emb.attention_scaling", 2.0)),
    "attention scale": (llama, set_to("model.layers.2.self_attn.scaling", 1.0)),
    "epsilon": (llama, set_to("model.norm.variance_epsilon", 1.0)),
    "activation": (llama, set_to("model.layers.0.mlp.act_fn", nn.ReLU())),
    "function": (llama, replaced_forward),
    "adapter off": (functools.partial(wrapped, Adapted), turned_off),
    "adapter's scale": (functools.partial(wrapped, Adapted), rescaled),
    "adapter's weight": (functools.partial(wrapped, Adapted), lambda m: up(m).a.data.mul_(2)),
    "adapter added": (llama, lambda m: set_to("model.layers.1.mlp.up_proj", Adapted(up(m)))(m)),
    "packed weight": (functools.partial(wrapped, Packed), lambda m: up(m).packed.data.mul_(-1)),
    "scale of packed weights": (functools.partial(wrapped, Packed), lambda m: up(m).state[0].scale.data.mul_(2)),
    "two blocks swapped": (llama, lambda m: m.model.layers.insert(0, m.model.layers.pop(2))),
    "long RoPE": (
        functools.partial(llama, rope_parameters=LONGROPE),
        lambda m: m.model.rotary_emb.original_inv_freq.mul_(0.5),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_moves_the_logits_moves_the_identity(name):
    make, change = CHANGES[name]
    model = make()
    lm = ls.LM(model, None, "m")
    lens, before, logits = lens_for(lm), model_hash(model), model(input_ids=lm.runner.anatomy.ids).logits
    assert model_hash(model) == before == ls.Lens(lm).trajectory([5, 6, 7]).provenance["model_hash"]
    ls.Lens(lm, lens)
    change(model)
    assert (model(input_ids=lm.runner.anatomy.ids).logits - logits).abs().max() > 1e-6
    assert model_hash(model) != before
    assert model_hash(make()) == before
    changed = ls.LM(model, None, "m")
    assert ls.Lens(changed).trajectory([5, 6, 7]).provenance["model_hash"] == model_hash(model)
    with pytest.raises(ls.LenscopeError, match="load the weights it was fitted with"):
        ls.Lens(changed, lens)
    ls.Lens(changed, lens.transferred(changed))


SETTINGS = {
    "gemma2": [("final_logit_softcapping", 3.0), ("attn_logit_softcapping", 1.0), ("query_pre_attn_scalar", 2)],
    "granite": [("logits_scaling", 1.0), ("residual_multiplier", 1.0), ("attention_multiplier", 1.0)],
    "mistral": [("sliding_window", 3)],
    "gpt2": [("activation_function", "relu"), ("scale_attn_by_inverse_layer_idx", True)],
    "llama": [("rope_parameters", {"rope_type": "default", "rope_theta": 100.0})],
    "gemma3_text": [("layer_types", ["full_attention"] * 4)],
}


@pytest.mark.parametrize("architecture", SETTINGS)
def test_models_of_the_same_weights_and_other_settings_differ(architecture):
    weights = tiny.model(architecture)
    hashes = [model_hash(weights)]
    for name, value in SETTINGS[architecture]:
        config = tiny.config(architecture)
        setattr(config, name, value)
        other = AutoModelForCausalLM.from_config(config).eval()
        other.load_state_dict(weights.state_dict())
        hashes.append(model_hash(other))
    assert len(set(hashes)) == len(hashes)


def test_a_configuration_changed_in_place_moves_the_identity():
    model = tiny.model("gemma2")
    before = model_hash(model)
    model.config.final_logit_softcapping = 3.0
    assert model_hash(model) != before


NOT_AS_SAVED = {
    "big_bird": "its way of attention is set by what ran last",
    "emu3": "AutoModelForCausalLM does not load what it saves",
    "mllama": "AutoModelForCausalLM does not load what it saves",
    "moshi": "the configuration of a part that is not there is another one after saving",
    "recurrent_gemma": "its normaliser is rounded when it is loaded",
    "youtu": "its padding token's embedding is set to zero when it is loaded",
}


@pytest.mark.parametrize("architecture", tiny.architectures())
def test_running_saving_and_moving_do_not_move_the_identity(architecture, tmp_path):
    if architecture in NOT_AS_SAVED:
        pytest.skip(NOT_AS_SAVED[architecture])
    model = tiny.model(architecture)
    n_tokens = 24
    try:
        with torch.no_grad():
            model(input_ids=tiny.ids(model, 1, 4))
            before = model_hash(model)
            model(input_ids=tiny.ids(model, 1, n_tokens))
            model(input_ids=tiny.ids(model, 1, 3), use_cache=True)
    except (AttributeError, ValueError):
        assert architecture in ("blt", "xlstm")
        before = model_hash(model)
    assert model_hash(model) == before
    model.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    if architecture == "rwkv":
        with torch.no_grad():  # its weights are scaled when it first runs
            again(input_ids=tiny.ids(model, 1, 4))
    assert model_hash(again) == before
    eager = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    if architecture != "rwkv":
        assert model_hash(eager) == before
    assert identity.rounded_hash(model.bfloat16(), "bfloat16") == identity.rounded_hash(again, "bfloat16")


@pytest.mark.parametrize("rope", [LONGROPE, DYNAMIC])
def test_rope_that_changes_with_the_length_leaves_the_identity(rope):
    model = llama(rope_parameters=rope)
    hashes = [model_hash(model)]
    for length in (8, 40, 8, 60):
        model(input_ids=tiny.ids(model, 1, length))
        hashes.append(model_hash(model))
    assert len(set(hashes)) == 1


def test_hashes_are_made_again_only_where_something_moved(monkeypatch):
    model = llama()
    before = model_hash(model)
    hashed = []
    monkeypatch.setattr(
        identity, "digest_of", lambda t, dtype, made=identity.digest_of: hashed.append(t) or made(t, dtype)
    )
    assert model_hash(model) == before
    assert not hashed
    up(model).weight.data.mul_(2)
    assert model_hash(model) != before
    assert len(hashed) == 1
    up(model).weight.data.mul_(0.5)
    assert model_hash(model) == before


def large(rows=300, columns=200, dtype=torch.float32):
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(rows, columns).to(dtype), requires_grad=False)
    return model


@pytest.mark.parametrize(("rows", "columns"), [(300, 200), (200, 300), (1000, 7), (5, 4000), (257, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_glance_sees_every_row_and_column_of_a_large_tensor(rows, columns, dtype, monkeypatch):
    monkeypatch.setattr(identity, "GLANCED", 64)
    weight = large(rows, columns, dtype).weight
    whole = int(identity._glance(weight))
    for part in [*weight.data, *weight.data.T]:
        kept = part.clone()
        part.mul_(-1.5)
        assert int(identity._glance(weight)) != whole
        part.copy_(kept)
    assert int(identity._glance(weight)) == whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_every_byte_of_a_large_tensor_counts(dtype, offset, monkeypatch):
    monkeypatch.setattr(identity, "SMALL", 0)
    base = torch.randint(0, 2, (5003,), generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor = base[offset:]
    whole = int(identity._sum_of_tensor(tensor))
    for at in range(0, len(tensor), 7):
        kept = tensor[at].clone()
        tensor[at] = 1 - kept.int()
        assert int(identity._sum_of_tensor(tensor)) != whole
        tensor[at] = kept


def test_rows_of_a_large_tensor_have_an_order(monkeypatch):
    monkeypatch.setattr(identity, "SMALL", 0)
    weight = large().weight
    whole = int(identity._sum_of_tensor(weight))
    for other in (weight.flip(0), weight.roll(1, 0), weight.flip(1), weight.roll(2, 1), weight[torch.randperm(300)]):
        assert int(identity._sum_of_tensor(other)) != whole
    assert int(identity._sum_of_tensor(weight.T.contiguous().T)) == whole


def test_a_model_quantised_by_torch_has_its_numbers_in_its_identity():
    def quantised(scale):
        linear = nn.Linear(8, 8)
        with torch.no_grad():
            linear.weight.copy_(torch.arange(64.0).view(8, 8) * scale)
            linear.bias.zero_()
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear}, torch.qint8)

    assert model_hash(quantised(1.0)) == model_hash(quantised(1.0))
    assert model_hash(quantised(1.0)) != model_hash(quantised(2.0))


def test_parts_that_are_made_when_they_are_looked_at_are_all_there():
    """Each is gone when the next one is made, in the same place of memory."""

    class Packed(nn.Module):
        def __init__(self, number):
            super().__init__()
            self.number = number

        def _save_to_state_dict(self, destination, prefix, keep_vars):
            destination[f"{prefix}packed"] = torch.tensor(self.number)

    parts = tensors(nn.Sequential(*map(Packed, range(50))))
    assert [int(part) for part in parts.values()] == [*range(50)]


# -- models that cannot be hashed, and files that say less


def offloaded():
    """A model one of whose blocks is not in memory."""
    from accelerate import cpu_offload

    model = llama()
    cpu_offload(model.model.layers[1], execution_device="cpu")
    return model


def test_an_offloaded_model_is_the_whole_one_until_a_weight_in_memory_changes():
    lm = ls.LM(offloaded(), None, "m")
    assert model_hash(lm.model) == model_hash(llama())
    lens_for(ls.LM(llama(), None, "m")).check(lm, lm)
    waiting = lm.model.model.layers[1].mlp.up_proj._hf_hook.weights_map
    waiting["weight"].data[0, 0] += 1
    assert model_hash(lm.model) != model_hash(llama())


def test_weights_that_nothing_brings_in_are_equal_to_no_others():
    first, second = llama(), llama()
    for model in (first, second):
        model.model.layers[1].mlp.up_proj.to("meta")
    assert model_hash(first) == model_hash(first)
    assert model_hash(first) != model_hash(second)
    assert identity.head_hash(first) == identity.head_hash(llama())
    assert identity.parameters_hash(first) is None


def test_kept_hashes_stay_whatever_becomes_of_the_weights():
    model, other = llama(), llama()
    before = identity.describe_weights(model, list(identity.ROUNDED)), identity.parameters_hash(model, "bfloat16")
    identity.keep_hashes(model)
    assert identity.hashes_are_kept(model)
    model.model.layers[1].mlp.up_proj.to("meta")
    after = identity.describe_weights(model, list(identity.ROUNDED)), identity.parameters_hash(model, "bfloat16")
    assert after == before
    assert before[0] == identity.describe_weights(other, list(identity.ROUNDED))


def test_a_lens_of_version_0_1_0_is_known_again_by_the_parameters_alone(tmp_path):
    """Its model_hash was over parameters, and nothing beside it said so."""
    lm = ls.LM(llama(), None, "m")
    old = {
        "model": "m",
        "model_hash": identity.parameters_hash(lm.model),
        "head_hash": None,
        "dtype": "float32",
        "rounded": {d: identity.parameters_hash(lm.model, d) for d in ("float32", "bfloat16", "float16")},
        "hidden_size": lm.hidden_size,
        "n_layers": lm.n_layers,
    }
    Affine(lens_for(lm).weights, old, old).save(tmp_path)
    lens = load_mapping(tmp_path)
    lens.check(lm, lm)
    half = ls.LM(llama().bfloat16(), None, "m")
    lens.check(half, half)
    for change in ("data", "numpy", "in place"):
        model = llama()
        CHANGES[change][1](model)
        other = ls.LM(model, None, "m")
        with pytest.raises(ls.LenscopeError, match="load the weights it was fitted with"):
            lens.check(other, other)
    # what says that it is of today is not compared in yesterday's way
    assert not is_same_model({**old, "identity": 2}, lm)
    assert not is_same_model({**model_identity(lm), "identity": 1}, lm)


def test_a_hash_of_parameters_is_what_version_0_1_0_wrote():
    """Computed there for this very model."""
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)).requires_grad_(False)
    for n, p in enumerate(model.parameters()):
        p.copy_(torch.arange(float(p.numel())).view(p.shape) + n)
    assert identity.parameters_hash(model) == "sha256:b00b18159356b2fc2a31ac4aa2c769f0b6a8b408dc383ee32d3ba839fd956e47"
    assert (
        identity.parameters_hash(model, "bfloat16")
        == "sha256:9cd916a06102f4c98b90c1977daed27092e023dc887b646f1a6c9319919afb9d"
    )


def test_copies_are_the_same_model():
    model = llama()
    assert model_hash(copy.deepcopy(model)) == model_hash(model)


# -- other machines


def test_another_processor_or_version_rounds_and_names_anew(monkeypatch):
    """RoPE's frequencies are made on each machine; modules get other attributes from release to release."""

    def elsewhere(model):
        model.model.rotary_emb.inv_freq.mul_(1 + 2**-22)
        model.model.layers[0].self_attn.new_name = 3
        return model

    lens = lens_for(ls.LM(llama(), None, "m"))
    same_weights = ls.LM(elsewhere(llama()), None, "m")
    half = ls.LM(elsewhere(llama()).bfloat16(), None, "m")
    other_weights = elsewhere(llama())
    up(other_weights).weight[0, 0] += 1e-6
    other_weights = ls.LM(other_weights, None, "m")
    other_rope = ls.LM(elsewhere(llama(rope_parameters={"rope_type": "default", "rope_theta": 50.0})), None, "m")
    other_scale = elsewhere(llama())
    other_scale.model.layers[2].self_attn.scaling *= 1.5
    other_scale = ls.LM(other_scale, None, "m")
    for lm in (same_weights, half, other_weights, other_rope, other_scale):
        with pytest.raises(ls.LenscopeError, match="fitted from"):
            lens.check(lm, lm)
    monkeypatch.setattr(same_model, "_environment", lambda lm: "another")
    lens.check(same_weights, same_weights)
    lens.check(half, half)
    for lm in (other_weights, other_rope, other_scale):
        with pytest.raises(ls.LenscopeError, match="fitted from"):
            lens.check(lm, lm)


@pytest.fixture(scope="module")
def other():
    return char_model()


def test_the_hash_of_the_head_is_of_the_head_alone():
    first, other = tiny.model("llama"), tiny.model("llama")
    assert identity.head_hash(first) == identity.head_hash(other)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    assert identity.head_hash(first) == identity.head_hash(other)
    assert identity.model_hash(first) != identity.model_hash(other)
    with torch.no_grad():
        other.lm_head.weight[9, 0] += 1e-3
    assert identity.head_hash(first) != identity.head_hash(other)
    weight = other.lm_head.weight.detach()
    described = f"weight {tuple(weight.shape)} torch.float32 ".encode()
    total = hashlib.sha256(described + hashlib.sha256(weight.numpy().tobytes()).digest())
    assert identity.head_hash(other) == f"sha256:{total.hexdigest()}"
