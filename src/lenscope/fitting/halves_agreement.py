"""How far two lenses agree on held-out states: the error of a fitted lens, from lenses of two halves of its prompts.

Knows: top-1, overlap of the ten most probable tokens, cosine of centred logits; their intervals over documents.
Does not know: how the lenses were fitted.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lenscope.fitting.held_out import HeldOut, interval_ends
from lenscope.models.language_model import LM
from lenscope.models.readout import wide
from lenscope.statistics.intervals import Estimate, ratios

MEASURES = ("top1", "top10", "cosine")
# tokens that overlap is counted over
TOP = 10
# numbers of logits that are held at once for each lens
LOGITS = 1 << 24


def halves_agreement(
    held: HeldOut,
    first: Sequence[Tensor] | Tensor,
    second: Sequence[Tensor] | Tensor,
    positions: int | None = None,
    seed: int = 0,
) -> dict[str, list[Estimate]]:
    """For each layer and measure the mean agreement of two lenses' readouts, with its interval over documents.

    Args:
        held: the states that are read.
        first: the matrices of one lens, (n_layers, D, D), or a matrix of each layer as it is asked for.
        second: those of the other.
        positions: at most so many of the states, spread over all; None: all.
        seed: of the draws of documents.
    """
    lm, block, owners = held.lm, held.block, held.owners
    count = len(held.document)
    step = 1 if positions is None else max(1, count // positions)
    places = torch.arange(0, count, step, device=held.document.device)
    document = held.document[places]
    sums = torch.zeros(len(owners.own), len(MEASURES), held.documents, dtype=torch.float64, device=lm.device)
    for number, layer in enumerate(owners.own):
        h = block.states[number][places].float()
        ours, theirs = first[layer].to(h), second[layer].to(h)
        for part in torch.arange(len(h), device=lm.device).split(max(1, LOGITS // lm.vocab_size)):
            a, b = (_logits(lm, h[part] @ j.T) for j in (ours, theirs))
            agreement = torch.stack(_agreement(a, b)).double()
            sums[number].index_add_(1, document[part], agreement)
    counts = torch.zeros(held.documents, dtype=torch.float64, device=lm.device)
    counts.index_add_(0, document, counts.new_ones(len(document)))
    every = owners.everywhere(sums).cpu().numpy()
    by_document = counts.cpu().numpy()
    return {name: ratios(every[:, n].T, by_document, seed=seed) for n, name in enumerate(MEASURES)}


def _logits(lm: LM, h: Tensor) -> Tensor:
    readout = lm.runner.readout
    z = wide(readout.columns(readout.prepare(h.to(lm.dtype)), 0, lm.vocab_size))
    return z - z.mean(-1, keepdim=True)


def _agreement(a: Tensor, b: Tensor) -> list[Tensor]:
    """Of logits (N, V) of two lenses, (N,) each: the same top token, shared top tokens, cosine."""
    top_a, top_b = (z.topk(min(TOP, z.shape[-1])).indices for z in (a, b))
    shared = (top_a[:, :, None] == top_b[:, None, :]).any(-1).float().mean(-1)
    return [(top_a[:, 0] == top_b[:, 0]).float(), shared, torch.nn.functional.cosine_similarity(a, b)]


def agreement_rows(agreement: dict[str, list[Estimate]]) -> list[dict[str, Any]]:
    """What a report's row of each layer says of the agreement of the halves."""
    layers = len(agreement[MEASURES[0]])
    return [
        {key: value for name in MEASURES for key, value in _row(name, agreement[name][layer])}
        for layer in range(layers)
    ]


def _row(name: str, estimate: Estimate) -> Sequence[tuple[str, Any]]:
    return (name, estimate.value), (f"{name}_95", interval_ends(estimate))
