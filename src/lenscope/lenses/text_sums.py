"""Sums over text that the measures of lenses are made of, and what a batch of predictions adds to them.

Knows: which columns are summed per unit, bins of confidence, that distributions are kept apart in groups of units.
Does not know: what measures and intervals are made of the sums (summed_measures.py), how logits are reduced (measures).
"""

import hashlib
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.lenses.lens import Lens
from lenscope.measures.streamed import Reduced, average, averaged_at_once
from lenscope.models.language_model import LM
from lenscope.text.predictions import Predictions

BINS = 15
# groups of units whose summed distributions are kept apart, for the intervals of the bias
GROUPS = 10
# columns of the sums: these, then one per bin
SUMMED = ("cross_entropy", "kl", "agreement", "entropy")

# of a lens at a layer: the numbers of both, and themselves
SummedCell = tuple[int, int, Lens, int]


@dataclass(frozen=True, eq=False)
class TextSums:
    """Sums over the text so far: per unit, cell (the model first) and column; of distributions, per group and cell."""

    sums: np.ndarray
    counts: np.ndarray
    sizes: np.ndarray | None
    means: dict[int, Tensor]
    tokens: int
    rows: int
    digest: Any

    def plus(self, batch: Predictions, columns: np.ndarray, means: dict[int, Tensor]) -> "TextSums":
        """With more predictions: `columns` (P, cells, K), and per group summed distributions (cells, V)."""
        units = max(len(self.counts), int(batch.units.max()) + 1)
        sums, counts = (_longer(x, units) for x in (self.sums, self.counts))
        np.add.at(sums, batch.units, columns)
        np.add.at(counts, batch.units, 1)
        sizes = None
        if self.sizes is not None and batch.sizes is not None:
            sizes = _longer(self.sizes, units)
            np.add.at(sizes, batch.units, batch.sizes)
        for group, mean in means.items():
            self.means[group] = self.means[group].add_(mean) if group in self.means else mean
        tokens, rows = self.tokens + len(batch.targets), self.rows + batch.rows
        return TextSums(sums, counts, sizes, self.means, tokens, rows, batch.hashed(self.digest))


def no_sums(cells: int) -> TextSums:
    """The sums over no text, of so many cells."""
    return TextSums(np.zeros((0, cells, len(SUMMED) + BINS)), np.zeros(0), np.zeros(0), {}, 0, 0, hashlib.sha256())


def sums_of_batch(lm: LM, batch: Predictions, cells: list[SummedCell]) -> tuple[np.ndarray, dict[int, Tensor]]:
    """What `TextSums.plus` takes of P predictions."""
    means: dict[int, Tensor] = {}
    columns = np.zeros((len(batch.targets), len(cells) + 1, len(SUMMED) + BINS))
    groups = torch.from_numpy(batch.units % GROUPS)
    for group in groups.unique().tolist():
        mine = (groups == group).nonzero()[:, 0]
        means[group] = torch.zeros(len(cells) + 1, lm.vocab_size, dtype=torch.float64)
        for part in mine.tensor_split(ceil(len(mine) / averaged_at_once(lm.runner.readout, lm.vocab_size))):
            states = (lens.map(batch.h[part, n], layer) for _, n, lens, layer in cells)
            own: Tensor | None = None
            read = average(lm.runner.readout, lm.vocab_size, batch.h[part, -1], states, batch.targets[part])
            for cell, (r, mean) in enumerate(read):
                own = r.top_ids if own is None else own
                columns[part.numpy(), cell] = _columns(r, own, lm)
                means[group][cell] += mean.cpu()
    return columns, means


def _columns(r: Reduced, top: Tensor, lm: LM) -> np.ndarray:
    """The columns of the sums of each of P predictions, (P, K)."""
    agrees = (r.top_ids == top)[..., 0]
    means = np.stack([to_float64(v[0]) for v in (r.cross_entropy, r.kl, agrees, r.entropy)], 1)
    check_not_nan(means, lm)
    confidence = to_float64(r.max_probability[0])
    at = np.clip((confidence * BINS).astype(int), 0, BINS - 1)
    bins = np.zeros((len(at), BINS))
    bins[np.arange(len(at)), at] = to_float64(r.rank[0] == 0) - confidence
    return np.concatenate([means, bins], 1)


def check_not_nan(sums: np.ndarray, lm: LM) -> None:
    """LenscopeError where a measure is no number, since the model's dtype does not hold it."""
    if np.isnan(sums).any():
        dtype = str(lm.dtype).removeprefix("torch.")
        raise LenscopeError(f"{lm.name}: a measure came out as NaN in {dtype}; load the model with dtype='float32'")


def _longer(array: np.ndarray, units: int) -> np.ndarray:
    """A copy with zeros for units that are new."""
    longer = np.zeros((units, *array.shape[1:]))
    longer[: len(array)] = array
    return longer


def to_float64(values: Tensor) -> np.ndarray:
    """Numbers of a tensor on any device as an array."""
    return values.cpu().double().numpy()
