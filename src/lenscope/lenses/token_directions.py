"""Directions of tokens: which vectors in a layer's states raise a token's logit through a lens.

Knows: the transpose of a lens's linear part, rows less what all tokens share.
Does not know: how rows of the readout are had (models/readout_rows.py), what is done along a direction.
"""

import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.mappings.mapping import PairMapping, StateMap, identity
from lenscope.models.language_model import LM
from lenscope.models.readout_rows import ReadoutRows


class TokenDirections:
    """Aᵀ r of tokens: r the row of the readout (`ReadoutRows`), A the linear part of a lens f(h) = A h + b.

    Args:
        lm: the model whose states are read.
        f: the lens's mapping; None: the logit lens, whose A is the identity.
        name: what errors call the lens.

    Raises LenscopeError for an f that is a function, whose linear part cannot be read, and as `ReadoutRows`.
    """

    def __init__(self, lm: LM, f: StateMap | None, name: str) -> None:
        f = None if f is identity else f
        if f is not None and not isinstance(f, PairMapping):
            raise LenscopeError(
                f"{name}: a function has no directions of tokens, for nothing says that it is affine; give the logit "
                "lens, or a fitted lens"
            )
        self.lm, self._f, self.name = lm, f, name
        self._rows = ReadoutRows(lm)

    def of(self, ids: Tensor, layer: int) -> Tensor:
        """The directions (n, D) of tokens (n,) in a layer's states. LenscopeError for one without a map."""
        return self._pulled_back(self._rows.rows(ids), layer)

    def unit(self, ids: Tensor, layer: int) -> Tensor:
        """Unit directions (n, D) of tokens (n,), of rows less the mean row of the vocabulary.

        What all rows share raises all logits alike, which changes no probability. Zero for a token without any other.
        """
        directions = self._pulled_back(self._rows.rows(ids) - self._rows.mean_row, layer)
        return directions / directions.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(directions.dtype).tiny)

    def _pulled_back(self, rows: Tensor, layer: int) -> Tensor:
        f, last = self._f, self.lm.n_layers
        if f is None:
            return rows
        if layer not in f.layers(last):
            have = ", ".join(map(str, f.layers(last)))
            raise LenscopeError(f"layer {layer}: {self.name} has maps for the layers {have}")
        with torch.inference_mode(False), torch.enable_grad():
            h = torch.zeros_like(rows).requires_grad_()
            out = f(h, layer, last)
        (directions,) = torch.autograd.grad(out, h, rows.clone().to(out))
        return directions
