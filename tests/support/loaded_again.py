"""The tiny Llama as it may be loaded again: in another dtype, or with other weights; and a lens fitted for it."""

import tiny
import torch

import lenscope as ls
from lenscope.mappings.mapping import Affine
from lenscope.models import same_model


def named(dtype, change=None, seed=0):
    """The tiny Llama in a dtype, its float32 weights changed before they are rounded to it."""
    built = tiny.model("llama", seed=seed)
    if change is not None:
        with torch.no_grad():
            change(built)
    return ls.LM(built.to(dtype), None, "tiny-llama")


def lens_for(lm):
    model = same_model.model_identity(lm)
    return Affine({(n, lm.n_layers): (torch.eye(32),) for n in range(lm.n_layers)}, model, model)
