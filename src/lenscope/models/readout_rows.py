"""Rows of the readout: for each token the vector whose product with a last state, over the norm's denominator, is read.

Knows: that a final norm is linear but for its denominator, how that is verified, the head's rows behind it.
Does not know: layers other than the last, lenses, tokens as text.
"""

import copy
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.models.language_model import LM
from lenscope.models.readout import Traced, wide

# States and rows that a norm is tried on, and how far it may be from linear, relative to what it gives.
TRIALS, TRIED_ROWS, EXACT = 16, 64, 1e-4
# Rows of the head that are added up at once.
PIECE = 4096


class ReadoutRows:
    """The rows r (D,) of a model's readout: the head's rows as the last state sees them, through the final norm.

    Before scale and soft cap, logit(h) = r·h / ρ(h) + c, where ρ(h) is the norm's denominator (the root mean square of
    h, of h less its mean where the norm centres; 1 without a norm) and c does not depend on h. For an RMS norm with
    weight w, r is the head's row times w; a layer norm's also has mean 0. This is verified on random states.
    Computed in float32, in float64 for a float64 model.

    Args:
        lm: the model.

    Raises LenscopeError for a model whose readout is no chain of a norm and a head that is a plain matrix.
    """

    def __init__(self, lm: LM) -> None:
        readout = lm.runner.readout
        every = torch.arange(min(TRIED_ROWS, lm.vocab_size), device=lm.device)
        head = readout.head(every)
        if not isinstance(readout, Traced) or head is None:
            raise LenscopeError(
                f"{lm.name}: its tokens have no rows, for its readout is no norm and matrix ({readout.description})"
            )
        like = wide(torch.empty(0, dtype=lm.dtype, device=lm.device))
        if like.dtype != lm.dtype:
            # the norm alone: a head in float32 may be larger than memory
            norms = [(name, copy.deepcopy(module).float()) for name, module in readout.chain[:-1]]
            readout = replace(readout, chain=(*norms, readout.chain[-1]))
        self.lm, self._readout, self._like = lm, readout, like
        self._denominator = 1.0
        self._denominator = self._verified(self._pulled_back(head[0].to(like)), head[0].to(like))

    def rows(self, ids: Tensor) -> Tensor:
        """The rows (n, D) of tokens (n,)."""
        head = self._readout.head(ids.to(self._like.device))
        assert head is not None
        return self._pulled_back(head[0].to(self._like))

    @cached_property
    def mean_row(self) -> Tensor:
        """The mean (D,) of the rows of all tokens: what raises all logits alike, and so no probability."""
        vocab, total = self.lm.vocab_size, torch.zeros(0)
        for start in range(0, vocab, PIECE):
            head = self._readout.head(torch.arange(start, min(start + PIECE, vocab), device=self._like.device))
            assert head is not None
            part = head[0].to(self._like).sum(0)
            total = part if not start else total + part
        return self._pulled_back(total[None] / vocab)[0]

    def _pulled_back(self, weights: Tensor) -> Tensor:
        """Rows (n, D) of the head's weights (n, D'): their products with the norm's derivative at 0.

        There the denominator is a constant, which `_verified` has measured.
        """
        h = weights.new_zeros(len(weights), self.lm.hidden_size)
        with torch.inference_mode(False), torch.enable_grad():
            h = h.clone().requires_grad_()
            out = self._readout.prepare(h)
        (rows,) = torch.autograd.grad(out, h, weights.clone().to(out))
        return rows.to(self._like) / self._denominator

    @torch.no_grad()
    def _verified(self, rows: Tensor, weights: Tensor) -> float:
        """What the norm at 0 is larger by than one with denominator ρ; LenscopeError where it is no such norm."""
        draw = torch.Generator().manual_seed(0)
        sizes = torch.logspace(1, 2, TRIALS, dtype=torch.float64)[:, None]
        drawn = torch.randn(TRIALS, self.lm.hidden_size, generator=draw, dtype=torch.float64)
        shift = torch.randn(TRIALS, 1, generator=draw, dtype=torch.float64)
        h = (sizes * (drawn + shift)).to(rows)
        outs = self._readout.prepare(torch.cat([torch.zeros_like(h[:1]), h])).to(rows)
        read, linear = (outs[1:] - outs[0]) @ weights.T, h @ rows.T
        if torch.isfinite(linear).all():
            share = (read * linear).sum(-1) / (linear * linear).sum(-1)
            off = (read - share[:, None] * linear).norm(dim=-1) / read.norm(dim=-1)
            centred = (rows.sum(-1).abs() <= 1e-3 * rows.norm(dim=-1)).all()
            rms = (h - h.mean(-1, keepdim=True) * centred).square().mean(-1).sqrt()
            for denominator in (1 / (share * rms), 1 / share):
                middle = denominator.median()
                if (off < EXACT).all() and ((denominator / middle - 1).abs() < 1e-3).all():
                    return float(denominator[-1])
        raise LenscopeError(
            f"{self.lm.name}: its tokens have no rows, for what stands before its head is not linear over the root "
            f"mean square of a state ({self._readout.description})"
        )
