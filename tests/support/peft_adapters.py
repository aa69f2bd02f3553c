"""Adapters made with the package peft on tiny models, for tests; whoever imports this is skipped where it is missing.

Knows: peft. Does not know: lenscope, which is compared with peft's own forward.
"""

import copy

import pytest
import torch

peft = pytest.importorskip("peft", reason="the package peft, which makes and reads adapters, is not installed")

ATTENTION_AND_MLP = {
    "llama": ["q_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "gemma2": ["v_proj", "gate_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "mamba": ["in_proj", "x_proj"],
}


def lora(model_type="llama", **changes):
    """A LoRA on attention and MLP, which is no identity at the start."""
    return peft.LoraConfig(
        **{"r": 3, "target_modules": ATTENTION_AND_MLP[model_type], "init_lora_weights": False, **changes}
    )


def ia3():
    return peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])


def wrapped(model, config, name="default", seed=0):
    """A copy of a model in adapters whose weights are drawn, in eval mode."""
    # peft draws weights by the numbers that all tests share
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = peft.get_peft_model(copy.deepcopy(model), config, adapter_name=name)
    redraw(built, seed)
    return built.eval()


def redraw(built, seed):
    """Move the weights of the adapters that are on, so that they do something."""
    draw = torch.Generator().manual_seed(seed)
    for _, p in sorted(built.named_parameters()):
        if p.requires_grad:
            p.data.add_(torch.randn(p.shape, generator=draw).to(p) * 0.1)


def saved(folder, model, config, seed=0):
    """The folder of an adapter for a model."""
    wrapped(model, config, seed=seed).save_pretrained(folder)
    return folder


def opened(model, folder):
    """PEFT's own model of a folder, the oracle; `model` is left as it is."""
    return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
