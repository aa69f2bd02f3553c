"""Held-out text of a fit: documents that choose what each layer keeps, and other documents that measure it.

Knows: how held-out documents are parted and spread, what candidates are compared by, intervals over documents.
Does not know: how candidates come about (tuned_lens_run.py), what a fitted lens says of itself (tuned_lens.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from lenscope.distributed.layer_owners import LayerOwners
from lenscope.errors import LenscopeError
from lenscope.fitting.closed_form import with_constant
from lenscope.fitting.schedule import ROWS_TOGETHER
from lenscope.fitting.state_block import StateBlock, masked_rows
from lenscope.measures.sampled_kl import SampledKL
from lenscope.measures.streamed import reduce
from lenscope.models.language_model import LM
from lenscope.statistics.intervals import Estimate, ratios
from lenscope.text.corpus import Corpus, TokenBatch

# Tokens that count of the part that chooses, and how many rows they are spread over, as long as no more tokens have to
# be read; tokens that count of the part that measures, over the whole vocabulary, which takes most of the time.
COUNTED, ROWS, READ = 1024, 8, 4096
MEASURING = 512
# Documents below which an interval over them says too little.
FEWEST_DOCUMENTS = 8
# Columns of the vocabulary by which candidates are compared.
COMPARED_COLUMNS = 4096
# Bytes of translated states that are measured together.
MEASURED_BYTES = 32 << 20


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Positions of held-out text, and `document` (n,), which of `documents` each is of.

    `block` has their states at this process's layers.
    """

    lm: LM
    owners: LayerOwners
    block: StateBlock
    document: Tensor
    documents: int

    @staticmethod
    def read(lm: LM, rows: Sequence[TokenBatch], owners: LayerOwners, low: torch.dtype | None) -> "HeldOut":
        """Run the model on the rows of a part, this process on its share of them, and keep the states that count."""
        blocks: list[StateBlock] = []
        for batch in rows:
            block = StateBlock(lm, owners, len(batch.row), batch.ids.shape[1], low)
            own = masked_rows(batch, batch.row % owners.text.world == owners.text.rank)
            block.read(own, range(int(batch.row[0]), int(batch.row[-1]) + 1))
            block.forget_uncounted()
            blocks.append(block)
        every = torch.cat([batch.document[batch.counted] for batch in rows])
        numbers = every.unique()
        at = torch.searchsorted(numbers, every).to(lm.device)
        return HeldOut(lm, owners, StateBlock.joined(blocks), at, len(numbers))

    @property
    def tokens(self) -> int:
        """How many positions there are."""
        return len(self.document)

    def sampled_kl(
        self, candidates: Sequence[Sequence[Tensor]], constants: Sequence[float], objective: SampledKL
    ) -> Tensor:
        """Mean KL(model ‖ lens) of some weights for each layer, with the layers' constants: (candidates, n_layers).

        A candidate has the weights of this process's layers. Over the columns that the objective draws first.
        """
        block = self.block
        columns = objective.draw(0)
        target = objective.target(block.last[block.counted], columns)
        own = self.owners.own
        kl = torch.zeros(len(own), len(candidates), dtype=torch.float64, device=self.lm.device)
        for number, layer in enumerate(own):
            x = with_constant(block.states[number][block.counted], constants[layer])
            for n, weights in enumerate(candidates):
                kl[number, n] = objective.loss(x @ weights[number].to(x.device), target, columns)
        return (self.owners.everywhere(kl).T / block.counted.sum()).cpu()

    def whole_kl(
        self, lenses: Sequence[Sequence[Tensor]], constants: Sequence[float], seed: int
    ) -> tuple[list[Estimate], ...]:
        """Mean KL(model ‖ lens) by layer of two lenses, and the second's less the first's, with intervals.

        A lens is the weights of this process's layers. Over the whole vocabulary, in the model's own precision;
        documents are resampled.
        """
        lm, block, layers = self.lm, self.block, len(self.owners.own)
        sums = torch.zeros(2 * layers, self.documents, dtype=torch.float64, device=lm.device)
        at = [(n, number) for n in range(2) for number in range(layers)]
        # the model's own distribution is made once for as many layers as are held together
        size = max(1, MEASURED_BYTES // (block.last.numel() * lm.dtype.itemsize))
        for part in torch.arange(len(at)).split(size) if at else ():
            mapped = torch.stack(
                [self._mapped(number, lenses[n][number], constants) for n, number in (at[k] for k in part)]
            )
            kl = reduce(lm.runner.readout, lm.vocab_size, mapped, block.last, None, 1, False).kl.to(sums)
            sums.index_put_((part.to(lm.device)[:, None], self.document), kl, accumulate=True)
        counts = torch.zeros(self.documents, dtype=torch.float64, device=lm.device)
        counts.index_put_((self.document,), counts.new_ones(()), accumulate=True)
        by_layer = sums.view(2, layers, self.documents).transpose(0, 1).contiguous()
        fitted, own = self.owners.everywhere(by_layer).permute(2, 1, 0).cpu().unbind(1)
        by_document = counts.cpu().numpy()
        return tuple(ratios(total.numpy(), by_document, seed=seed) for total in (fitted, own, own - fitted))

    def _mapped(self, number: int, weights: Tensor, constants: Sequence[float]) -> Tensor:
        x = with_constant(self.block.states[number], constants[self.owners.own[number]])
        return (x @ weights.to(x.device)).to(self.lm.dtype)


def halves(held: Corpus) -> tuple[Corpus, Corpus]:
    """The documents that choose, and those that measure: no document, and no text that occurs twice, is in both."""
    measuring, choosing = held.split(0.5)
    return choosing, measuring


def spread(length: int, counted: int = COUNTED) -> tuple[int, int]:
    """How many rows of `length` tokens a part has, and of how many positions in a row one counts."""
    rows = max(-(-COUNTED // length), min(ROWS, max(2, READ // length)))
    return rows, max(1, rows * length // counted)


def choose_rows(part: Corpus, counted: int = COUNTED) -> list[TokenBatch]:
    """The rows of a part, with the positions that count: text alone, which no model has to read.

    Raises LenscopeError for a part without a row, or without a position that counts.
    """
    wanted, every = spread(part.length, counted)
    # the ends of strides: the first positions of a row have little context
    counts = torch.arange(part.length) % every == every - 1
    rows: list[TokenBatch] = []
    try:
        for batch in part.batches(wanted * part.length if part.documents is None else None, ROWS_TOGETHER):
            batch.counted[:] &= counts & (batch.row < wanted)[:, None]
            rows.append(masked_rows(batch, batch.row < wanted))
            if batch.next_row >= wanted:
                break
    except LenscopeError as error:
        raise _too_short(str(error)) from error
    if not any(batch.counted.any() for batch in rows):
        raise _too_short(f"{part.name}: has no position that counts in rows of {part.length} tokens")
    return rows


def _too_short(why: str) -> LenscopeError:
    return LenscopeError(
        f"held-out text: {why} (held_out is the fraction of the documents that is not fitted: one half of them "
        "chooses, the other measures)"
    )


def layer_rows(
    measure: HeldOut,
    weights: Sequence[Tensor],
    identity: Sequence[Tensor],
    names: Sequence[str],
    constants: Sequence[float],
    seed: int,
) -> list[dict[str, Any]]:
    """How good each layer's weights are beside the logit lens, on text that decides nothing: a row of the report each.

    Where a lens is worse than the logit lens, it shows.

    Args:
        measure: the text that measures, over the whole vocabulary.
        weights: what each of this process's layers keeps, (D + 1, D).
        identity: the weights of the logit lens, for each of them.
        names: which candidate each layer of all processes keeps.
        constants: the constant behind each layer's states, also of all.
        seed: of the draws of documents.
    """
    fitted, own, gain = measure.whole_kl([weights, identity], constants, seed)
    return [
        {
            "layer": n,
            "kl": _number(fitted[n].value),
            "kl_95": interval_ends(fitted[n]),
            "kl_logit_lens": _number(own[n].value),
            "kl_logit_lens_95": interval_ends(own[n]),
            "gain": _number(gain[n].value),
            "gain_95": interval_ends(gain[n]),
            "kept": name,
        }
        for n, name in enumerate(names)
    ]


def describe_held_out(
    held: Corpus, select: HeldOut, measure: HeldOut, layers: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What a report says of held-out text: first of what chose, then of what measured; and where the lens is worse."""
    documents = [select.documents, measure.documents]
    about = {"corpus": held.provenance(), "tokens": [select.tokens, measure.tokens], "documents": documents}
    worse = [row["layer"] for row in layers if row["gain_95"] is not None and row["gain_95"][1] < 0]
    if worse:
        about["worse_than_logit_lens"] = worse
    if min(documents) < FEWEST_DOCUMENTS:
        about["note"] = (
            f"{documents[0]} documents chose and {documents[1]} measured: intervals of fewer than {FEWEST_DOCUMENTS} "
            "say too little; give more text, or hold out more of it"
        )
    return about


def _number(value: float) -> float | None:
    return value if isfinite(value) else None


def interval_ends(e: Estimate) -> list[float] | None:
    """The ends of an interval as a report has them; None where nothing could be resampled."""
    return [e.low, e.high] if isfinite(e.low) and isfinite(e.high) else None
