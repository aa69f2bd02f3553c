"""Held-out text of a fit: documents that choose what each layer keeps, and other documents that measure it.

Knows: how held-out documents are parted and spread, what candidates are compared by, intervals over documents.
Does not know: how candidates come about (training.py), what a fitted lens says of itself (tuning.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from lenscope.distributed.processes import Group
from lenscope.errors import LenscopeError
from lenscope.fitting.closed_form import with_constant
from lenscope.fitting.schedule import TOGETHER
from lenscope.fitting.state_block import StateBlock, some_rows
from lenscope.fitting.tuned_lens_run import TunedLensRun
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
FEW = 8
# Columns of the vocabulary by which candidates are compared.
COMPARED = 4096
# Bytes of translated states that are measured together.
MEASURED = 32 << 20


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Positions of held-out text: this process's in `block`, and `document` (n,), which of `documents` each is of.

    `tokens` counts the positions of all processes.
    """

    block: StateBlock
    document: Tensor
    documents: int
    tokens: int


def parts(held: Corpus) -> tuple[Corpus, Corpus]:
    """The documents that choose, and those that measure: no document, and no text that occurs twice, is in both."""
    measuring, choosing = held.split(0.5)
    return choosing, measuring


def spread(length: int, counted: int = COUNTED) -> tuple[int, int]:
    """How many rows of `length` tokens a part has, and of how many positions in a row one counts."""
    rows = max(-(-COUNTED // length), min(ROWS, max(2, READ // length)))
    return rows, max(1, rows * length // counted)


def taken(part: Corpus, counted: int = COUNTED) -> list[TokenBatch]:
    """The rows of a part, with the positions that count: text alone, which no model has to read.

    Raises LenscopeError for a part without a row, or without a position that counts.
    """
    wanted, every = spread(part.length, counted)
    # the ends of strides: the first positions of a row have little context
    counts = torch.arange(part.length) % every == every - 1
    made: list[TokenBatch] = []
    try:
        for batch in part.batches(wanted * part.length if part.documents is None else None, TOGETHER):
            batch.counted[:] &= counts & (batch.row < wanted)[:, None]
            made.append(some_rows(batch, batch.row < wanted))
            if batch.next_row >= wanted:
                break
    except LenscopeError as error:
        raise _short(str(error)) from error
    if not any(batch.counted.any() for batch in made):
        raise _short(f"{part.name}: has no position that counts in rows of {part.length} tokens")
    return made


def read(lm: LM, rows: Sequence[TokenBatch], group: Group, low: torch.dtype | None) -> HeldOut:
    """Run the model on the rows of a part, this process on its share of them, and keep the states that count."""
    blocks: list[StateBlock] = []
    mine: list[Tensor] = []
    for batch in rows:
        own = some_rows(batch, batch.row % group.world == group.rank)
        block = StateBlock(lm, len(own.row), own.ids.shape[1], low)
        block.read(own)
        block.forget_uncounted()
        blocks.append(block)
        mine.append(own.document[own.counted])
    # all processes see all rows, and so number documents alike
    everyone = torch.cat([batch.document[batch.counted] for batch in rows])
    numbers = everyone.unique()
    at = torch.searchsorted(numbers, torch.cat(mine)).to(lm.device)
    return HeldOut(StateBlock.joined(blocks), at, len(numbers), len(everyone))


def _short(why: str) -> LenscopeError:
    return LenscopeError(
        f"held-out text: {why} (held_out is the fraction of the documents that is not fitted; one half of them "
        "chooses, the other measures)"
    )


def choose(
    run: TunedLensRun, candidates: Mapping[str, Sequence[Tensor]], select: HeldOut | None, measure: HeldOut
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """What each layer keeps, and how good that is beside the first of the candidates, the logit lens.

    Each layer keeps the candidate with the lowest KL on the text `select`, over sampled columns; without one, the last
    candidate. What is kept is measured on `measure` alone, over the whole vocabulary, which decides nothing: where a
    lens is worse than the logit lens, it shows.
    """
    lm, names = run.lm, list(candidates)
    best = [names[-1]] * lm.n_layers
    if select is not None:
        with run.timed("choosing"):
            compare = SampledKL(lm, run.mean, COMPARED, run.seed, run.low)
            kl = run.held_out_kl(select.block, list(candidates.values()), compare)
            best = [names[int(n)] for n in kl.nan_to_num(torch.inf, torch.inf).argmin(0)]
    kept = [candidates[name][layer] for layer, name in enumerate(best)]
    with run.timed("measuring"):
        fitted, own, gain = _measured(run, measure, [kept, candidates[names[0]]])
    rows = [
        {
            "layer": n,
            "kl": _number(fitted[n].value),
            "kl_95": _ends(fitted[n]),
            "kl_logit_lens": _number(own[n].value),
            "kl_logit_lens_95": _ends(own[n]),
            "gain": _number(gain[n].value),
            "gain_95": _ends(gain[n]),
            "kept": best[n],
        }
        for n in range(lm.n_layers)
    ]
    return kept, rows


def described(held: Corpus, select: HeldOut, measure: HeldOut, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a report says of held-out text: first of what chose, then of what measured; and where the lens is worse."""
    documents = [select.documents, measure.documents]
    about = {"corpus": held.provenance(), "tokens": [select.tokens, measure.tokens], "documents": documents}
    worse = [row["layer"] for row in layers if row["gain_95"] is not None and row["gain_95"][1] < 0]
    if worse:
        about["worse_than_logit_lens"] = worse
    if min(documents) < FEW:
        about["note"] = (
            f"{documents[0]} documents chose and {documents[1]} measured: intervals of fewer than {FEW} say too "
            "little; give more text, or hold out more of it"
        )
    return about


def _measured(run: TunedLensRun, held: HeldOut, lenses: Sequence[Sequence[Tensor]]) -> tuple[list[Estimate], ...]:
    """Mean KL(model ‖ lens) by layer of two lenses, and the second's less the first's, with intervals over documents.

    Over the whole vocabulary, in the model's own precision.
    """
    lm, block = run.lm, held.block
    sums = torch.zeros(2 * lm.n_layers, held.documents, dtype=torch.float64, device=lm.device)
    if len(block.last):
        at = [(n, layer) for n in range(2) for layer in range(lm.n_layers)]
        # the model's own distribution is made once for as many layers as are held together
        size = max(1, MEASURED // (block.last.numel() * lm.dtype.itemsize))
        for some in torch.arange(len(at)).split(size):
            mapped = torch.stack([_mapped(run, block, layer, lenses[n][layer]) for n, layer in (at[k] for k in some)])
            kl = reduce(lm.readout, lm.vocab_size, mapped, block.last, None, 1, False).kl.to(sums)
            sums.index_put_((some.to(lm.device)[:, None], held.document), kl, accumulate=True)
    counts = torch.zeros(held.documents, dtype=torch.float64, device=lm.device)
    counts.index_put_((held.document,), counts.new_ones(()), accumulate=True)
    run.group.sum([sums, counts])
    fitted, own = sums.T.cpu().split(lm.n_layers, 1)
    return tuple(ratios(some.numpy(), counts.cpu().numpy(), seed=run.seed) for some in (fitted, own, own - fitted))


def _mapped(run: TunedLensRun, block: StateBlock, layer: int, weights: Tensor) -> Tensor:
    return (with_constant(block.states[layer], run.constants[layer]) @ weights).to(run.lm.dtype)


def _number(value: float) -> float | None:
    return value if isfinite(value) else None


def _ends(e: Estimate) -> list[float] | None:
    return [e.low, e.high] if isfinite(e.low) and isfinite(e.high) else None
