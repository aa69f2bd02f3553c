"""Sets of distributions compared, pair by pair, as their logits are made: whole ones never exist.

Knows: the walks over the vocabulary that distances between distributions need.
Does not know: prompts, tokens as text, what a lens is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

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


def diverge(readouts: tuple[Readout, Readout], vocab: int, h: tuple[Tensor, Tensor]) -> Divergences:
    """Compare the distributions read from h[0] and h[1], (L, P, D) each: JS, TV, KL(0 ‖ 1) and KL(1 ‖ 0)."""
    return Divergences(*_summed_over_pieces(readouts, vocab, h, _distances, 4)[0, 1])


def kl_between(readout: Readout, vocab: int, h: Sequence[Tensor]) -> Tensor:
    """KL(i ‖ j) in nats of the distributions read from several states, (L, P, D) each: (n, n, L, P), in float64."""
    sums = _summed_over_pieces([readout] * len(h), vocab, h, _divergences, 2)
    kl = torch.zeros(len(h), len(h), *h[0].shape[:2], dtype=torch.float64)
    for (i, j), both in sums.items():
        kl[i, j], kl[j, i] = both
    return kl


@torch.no_grad()
def _summed_over_pieces(
    readouts: Sequence[Readout], vocab: int, h: Sequence[Tensor], sums: Callable[..., tuple[Tensor, ...]], count: int
) -> dict[tuple[int, int], Tensor]:
    """Sums over the vocabulary of each two distributions, (count, L, P): {(0, 1): …, (0, 2): …, …}, none below 0.

    `sums` gives them of a piece, from log p, log q, p and q. Two walks over the vocabulary for each 256 rows, whatever
    the number of pairs: the first for the normalisers, the second for the sums.
    """
    a = readouts[0]
    layers, positions = h[0].shape[:2]
    pairs = list(combinations(range(len(h)), 2))
    # rows of all layers share a walk: the head is read once for many of them, not once for each layer
    states = [s.reshape(layers * positions, -1) for s in h]
    out = torch.zeros(len(pairs), count, layers * positions, dtype=torch.float64)
    whole = not all(r.splits for r in readouts)
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
            logs = [
                logits_of_piece(r, x, *piece)[0].sub_(n).clamp_(min=LOWEST)
                for r, x, n in zip(readouts, xs, norms, strict=True)
            ]
            shares = [log.exp() for log in logs]
            for n, (i, j) in enumerate(pairs):
                of_piece = sums(logs[i], logs[j], shares[i], shares[j])
                out[n, :, rows] += torch.stack([s.cpu().double() for s in of_piece])
    return dict(zip(pairs, out.clamp_min(0).view(len(pairs), count, layers, positions), strict=True))


def _distances(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, ...]:
    """What a piece of the vocabulary adds to the distances of two distributions, as `Divergences` has them."""
    log_m = ((p + q) / 2).log_().clamp_(min=LOWEST)
    js = (torch.linalg.vecdot(p, log_p - log_m) + torch.linalg.vecdot(q, log_q - log_m)) / 2
    return js, (p - q).abs_().sum(-1) / 2, *_divergences(log_p, log_q, p, q)


def _divergences(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, ...]:
    """What a piece of the vocabulary adds to KL(p ‖ q) and KL(q ‖ p)."""
    apart = log_p - log_q
    return torch.linalg.vecdot(p, apart), -torch.linalg.vecdot(q, apart)


def _log_sum_exp(z: Tensor) -> Tensor:
    # in place: torch.logsumexp makes several copies of z and takes longer than the product that made it
    m = z.amax(-1).clamp_min(LOWEST)
    return z.sub_(m[:, None]).exp_().sum(-1).log_().add_(m)
