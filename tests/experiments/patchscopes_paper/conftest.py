"""A model that reads the prompts of the Patchscopes paper."""

import pytest
import tiny
from transformers import AutoModelForCausalLM

import lenscope as ls


@pytest.fixture(scope="session")
def roomy():
    """A model that reads prompts as long as the paper's with a tokenizer of hardly more than letters."""
    config = tiny.config("llama")
    config.max_position_embeddings = 256
    built = AutoModelForCausalLM.from_config(config).eval()
    tiny._randomise(built, 2)
    return ls.LM(built.double(), tiny.tokenizer(), "tiny-roomy")
