"""A model with an adapter is PEFT's own, number by number, and the model that it was made of stays what it is."""

import gc
import json
import shutil
import weakref

import peft_adapters
import pytest
import tiny
import torch
from plain_hooks import hooks_of
from safetensors.torch import load_file, save_file

import lenscope as ls
from lenscope.models import with_adapter
from lenscope.models.identity import model_hash

CONFIGS = {
    "attention and MLP": peft_adapters.lora,
    "rank-stabilised, all linear layers": lambda: peft_adapters.lora(target_modules="all-linear", use_rslora=True),
    "DoRA": lambda: peft_adapters.lora(use_dora=True),
    "head and embedding": lambda: peft_adapters.lora(target_modules=["q_proj", "lm_head", "embed_tokens"]),
    "whole modules": lambda: peft_adapters.lora(modules_to_save=["lm_head", "embed_tokens"]),
    "some tokens": lambda: peft_adapters.lora(trainable_token_indices=[5, 6]),
    "IA3": peft_adapters.ia3,
}
IN_FLOAT32 = {
    # these take a part out of the weights below, the second of them in place
    "PiSSA": lambda: peft_adapters.lora(init_lora_weights="pissa"),
    "OLoRA": lambda: peft_adapters.lora(init_lora_weights="olora"),
    "biases": lambda: peft_adapters.lora("gpt2", bias="all"),
}


@pytest.fixture(scope="module")
def plain():
    return ls.LM(tiny.model("llama", dtype=torch.float64), tiny.tokenizer(), "tiny-llama")


@pytest.fixture(scope="module")
def folder(plain, tmp_path_factory):
    return peft_adapters.saved(tmp_path_factory.mktemp("adapters") / "first", plain.model, peft_adapters.lora())


@pytest.fixture(scope="module")
def other(plain, tmp_path_factory):
    return peft_adapters.saved(
        tmp_path_factory.mktemp("adapters") / "second", plain.model, peft_adapters.lora(r=2), seed=1
    )


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("kind", [*CONFIGS, *IN_FLOAT32])
def test_a_model_with_an_adapter_is_pefts_own(kind, tmp_path):
    family = "gpt2" if kind == "biases" else "llama"
    dtype = torch.float32 if kind in IN_FLOAT32 else torch.float64
    model = tiny.model(family, dtype=dtype)
    lm = ls.LM(model, tiny.tokenizer(), "m")
    weights, identity = {name: t.clone() for name, t in model.state_dict().items()}, model_hash(model)
    ids = tiny.ids(model, 2, 9)
    before = logits(model, ids)
    peft_adapters.saved(tmp_path, model, {**CONFIGS, **IN_FLOAT32}[kind]())
    oracle = peft_adapters.opened(model, tmp_path)
    adapted = with_adapter(lm, tmp_path)
    expected = logits(oracle, ids)
    assert torch.equal(logits(adapted.model, ids), expected)
    assert (expected - before).abs().max() > 1e-2
    states = adapted.read(ids.tolist())
    assert torch.allclose(
        adapted.unembed(states.tensor[:, -1]), expected, rtol=0, atol=1e-10 if dtype == torch.float64 else 1e-3
    )
    assert model_hash(adapted.model) == model_hash(oracle.get_base_model()) != identity
    # the plain model is what it was, bit for bit
    assert torch.equal(logits(model, ids), before)
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
    assert model_hash(model) == identity


def test_weights_are_shared_and_models_are_not(plain, folder, other):
    first, second = with_adapter(plain, folder), with_adapter(plain, other)
    own = {p.data_ptr() for p in plain.model.parameters()}
    for adapted in (first, second):
        assert own <= {p.data_ptr() for p in adapted.model.parameters()}
        assert adapted.lock is plain.lock
        assert adapted.runner.measured is not plain.runner.measured
        assert adapted.plain is plain
    assert len({model_hash(lm.model) for lm in (plain, first, second)}) == 3
    assert with_adapter(plain, folder) is first
    assert with_adapter(second, folder) is first
    assert with_adapter(plain, first) is first
    assert first.name == "tiny-llama + first"
    assert first.adapter == str(folder)
    text = "The capital of France is"
    assert not torch.equal(first.read(text).tensor, plain.read(text).tensor)


def test_a_model_with_an_adapter_goes_when_nobody_has_it(plain, tmp_path):
    peft_adapters.saved(tmp_path, plain.model, peft_adapters.lora(), seed=7)
    model = weakref.ref(with_adapter(plain, tmp_path).model)
    gc.collect()
    assert model() is None


def test_edits_and_hooks_of_the_plain_model_stay_there(plain, folder, tmp_path):
    peft_adapters.saved(tmp_path, plain.model, peft_adapters.lora(), seed=3)
    with (
        plain.edit(ls.Edit(2, -1, torch.ones(plain.hidden_size))),
        pytest.raises(ls.LenscopeError, match="inside an edit"),
    ):
        with_adapter(plain, tmp_path)
    watched = plain.runner.hook(1, lambda h: h + 1)
    try:
        adapted = with_adapter(plain, tmp_path)
    finally:
        watched.remove()
    assert not any(map(any, hooks_of(adapted)))
    ids = tiny.ids(plain.model, 1, 6)
    assert torch.equal(logits(adapted.model, ids), logits(peft_adapters.opened(plain.model, tmp_path), ids))


def test_after_a_change_of_the_plain_model_the_adapter_is_put_in_anew(folder):
    lm = ls.LM(tiny.model("llama", dtype=torch.float64), tiny.tokenizer(), "m")
    before = with_adapter(lm, folder)
    up = lm.model.model.layers[1].mlp.up_proj
    # in place: the weights are shared
    up.weight.data.mul_(2)
    assert with_adapter(lm, folder) is before
    ids = tiny.ids(lm.model, 1, 6)
    assert torch.equal(logits(before.model, ids), logits(peft_adapters.opened(lm.model, folder), ids))
    up.weight.data = up.weight.data * 2
    after = with_adapter(lm, folder)
    assert after is not before
    assert torch.equal(logits(after.model, ids), logits(peft_adapters.opened(lm.model, folder), ids))


# -- what is refused


def broken(folder, tmp_path, config=None, tensors=None):
    """A copy of an adapter's folder with something changed."""
    copied = shutil.copytree(folder, tmp_path / "broken")
    if config is not None:
        text = json.loads((copied / "adapter_config.json").read_text())
        (copied / "adapter_config.json").write_text(json.dumps({**text, **config}))
    if tensors is not None:
        content = load_file(copied / "adapter_model.safetensors")
        tensors(content)
        save_file(content, copied / "adapter_model.safetensors")
    return copied


def first_of(content):
    return next(name for name in content if "lora_A" in name)


CASES = {
    "a rank that the file does not have": (
        {"r": 2},
        None,
        r"does not fit .*q_proj.lora_A.weight is \[3, 32\] in its file",
    ),
    "a rank without end": ({"r": 10**9}, None, "has r 1000000000, and no tensor of its file is larger"),
    "no such modules": ({"target_modules": ["nowhere"]}, None, "does not fit LlamaForCausalLM .*nowhere"),
    "fewer modules than the file": ({"target_modules": ["q_proj"]}, None, r"has 16 tensors that .* no place for"),
    "a tensor is missing": (None, lambda c: c.pop(first_of(c)), "lacks 1 tensor of its layers, which would be drawn"),
    "a tensor too many": (None, lambda c: c.update(own=torch.ones(2)), "has 1 tensor that .* no place for: own"),
    "an unknown kind": ({"peft_type": "HOUSE"}, None, "names peft_type 'HOUSE', which peft .* does not know"),
    "no kind": ({"peft_type": None}, None, "names no peft_type"),
    "an option of later versions": ({"use_tomorrow": 0.5}, None, "sets use_tomorrow, which peft .* does not know"),
    "a value of another kind": ({"r": "three"}, None, "broken"),
    "virtual tokens": ({"peft_type": "PREFIX_TUNING"}, None, "adds virtual tokens to each prompt"),
    "on from some tokens": ({"alora_invocation_tokens": [3]}, None, "is an activated LoRA"),
    "beside the model": ({"peft_type": "XLORA"}, None, "acts beside the model's own forward"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_that_is_not_for_the_model_is_refused_in_a_line(case, plain, folder, tmp_path):
    config, tensors, match = CASES[case]
    identity = model_hash(plain.model)
    with pytest.raises(ls.LenscopeError, match=match) as raised:
        with_adapter(plain, broken(folder, tmp_path, config, tensors))
    assert "\n" not in str(raised.value)
    assert model_hash(plain.model) == identity
    with_adapter(plain, folder)


def test_an_adapter_of_another_model_is_refused(folder, tmp_path):
    fewer = ls.LM(tiny.model("llama", layers=2), tiny.tokenizer(), "fewer")
    with pytest.raises(ls.LenscopeError, match=r"has 12 tensors that .* no place for: model.layers.2"):
        with_adapter(fewer, folder)
    deeper = ls.LM(tiny.model("llama", layers=5), tiny.tokenizer(), "deeper")
    with pytest.raises(ls.LenscopeError, match=r"lacks 6 tensors of its layers.*model.layers.4"):
        with_adapter(deeper, folder)
    with pytest.raises(ls.LenscopeError, match="does not fit GPT2LMHeadModel"):
        with_adapter(ls.LM(tiny.model("gpt2"), tiny.tokenizer(), "gpt2"), folder)
    with pytest.raises(ls.LenscopeError, match="is not tiny with an adapter"):
        with_adapter(ls.LM(tiny.model("llama"), tiny.tokenizer(), "tiny"), deeper)


def test_what_is_no_adapter_is_told(plain, folder, tmp_path):
    for place, match in (
        (tmp_path, "is no folder of an adapter"),
        (tmp_path / "none", "no such folder"),
        ("", "give the folder of an adapter"),
        ("a\0b", "give the folder of an adapter"),
        ("nobody/nothing", "hub"),
        (folder / "adapter_config.json", "is a file; give the folder"),
    ):
        with pytest.raises(ls.LenscopeError, match=match):
            with_adapter(plain, place)
    lacking = broken(folder, tmp_path)
    (lacking / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ls.LenscopeError, match="is damaged, or no file of tensors"):
        with_adapter(plain, lacking)
    (lacking / "adapter_model.safetensors").unlink()
    with pytest.raises(ls.LenscopeError, match=r"no adapter_model\.safetensors beside it"):
        with_adapter(plain, lacking)
    (lacking / "adapter_config.json").write_text("[")
    with pytest.raises(ls.LenscopeError, match="is no JSON"):
        with_adapter(plain, lacking)


def test_pickled_weights_are_read_without_running_code(plain, folder, tmp_path):
    pickled = broken(folder, tmp_path)
    torch.save(load_file(pickled / "adapter_model.safetensors"), pickled / "adapter_model.bin")
    (pickled / "adapter_model.safetensors").unlink()
    ids = tiny.ids(plain.model, 1, 6)
    assert torch.equal(logits(with_adapter(plain, pickled).model, ids), logits(with_adapter(plain, folder).model, ids))

    class Code:
        def __reduce__(self):
            return (exec, ("raise SystemExit",))

    torch.save({"a": Code()}, pickled / "adapter_model.bin")
    with pytest.raises(ls.LenscopeError):
        with_adapter(plain, pickled)


# -- loaded with an adapter: from files, and in memory


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a model, and beside it the folder of an adapter that names it."""
    folder = tmp_path_factory.mktemp("models") / "base"
    model = tiny.model("llama")
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    loaded = ls.load(folder).model
    peft_adapters.saved(folder.parent / "adapter", loaded, peft_adapters.lora())
    return folder


def test_load_puts_an_adapter_on_or_takes_the_model_that_it_names(base):
    adapter = base.parent / "adapter"
    plain, ids = ls.load(base), tiny.ids(tiny.model("llama"), 2, 7)
    expected = logits(peft_adapters.opened(plain.model, adapter), ids)
    for adapted in (
        ls.load(base, adapter=adapter),
        ls.load(adapter),
        ls.load((plain.model, plain.tokenizer), adapter=adapter),
    ):
        assert torch.equal(logits(adapted.model, ids), expected)
        assert adapted.adapter == str(adapter)
        assert torch.equal(logits(adapted.plain.model, ids), logits(plain.model, ids))
    assert ls.load(base, adapter=adapter).name == "base + adapter"
    assert ls.load(adapter).name == "adapter"
    assert ls.load(adapter, dtype="float64").dtype == torch.float64


def test_an_adapters_own_tokenizer_is_taken(base, tmp_path):
    adapter = shutil.copytree(base.parent / "adapter", tmp_path / "adapter")
    assert ls.load(adapter).tokenizer.get_vocab() == ls.load(base).tokenizer.get_vocab()
    own = ls.load(base).tokenizer
    own.add_tokens(["<own>"])
    own.save_pretrained(adapter)
    assert "<own>" in ls.load(adapter).tokenizer.get_vocab()
    assert "<own>" not in ls.load(base, adapter=adapter).tokenizer.get_vocab()


def test_an_adapter_that_names_no_model_asks_for_one(base, tmp_path):
    nameless = broken(base.parent / "adapter", tmp_path, {"base_model_name_or_path": None})
    elsewhere = broken(base.parent / "adapter", tmp_path / "other", {"base_model_name_or_path": "moved-away"})
    with pytest.raises(
        ls.LenscopeError, match=r"is an adapter for moved-away \(to name its model yourself: .* -m MODEL --adapter "
    ) as raised:
        ls.load(str(elsewhere))
    assert "moved-away: no built-in model" in str(raised.value)
    with pytest.raises(ls.LenscopeError, match="names no model that the adapter is for"):
        ls.load(nameless)
    with pytest.raises(ls.LenscopeError, match="is neither streamed nor divided"):
        ls.models.load_streamed(base.parent / "adapter")


@pytest.mark.parametrize("kind", ["attention and MLP", "whole modules", "IA3", "head and embedding"])
def test_a_wrapped_model_reads_as_itself_whatever_is_on(kind, plain):
    config = CONFIGS[kind]()
    wrapper = peft_adapters.wrapped(plain.model, config)
    wrapper.add_adapter("other", config)
    wrapper.set_adapter("other")
    peft_adapters.redraw(wrapper, 9)
    wrapper.set_adapter("default")
    lm = ls.load(wrapper, tiny.tokenizer())
    ids = tiny.ids(plain.model, 2, 8)
    identities, seen = set(), []

    def reads():
        with torch.no_grad():
            expected = wrapper(input_ids=ids, output_hidden_states=True)
        states = lm.read(ids.tolist())
        for layer in range(lm.n_layers):
            assert torch.equal(states.tensor[:, layer], expected.hidden_states[layer])
        assert (lm.unembed(states.tensor[:, -1]) - expected.logits).abs().max() <= 1e-10
        written = wrapper.generate(input_ids=ids[:1], max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
        assert list(lm.generate(ids[0].tolist(), 3).ids) == written.tolist()
        identities.add(model_hash(lm.model))
        seen.append(expected.logits)

    reads()
    wrapper.set_adapter("other")
    reads()
    assert len(identities) == 2
    assert (seen[0] - seen[1]).abs().max() > 1e-3
    with wrapper.disable_adapter():
        reads()
        assert model_hash(lm.model) == model_hash(plain.model)
        assert torch.equal(seen[2], logits(plain.model, ids))
    reads()
    assert torch.equal(seen[3], seen[1])
    # an adapter of it by its name, whatever is on, and as peft has it
    named = with_adapter(lm, "default")
    assert torch.equal(logits(named.model, ids), seen[0])
    assert torch.equal(logits(lm.model, ids), seen[1])
    merged = wrapper.merge_and_unload()
    assert torch.allclose(logits(ls.load(merged, tiny.tokenizer()).model, ids), seen[1], rtol=0, atol=1e-10)


def test_adapters_of_transformers_own_are_read_too(plain):
    model = tiny.model("llama", dtype=torch.float64)
    model.add_adapter(peft_adapters.lora(), adapter_name="one")
    lm = ls.load(model, tiny.tokenizer())
    ids = tiny.ids(model, 1, 6)
    on = lm.unembed(lm.read(ids[0].tolist())[lm.n_layers, :])
    assert (on - logits(model, ids)[0]).abs().max() <= 1e-10
    model.disable_adapters()
    assert model_hash(model) == model_hash(plain.model)
    assert torch.equal(lm.read(ids[0].tolist()).tensor, plain.read(ids[0].tolist()).tensor)


def test_wrappers_that_are_more_than_layers_are_refused(plain):
    virtual = peft_adapters.peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    wrapper = peft_adapters.wrapped(tiny.model("llama"), virtual)
    with pytest.raises(
        ls.LenscopeError, match="adapter default: is a PROMPT_TUNING adapter, which adds virtual tokens"
    ):
        ls.load(wrapper, tiny.tokenizer())
    wrapper = peft_adapters.wrapped(tiny.model("llama"), peft_adapters.lora())
    forward = wrapper.forward
    wrapper.forward = lambda input_ids: forward(input_ids=input_ids + 1)
    with pytest.raises(ls.LenscopeError, match="gives other logits than the LlamaForCausalLM that it wraps"):
        ls.load(wrapper, tiny.tokenizer())


def test_on_a_model_with_merged_or_weight_changing_adapters_no_other_is_put(plain, folder):
    wrapper = peft_adapters.wrapped(plain.model, peft_adapters.lora())
    lm = ls.load(wrapper, tiny.tokenizer())
    with_adapter(lm, folder)
    wrapper.merge_adapter()
    with pytest.raises(ls.LenscopeError, match="has adapters merged into its weights"):
        with_adapter(lm, folder)
    changed = ls.load(
        peft_adapters.wrapped(tiny.model("llama"), peft_adapters.lora(init_lora_weights="pissa")), tiny.tokenizer()
    )
    with pytest.raises(ls.LenscopeError, match="changes the weights below it"):
        with_adapter(changed, folder)
