"""A small Llama whose costs are counted while it really works, and a machine whose figures are round."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lenscope as ls
from lenscope.planning.machines import Machine
from lenscope.planning.model_shapes import shape_of_model

CONFIG = {
    "hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="session")
def llama():
    torch.manual_seed(0)
    return ls.load(LlamaForCausalLM(LlamaConfig(**CONFIG)).eval())


@pytest.fixture(scope="session")
def shape(llama):
    return shape_of_model(llama.model, "small", torch.float32)


@pytest.fixture(scope="session")
def documents():
    return torch.randint(10, 1000, (700, 127), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture
def slow(monkeypatch):
    """A machine of round figures, which multiplies numbers of 16 bits no faster, as the fits beside it."""
    monkeypatch.setenv("LENSCOPE_FAST_PRODUCTS", "0")
    return Machine(
        "slow", {16: 1e9, 32: 2e9, 64: 1e9}, 1e9, 1e9, network=1e8, across=1e7, host=1e8, source="round", disk=1e6,
        cached=True,
    )  # fmt: skip
