"""What evaluations are made of: rows of random tokens, and lenses with random weights; and what two of them share."""

import tiny
import torch

from lenscope.files.records import document_of
from lenscope.mappings.mapping import Affine
from lenscope.models.same_model import model_identity


def rows_of(lm, lengths=(9, 5, 12, 3), seed=0):
    return [tiny.ids(lm.model, 1, n, seed + i)[0].tolist() for i, n in enumerate(lengths)]


def affine(lm, layers=None, seed=0):
    draw = torch.Generator().manual_seed(seed)
    d = lm.hidden_size
    weights = {
        (n, lm.n_layers): (torch.eye(d) + torch.randn(d, d, generator=draw) / d, torch.randn(d, generator=draw) / 5)
        for n in layers or range(lm.n_layers)
    }
    return Affine(weights, model_identity(lm), model_identity(lm))


def contents(result):
    """All that a file would hold, without the time."""
    document = document_of(result)
    provenance = {name: value for name, value in document.pop("provenance").items() if name != "created"}
    return {**document, "provenance": provenance, "sha256": None}
