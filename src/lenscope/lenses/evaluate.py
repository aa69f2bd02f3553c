"""Lenses measured on held-out text, all of them and all layers in one pass; and translators on other layers' states.

Knows: which lenses are read at which layers, and what an interruption leaves.
Does not know: what is summed (text_sums.py), what the sums say (summed_measures.py), how text becomes rows (text), how
results look.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from lenscope.distributed.processes import Group, joined
from lenscope.distributed.sharding import is_sharded, text_share
from lenscope.errors import LenscopeError
from lenscope.lenses.evaluation_checkpoints import ResumableSums, evaluation_settings, kept_in, readable_checkpoint
from lenscope.lenses.evaluation_results import Evaluation
from lenscope.lenses.lens import Lens
from lenscope.lenses.summed_measures import evaluation_of
from lenscope.lenses.text_sums import (
    TransferSums,
    check_not_nan,
    no_sums,
    no_transfer_sums,
    saved_sums,
    saved_transfer_sums,
    sums_of_batch,
    to_float64,
)
from lenscope.lenses.transfer_results import Transfer
from lenscope.mappings import mapping as mappings
from lenscope.measures.streamed import reduce
from lenscope.models.language_model import LM
from lenscope.models.layers import check_layers
from lenscope.models.progress import Progress
from lenscope.models.provenance import provenance
from lenscope.text.corpus import TokenBatch
from lenscope.text.predictions import Predictions, ReadBefore, TextRows, TextShare, each_row, predictions


class EvaluationInterrupted(KeyboardInterrupt):
    """An evaluation was interrupted. `result` is that of the text read so far, or None."""

    def __init__(self, result: Evaluation | Transfer | None) -> None:
        super().__init__()
        self.result = result


def evaluate(
    lm: LM,
    rows: TextRows,
    lenses: Mapping[str, Callable[..., Any] | None] | None = None,
    layers: Sequence[int] | None = None,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure on text how well lenses predict, at each layer, what the model will predict.

    All predictions of a next token count except those made at position 0 (an attention sink) and at marks (special
    tokens between documents). For a Corpus, only its `counted` positions count.

    Measured are, as means over predictions in nats: cross-entropy against the text, KL(model ‖ lens) (Belrose et al.
    2023, Eq. 9) and entropy; and agreement, the share of predictions whose top token is the model's. Bits per byte are
    cross-entropies in bits over the UTF-8 bytes of the tokens predicted. Calibration is the expected calibration error
    Σ_b |Σ_{i in b} (right_i - confidence_i)| / n of the top token against the text's next, in 15 bins of confidence of
    equal width (Guo et al. 2017, §2). Bias is KL(mean model ‖ mean lens), the means being over predictions (Belrose et
    al. 2023, Fig. 3). Of few tokens bias and calibration come out too large, as the means are still noisy.

    Intervals are percentiles of 1,000 resamples, drawn with `seed`, of documents (corpus) or rows, taken further out
    the fewer of these there are (expanded percentiles: Hesterberg 2015, arXiv 1411.5279); with under about 10 they are
    still too narrow. The interval of bias is that of a jackknife over ten groups of units
    (`statistics.intervals.jackknife`).

    Time is one forward pass and one unembedding per lens and layer; memory 80 bytes · lenses · layers · V, and at most
    256 MB of exponentials. An interrupt raises EvaluationInterrupted with what was measured.

    With a `folder` the run leaves a checkpoint of its sums in it now and then, so seldom that writing takes 2 % of the
    time (80 bytes · lenses · layers · V each, and as much memory again meanwhile), and when it is interrupted. When it
    is called again with the same model, lenses and layers and the same text as far as it was read, it goes on from
    there, and the result is that of a run that was not interrupted, to the last bit. At the end the result is saved
    there in place of the sums, and a further call reads it. `remove_checkpoint(folder)` removes it.

    Processes that torchrun started are given the same text and divide it, batch by batch; all of them get the result,
    which is that of one process up to the order of sums. They leave no checkpoints, and a `folder` is refused.

    Args:
        lm: the model that predicts.
        rows: texts, rows of token ids, or batches of a corpus (`corpus.batches(tokens=…)`).
        lenses: mappings f by name, as `Lens` takes them; by default the logit lens (f None).
        layers: which layers are read; by default all but the last, which is the model's own.
        seed: what resamples are drawn with.
        folder: where checkpoints, and in the end the result, are saved; None: nowhere.
        progress: called with how much of the text is read, and how much there is.

    Raises LenscopeError for text without a prediction that counts, even if it is one row of several, layers out of
    range, lenses of other models, and states that are not numbers; for a folder of another run, or one that another run
    is writing to; and with a folder for lenses that are functions, since nothing says whether they are the same.
    """
    by_name = {name: Lens(lm, f, name=name) for name, f in ({"logit lens": None} if lenses is None else lenses).items()}
    if not by_name:
        raise LenscopeError("lenses: none given; name at least one, such as {'logit lens': None}")
    numbers = _layers_asked_for(lm, layers)
    cells = [
        (i, n, lens, at) for i, lens in enumerate(by_name.values()) for n, at in enumerate(numbers) if at in lens.layers
    ]
    for i, name in enumerate(by_name):
        if not any(cell[0] == i for cell in cells):
            raise LenscopeError(f"lens {name}: has no weights for any of the layers {', '.join(map(str, numbers))}")
    return _measured(
        lm,
        rows,
        (*numbers, lm.n_layers),
        _Measurement(
            Evaluation,
            lambda: evaluation_settings("evaluation", lm, by_name, numbers, seed),
            no_sums(len(cells) + 1),
            lambda place, tensors: saved_sums(place, tensors, len(cells) + 1, lm.vocab_size),
            lambda sums, batch: sums.plus(batch, *sums_of_batch(lm, batch, cells)),
            lambda sums: evaluation_of(lm, by_name, numbers, cells, sums, seed),
        ),
        folder,
        progress,
    )


def transfer(
    lm: LM,
    rows: TextRows,
    f: Callable[..., Any],
    layers: Sequence[int] | None = None,
    *,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Transfer:
    """Measure the map of every layer of a lens on the states of every other layer.

    This is Belrose et al. 2023, §3, Fig. 7. It takes layers² unembeddings per token, 2 · layers² · D · V operations (51
    billion for SmolLM2-135M), so read a few thousand tokens, or every few layers. It goes on from a `folder` as
    `evaluate` does. Raises as `evaluate`, and for an f that does not depend on the layer.

    Args:
        lm: the model that predicts.
        rows: text, as in `evaluate`.
        f: the lens, called as f(h, layer, n_layers) with `layer` another one than that of h.
        layers: which layers are compared; by default those that f has weights for.
        folder: where checkpoints, and in the end the result, are saved; None: nowhere.
        progress: called with how much of the text is read, and how much there is.
    """
    lens = Lens(lm, f)
    if mappings.arguments_used(f) < 2:
        raise LenscopeError(f"f {lens.name}: is the same for all layers; give one with a map for each layer")
    own = lens.layers
    numbers = tuple(n for n in range(lm.n_layers) if n in own) if layers is None else _layers_asked_for(lm, layers)
    if set(numbers) - set(own):
        raise LenscopeError(
            f"layer {min(set(numbers) - set(own))}: f has maps for the layers {', '.join(map(str, own))}"
        )

    def plus(sums: TransferSums, batch: Predictions) -> TransferSums:
        more = np.zeros_like(sums.sums)
        for i, layer in enumerate(numbers):
            h = torch.stack([lens.map(batch.h[:, n], layer) for n in range(len(numbers))])
            r = reduce(lm.runner.readout, lm.vocab_size, h, batch.h[:, -1], batch.targets, 1, False)
            more[:, i] = [to_float64(r.cross_entropy).sum(1), to_float64(r.kl).sum(1)]
        check_not_nan(more, lm)
        return sums.plus(batch, more)

    def result(sums: TransferSums) -> Transfer:
        about = {**provenance(lm), "lens": repr(f), "ids_sha256": sums.sha256}
        both = sums.sums / sums.tokens
        return Transfer(lm.name, lm.n_layers, lens.name, numbers, sums.rows, sums.tokens, both[0], both[1], about)

    return _measured(
        lm,
        rows,
        (*numbers, lm.n_layers),
        _Measurement(
            Transfer,
            lambda: evaluation_settings("transfer", lm, {lens.name: lens}, numbers),
            no_transfer_sums(len(numbers)),
            lambda place, tensors: saved_transfer_sums(place, tensors, len(numbers)),
            plus,
            result,
        ),
        folder,
        progress,
    )


S = TypeVar("S", bound=ResumableSums)
R = TypeVar("R", Evaluation, Transfer)


@dataclass(frozen=True)
class _Measurement(Generic[S, R]):
    """What is measured of a text: the class of the result, settings, sums of no text and from a file, and so on."""

    kind: type[R]
    settings: Callable[[], dict[str, Any]]
    nothing: S
    saved: Callable[[dict[str, Any], dict[str, Tensor]], tuple[S, ReadBefore]]
    plus: Callable[[S, Predictions], S]
    result: Callable[[S], R]


def _measured(
    lm: LM,
    rows: TextRows,
    layers: tuple[int, ...],
    measurement: _Measurement[S, R],
    folder: str | Path | None,
    progress: Progress | None,
) -> R:
    """The result on a text, whose sums a folder keeps; several processes divide the text, and keep nothing."""
    with joined(lm.device) as group:
        if group.world > 1:
            if folder is not None:
                raise LenscopeError(
                    f"folder {folder}: {group.world} processes that measure together leave no checkpoints; give no "
                    "folder, or measure in one process"
                )
            return _measured_together(lm, rows, layers, measurement, group, progress)
    with kept_in(folder, measurement.settings) as checkpoint:
        sums, finished, before = measurement.nothing, None, None
        other = f"{checkpoint.folder}: is of another run, whose text was another; remove it to begin anew"
        left = checkpoint.read()
        if left is not None:
            place, tensors = left
            with readable_checkpoint(checkpoint.folder):
                if "result" in place:
                    finished = measurement.kind.from_json(place["result"])
                    before = ReadBefore(place["rows"], place["text"])
                else:
                    sums, before = measurement.saved(place, tensors)
            before.refusal = other
        try:
            for batch in predictions(lm, rows, layers, progress, before):
                if finished is not None:
                    raise LenscopeError(other)
                sums = measurement.plus(sums, batch)
                checkpoint.save_if_due(sums)
        except KeyboardInterrupt as stop:
            if sums.tokens:
                checkpoint.save(sums)
            raise EvaluationInterrupted(measurement.result(sums) if sums.tokens else finished) from stop
        if finished is None:
            finished = measurement.result(sums)
            checkpoint.finish(sums, finished)
        return finished


def _measured_together(
    lm: LM,
    rows: TextRows,
    layers: tuple[int, ...],
    measurement: _Measurement[S, R],
    group: Group,
    progress: Progress | None,
) -> R:
    """The result on a text of which each process reads its share; all processes get it."""
    text: Any = rows
    divided = text_share(lm, group).world > 1
    if divided and is_sharded(lm):
        # processes that run a model equally often divide rows of one length; else all of them read all rows
        given = iter(each_row(rows))
        begin = list(islice(given, 1))
        text = chain(begin, given)
        divided = bool(begin) and isinstance(begin[0], TokenBatch)
    share = TextShare(group if divided else Group(), divided and is_sharded(lm))
    sums = measurement.nothing
    try:
        for batch in predictions(lm, text, layers, progress if group.rank == 0 else None, None, share):
            sums = measurement.plus(sums, batch)
    except KeyboardInterrupt as stop:
        # what the others have read is not known
        raise EvaluationInterrupted(None) from stop
    return measurement.result(sums.over_all(share, lm.device))


def _layers_asked_for(lm: LM, layers: Sequence[int] | None) -> tuple[int, ...]:
    wanted = range(lm.n_layers) if layers is None else layers
    return tuple(sorted(set(check_layers(wanted, lm.n_layers, lm.name))))
