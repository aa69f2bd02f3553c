"""What tests of detectors and of injections have in common: a model, and a lens that is as if it were tuned."""

import tiny
import torch

import lenscope as ls
from lenscope.mappings.mapping import Affine
from lenscope.models.same_model import model_identity


def roomy_model():
    """With room for few-shot prompts."""
    model = tiny.model("llama", dtype=torch.float64)
    model.config.max_position_embeddings = 4096
    return ls.LM(model, tiny.tokenizer(), "tiny-llama")


def tuned_lens(lm):
    draw = torch.Generator().manual_seed(0)
    d = lm.hidden_size
    weights = {
        (n, lm.n_layers): (torch.eye(d) + torch.randn(d, d, generator=draw) / d, torch.randn(d, generator=draw) / 5)
        for n in range(lm.n_layers)
    }
    return ls.Lens(lm, Affine(weights, model_identity(lm), model_identity(lm)), name="tuned")
