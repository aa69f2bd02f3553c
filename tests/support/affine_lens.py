"""A random affine lens for tests: near the identity, so that it reads something at every layer."""

import torch

from lenscope.mappings.mapping import Affine
from lenscope.models.same_model import model_identity


def affine(lm, seed=0):
    draw = torch.Generator().manual_seed(seed)
    d = lm.hidden_size
    weights = {
        (n, lm.n_layers): (torch.eye(d) + torch.randn(d, d, generator=draw) / d, torch.randn(d, generator=draw) / 5)
        for n in range(lm.n_layers)
    }
    return Affine(weights, model_identity(lm), model_identity(lm))
