"""Alignment: how alike lenses and the model respond when states are exchanged within a subspace.

Knows: whose states replace whose, how two changes of a distribution are compared, intervals over documents.
Does not know: how a basis is found (causal_basis.py), how the blocks above a layer run again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.directions.basis import Basis, check_model
from lenscope.directions.energy import wide_readout
from lenscope.engine.run_above_layer import RunAbove
from lenscope.errors import LenscopeError
from lenscope.files.parquet_tables import columns_frame
from lenscope.lenses.lens import Lens, lens_layers
from lenscope.measures.streamed import WHOLE_ROWS_BYTES
from lenscope.models.language_model import LM
from lenscope.models.progress import Progress
from lenscope.models.provenance import provenance
from lenscope.models.readout import Readout, wide
from lenscope.statistics.derangements import shift_ring
from lenscope.statistics.estimates import mean
from lenscope.statistics.intervals import Estimate
from lenscope.text.predictions import TextRows
from lenscope.text.row_states import as_float64, counts_by_unit, row_states


@dataclass(frozen=True, eq=False)
class Alignment:
    """How alike lenses and model respond when states are exchanged within a subspace (Belrose et al. 2023, Fig. 9).

    `by_unit` (lenses, units, L) has the sums of the similarity (weighted Aitchison cosine, -1…1) over the predictions
    of each document or row, `counts` (lenses, units, L) how many of them have one.
    """

    basis: Basis
    lenses: tuple[str, ...]
    by_unit: np.ndarray
    counts: np.ndarray
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Alignment({self.basis!r}, {', '.join(self.lenses)}, {int(self.counts[0, :, 0].sum())} tokens)"

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of the basis."""
        return self.basis.layers

    @property
    def similarity(self) -> np.ndarray:
        """Mean similarity of stimulus and response, (lenses, L)."""
        return self.by_unit.sum(1) / self.counts.sum(1)

    def units(self, lens: str, layer: int) -> np.ndarray:
        """The mean similarity of each document or row that has one, NaN elsewhere: (units,)."""
        if lens not in self.lenses:
            raise LenscopeError(f"lens {lens!r}: these are {', '.join(self.lenses)}")
        at = self.lenses.index(lens), slice(None), self.basis.at(layer)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.by_unit[at] / self.counts[at])

    def to_dataframe(self) -> Any:
        """A row for each lens, layer and document or row: the mean similarity, and of how many predictions.

        It is a data frame of pandas, or of polars where only that is installed; LenscopeError without both.
        """
        lens, unit, layer = np.indices(self.counts.shape).reshape(3, -1)
        with np.errstate(invalid="ignore", divide="ignore"):
            similarity = (self.by_unit / self.counts).reshape(-1)
        names = {"lens": [self.lenses[n] for n in lens], "layer": np.array(self.layers)[layer], "unit": unit}
        return columns_frame({**names, "similarity": similarity, "count": self.counts.reshape(-1)})

    def estimate(self, lens: str, layer: int, *, seed: int = 0) -> Estimate:
        """A lens's similarity at a layer, every document or row counting alike, with its bootstrap interval."""
        values = self.units(lens, layer)
        return mean(values[~np.isnan(values)], seed=seed)


@torch.no_grad()
def alignment(
    lm: LM,
    rows: TextRows,
    basis: Basis,
    lenses: Mapping[str, Callable[..., Any] | None] | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Alignment:
    """How alike lenses and model respond to an exchange within a basis's subspace (Belrose et al. 2023, §4.2, Fig. 9).

    The component of every counted state in the span of the basis's directions becomes that of a counted state of
    another row, drawn with `seed` (resampling ablation). Stimulus: what this changes in the log-probabilities that the
    lens reads there; response: what it changes in those of the model, whose blocks above run on. The two are compared
    by `aitchison_cosine`, weighted by the mean of the model's probabilities without and with the change. `lenses` are
    mappings f by name, by default the logit lens (f None); all see the same changes.

    Raises LenscopeError for a basis of another model, and where one row has more than half of the positions.

    Args:
        lm: the model.
        rows: texts, rows of token ids, or batches of a corpus.
        basis: the directions that span the subspace.
        lenses: mappings by name; None: the logit lens.
        seed: fixes whose component each state gets.
        progress: called with how much is done and how much there is.
    """
    check_model(lm, basis)
    given = {"logit lens": None} if lenses is None else lenses
    read_by = [Lens(lm, f, name=name) for name, f in given.items()]
    readout = wide_readout(lm)
    for lens in read_by:
        lens_layers(lens, basis.layers)
    runs = row_states(lm, rows, basis.layers)
    counts = counts_by_unit(runs)
    sums = np.zeros((2, len(read_by), len(counts), len(basis.layers)))
    row = np.concatenate([np.nonzero(run.counted.numpy())[0] + 10**6 * n for n, run in enumerate(runs)])
    source = torch.from_numpy(places_of_other_rows(row, seed))
    for i, layer in enumerate(basis.layers):
        h = torch.cat([run.states[i][run.counted] for run in runs])
        h = h.to(wide(h[:0]).dtype)
        treated = basis.exchanged(h, h[source], layer)
        at = 0
        for run in runs:
            part = slice(at, at := at + int(run.counted.sum()))
            changed = run.states[i].clone()
            changed[run.counted] = treated[part].to(changed)
            final = torch.stack(
                [
                    run.states[-1],
                    RunAbove(lm.runner, run.prompts, layer, run.states[i], run.states[-1])(changed[None])[0],
                ]
            )[:, run.counted]
            similarity = _similarity(read_by, readout, layer, final, torch.stack([h[part], treated[part]]))
            known = ~np.isnan(similarity)
            for n, some_known in enumerate(known):
                units = run.units[run.counted.numpy()][some_known]
                np.add.at(sums[0, n, :, i], units, similarity[n, some_known])
                np.add.at(sums[1, n, :, i], units, 1)
        if progress is not None:
            progress(i + 1, len(basis.layers))
    about = {**provenance(lm), "lenses": {n: repr(f) for n, f in given.items()}, "seed": seed, "tokens": len(row)}
    return Alignment(basis, tuple(given), sums[0], sums[1], about)


def aitchison_cosine(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """The cosine of two changes of log-probabilities, (..., V) each → (...), -1…1 (Belrose et al. 2023, §4.2).

    In the Aitchison geometry weighted by probabilities w: clr(x) = x - Σ w x, ⟨x, y⟩ = Σ w clr(x) clr(y), in which what
    is added to all logits does not count. NaN where one of the two is no change.
    """
    a, b = (v - (weights * v).sum(-1, keepdim=True) for v in (x, y))
    inner, first, second = ((weights * u * v).sum(-1) for u, v in ((a, b), (a, a), (b, b)))
    size = (first * second).sqrt()
    return torch.where(size > 0, inner / size, torch.nan).clamp(-1, 1)


def places_of_other_rows(row: np.ndarray, seed: int) -> np.ndarray:
    """For each place (N,) one of another row, none taken twice: random, drawn with `seed`; `row` (N,) names the rows.

    Raises LenscopeError where one row has more than half of the places.
    """
    random = np.random.default_rng(seed)
    names, number, sizes = np.unique(row, return_inverse=True, return_counts=True)
    most, count = int(sizes.max()), len(row)
    if 2 * most > count:
        raise LenscopeError(
            f"rows: one has {most} of {count} positions; give more rows, so that others can lend theirs"
        )
    # rows one after the other in a ring, each in an order of its own: a shift by the longest leaves every row
    order = np.lexsort((random.random(count), random.permutation(len(names))[number]))
    return shift_ring(order, -int(random.integers(most, count - most + 1)))


def _similarity(lenses: list[Lens], readout: Readout, layer: int, final: Tensor, h: Tensor) -> np.ndarray:
    """Similarities (lenses, P) from last states and the layer's states, without and with the change: (2, P, D) each."""
    lm = lenses[0].lm

    def log_probs(which: Readout, states: Tensor) -> Tensor:
        z = wide(which.columns(which.prepare(states.flatten(0, 1)), 0, lm.vocab_size))
        return z.log_softmax(-1).view(2, -1, lm.vocab_size)

    similarities = []
    for part in torch.arange(final.shape[1]).split(max(1, WHOLE_ROWS_BYTES // (8 * lm.vocab_size))):
        own = log_probs(lm.runner.readout, final[:, part])
        weights = own.exp().mean(0)
        read = (log_probs(readout, lens.map(h[:, part], layer)) for lens in lenses)
        similarities.append(torch.stack([aitchison_cosine(r[1] - r[0], own[1] - own[0], weights) for r in read]))
    return as_float64(torch.cat(similarities, 1))
