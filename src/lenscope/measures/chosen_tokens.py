"""Ranks and log-probabilities of chosen tokens: all of them in one walk over the vocabulary.

Knows: that only the logits of the chosen tokens and running sums are held, never those of all tokens.
Does not know: prompts, tokens as text, what a lens is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.measures.streamed import LOWEST, layers_at_once, logits_of_piece, row_pieces, vocabulary_pieces
from lenscope.models.readout import Readout, wide


@dataclass(frozen=True, eq=False, repr=False)
class RankedTokens(Brief):
    """Of n tokens in each distribution: how many tokens are more probable (int32), and ln p in nats; (n, L, P) each."""

    rank: Tensor
    log_prob: Tensor


class ChosenSums:
    """Running sums over the vocabulary for prepared states x (G, P, D) and n chosen tokens.

    `chosen` are the n tokens' logits (n, G, P), `above` counts the tokens with larger ones; the sums are of exp(z - m)
    with m the largest logit so far.
    """

    def __init__(self, x: Tensor, ids: Tensor, chosen: Tensor) -> None:
        self.x, self.ids, self.chosen = x, ids, chosen
        self.above = torch.zeros_like(chosen, dtype=torch.int32)
        self.m = self.s = torch.empty(0)

    def add(self, z: Tensor, start: int) -> None:
        """Take in the logits z (G, P, C) of the tokens from `start`; overwrites z."""
        for n, token in enumerate(self.ids.tolist()):
            larger = z > self.chosen[n][..., None]
            if start <= token < start + z.shape[-1]:
                # the same logit from another product differs in its last bits: a token must not outrank itself
                larger[..., token - start] = False
            self.above[n] += larger.sum(-1, dtype=torch.int32)
        m = z.amax(-1).clamp_min(LOWEST)
        if start:
            m = torch.maximum(m, self.m)
        s = z.sub_(m[..., None]).exp_().sum(-1)
        self.s = s + (self.m - m).exp() * self.s if start else s
        self.m = m


@torch.no_grad()
def rank_tokens(readout: Readout, vocab: int, h: Tensor, ids: Tensor, last_alone: bool = False) -> RankedTokens:
    """Ranks and log-probabilities of the tokens `ids` (n,) in the distributions read from states h (L, P, D).

    `last_alone` reads h[-1] in a product of its own, as `lenscope.measures.streamed.reduce` does where it is the final
    state: the logits, and so the ranks, are then the same to the last bit. Raises LenscopeError for logits that are
    not finite.
    """
    parts = [_ranked(readout, vocab, h[:, rows], ids, last_alone) for rows in row_pieces(readout, vocab, h)]
    return RankedTokens(torch.cat([p.rank for p in parts], -1), torch.cat([p.log_prob for p in parts], -1))


def _ranked(readout: Readout, vocab: int, h: Tensor, ids: Tensor, last_alone: bool) -> RankedTokens:
    """One walk over the vocabulary for all layers of a few positions."""
    layers = len(h) - last_alone
    split = [*h[:layers].split(layers_at_once(readout, vocab, h)), h[layers:]]
    groups = [_chosen_sums(readout, g, ids) for g in split if len(g)]
    for start, stop in vocabulary_pieces(readout, vocab, h):
        for group in groups:
            group.add(logits_of_piece(readout, group.x, start, stop), start)
    log_prob = torch.cat([g.chosen - (g.m + g.s.log()) for g in groups], 1)
    if torch.isnan(log_prob).any():
        raise LenscopeError(
            "logits hold NaN or infinity: a lens gives states that are not finite, or 16 bits do not hold them; mend "
            "the lens or load the model in float32"
        )
    return RankedTokens(torch.cat([g.above for g in groups], 1), log_prob)


def _chosen_sums(readout: Readout, h: Tensor, ids: Tensor) -> ChosenSums:
    """A readout that splits prepares its states once; one that does not would make all logits: it waits."""
    rows = h.flatten(0, 1)
    ready = readout.prepare(rows)
    chosen = [wide(readout.tokens(ready, token.expand(len(rows)))).view(h.shape[:2]) for token in ids]
    x = ready if readout.splits else rows
    return ChosenSums(x.view(*h.shape[:2], -1), ids, torch.stack(chosen))
