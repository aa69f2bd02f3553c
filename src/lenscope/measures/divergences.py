"""Two sets of distributions compared as their logits are made: whole ones never exist.

Knows: the walks over the vocabulary that distances between distributions need.
Does not know: prompts, tokens as text, what a lens is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.measures.streamed import LOWEST, WHOLE_ROWS_BYTES, logits_of_piece, vocabulary_pieces
from lenscope.models.readout import Readout


@dataclass(frozen=True, eq=False, repr=False)
class Divergences(Brief):
    """Two sets of distributions compared, (L, P) each, in nats (total variation: 0 … 1)."""

    js: Tensor
    total_variation: Tensor
    kl: Tensor
    kl_back: Tensor


@torch.no_grad()
def diverge(readouts: tuple[Readout, Readout], vocab: int, h: tuple[Tensor, Tensor]) -> Divergences:
    """Compare the distributions read from h[0] and h[1], (L, P, D) each: JS, TV, KL(0 ‖ 1) and KL(1 ‖ 0).

    Two walks over the vocabulary for each 256 rows: the first for the normalisers, the second for the sums.
    """
    a, b = readouts
    layers, positions = h[0].shape[:2]
    # rows of all layers share a walk: the head is read once for many of them, not once for each layer
    states = [s.reshape(layers * positions, -1) for s in h]
    out = torch.zeros(4, layers * positions, dtype=torch.float64)
    whole = not (a.splits and b.splits)
    size = max(1, WHOLE_ROWS_BYTES // (vocab * 4)) if whole else 256
    pieces = [(0, vocab)] if whole else vocabulary_pieces(a, vocab, h[0].new_empty(1, size, 1))
    for at in range(0, layers * positions, size):
        rows = slice(at, at + size)
        xs = [(r.prepare(s[rows]) if r.splits else s[rows])[None] for r, s in zip(readouts, states, strict=True)]
        norms = []
        for r, x in zip(readouts, xs, strict=True):
            parts = [_log_sum_exp(logits_of_piece(r, x, *piece)[0]) for piece in pieces]
            norms.append(torch.stack(parts).logsumexp(0)[:, None])
        for piece in pieces:
            log_p, log_q = (
                logits_of_piece(r, x, *piece)[0].sub_(n).clamp_(min=LOWEST)
                for r, x, n in zip(readouts, xs, norms, strict=True)
            )
            p, q = log_p.exp(), log_q.exp()
            log_m = ((p + q) / 2).log_().clamp_(min=LOWEST)
            dot = torch.linalg.vecdot
            sums = (
                (dot(p, log_p - log_m) + dot(q, log_q - log_m)) / 2,
                (p - q).abs_().sum(-1) / 2,
                dot(p, log_p - log_q),
                dot(q, log_q - log_p),
            )
            out[:, rows] += torch.stack([s.cpu().double() for s in sums])
    return Divergences(*(o.clamp_min(0) for o in out.view(4, layers, positions)))


def _log_sum_exp(z: Tensor) -> Tensor:
    # in place: torch.logsumexp makes several copies of z and takes longer than the product that made it
    m = z.amax(-1).clamp_min(LOWEST)
    return z.sub_(m[:, None]).exp_().sum(-1).log_().add_(m)
