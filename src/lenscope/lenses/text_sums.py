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
from lenscope.files.json_values import text_value, whole_number
from lenscope.lenses.lens import Lens
from lenscope.measures.streamed import Reduced, average, averaged_at_once
from lenscope.models.language_model import LM
from lenscope.models.load_options import dtype_name
from lenscope.text.predictions import Predictions, ReadBefore, TextShare

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
    # of the ids of the rows; where sums are read from a file, `digest` is of them when they were passed over
    sha256: str
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
        # into what is new, so that an interruption leaves these sums as they were
        longer = {group: m.add_(self.means[group]) if group in self.means else m for group, m in means.items()}
        tokens, rows, digest = self.tokens + len(batch.targets), self.rows + batch.rows, batch.hashed(self.digest)
        return TextSums(sums, counts, sizes, {**self.means, **longer}, tokens, rows, digest.hexdigest(), digest)

    def over_all(self, share: TextShare, device: torch.device) -> "TextSums":
        """The sums over the whole text, of which each process has those of its batches."""
        known = self.sizes is not None
        arrays = [self.sums, self.counts, np.zeros(len(self.counts)) if self.sizes is None else self.sizes]
        every = [torch.from_numpy(_longer(array, share.units)).to(device) for array in arrays]
        numbers = torch.tensor([self.tokens, known], dtype=torch.float64, device=device)
        share.group.sum([*every, numbers])
        sums, counts, sizes = (t.cpu().numpy() for t in every)
        most = max(share.group.gathered([m.shape[1] for m in self.means.values()][:1]))
        nothing = torch.zeros(self.sums.shape[1], *most, dtype=torch.float64)
        means: dict[int, Tensor] = {}
        for group in dict.fromkeys(n % GROUPS for n in np.flatnonzero(counts).tolist()):
            mean = self.means.get(group, nothing).to(device, copy=True)
            share.group.sum([mean])
            means[group] = mean.cpu()
        tokens, all_known = int(numbers[0]), int(numbers[1]) == share.group.world
        digest = share.digest
        return TextSums(
            sums, counts, sizes if all_known else None, means, tokens, share.rows, digest.hexdigest(), digest
        )

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, for a file; they share memory with these."""
        arrays = {"sums": self.sums, "counts": self.counts, "groups": np.array(list(self.means), dtype=np.int64)}
        arrays |= {} if self.sizes is None else {"sizes": self.sizes}
        means = {f"means.{n}": mean for n, mean in enumerate(self.means.values())}
        return {**{name: torch.from_numpy(array) for name, array in arrays.items()}, **means}


def no_sums(cells: int) -> TextSums:
    """The sums over no text, of so many cells."""
    columns, digest = np.zeros((0, cells, len(SUMMED) + BINS)), hashlib.sha256()
    return TextSums(columns, np.zeros(0), np.zeros(0), {}, 0, 0, digest.hexdigest(), digest)


def saved_sums(
    place: dict[str, Any], tensors: dict[str, Tensor], cells: int, vocab: int
) -> tuple[TextSums, ReadBefore]:
    """The sums that `TextSums.tensors` gave, of so many cells, and the text that they are of.

    Raises ValueError for what no run could have saved.
    """
    each = {name: t.clone() for name, t in tensors.items()}
    sums, counts, groups = (each.pop(name).numpy() for name in ("sums", "counts", "groups"))
    sizes = each.pop("sizes").numpy() if "sizes" in each else None
    numbers = whole_number(place["tokens"], "tokens", 1), whole_number(place["rows"], "rows", 1)
    sha256 = text_value(place["text"], "text")
    means = {int(group): each.pop(f"means.{n}") for n, group in enumerate(groups)}
    units = (len(counts),)
    wanted = {"sums": (sums, (*units, cells, len(SUMMED) + BINS)), "counts": (counts, units)}
    wanted |= {} if sizes is None else {"sizes": (sizes, units)}
    for name, (array, shape) in wanted.items():
        if array.dtype != np.float64 or array.shape != shape:
            raise ValueError(f"its {name} are of shape {array.shape}, and {shape} are those of this model and lenses")
    if each or len(means) != len(groups) or means.keys() != {int(n) % GROUPS for n in np.flatnonzero(counts)}:
        raise ValueError("its groups of units are not those of its text")
    if any(m.dtype != torch.float64 or m.shape != (cells, vocab) for m in means.values()):
        raise ValueError(f"its distributions are not those of {cells} cells and {vocab} tokens")
    most = counts[:, None]
    sound = (sums[..., : len(SUMMED)] >= 0).all() and (sums[..., 2] <= most).all() and counts.sum() == numbers[0]
    sound &= (counts >= 0).all() and (np.abs(sums[..., len(SUMMED) :]) <= 1.001 * most[..., None]).all()
    sound &= sizes is None or (sizes >= 0).all()
    sound &= all(bool((m >= 0).all()) for m in means.values())
    masses = torch.stack([m.sum(1) for m in means.values()]).sum(0)
    if not sound or not bool(((masses / numbers[0] - 1).abs() < 0.01).all()):
        raise ValueError("it holds sums that are none of distributions")
    before = ReadBefore(numbers[1], sha256, counts)
    return TextSums(sums, counts, sizes, means, *numbers, sha256, before.digest), before


@dataclass(frozen=True, eq=False)
class TransferSums:
    """Sums over the text so far of cross-entropy and KL, (2, translators, layers)."""

    sums: np.ndarray
    tokens: int
    rows: int
    sha256: str
    digest: Any

    def plus(self, batch: Predictions, sums: np.ndarray) -> "TransferSums":
        """With the sums (2, translators, layers) of more predictions."""
        tokens, rows, digest = self.tokens + len(batch.targets), self.rows + batch.rows, batch.hashed(self.digest)
        return TransferSums(self.sums + sums, tokens, rows, digest.hexdigest(), digest)

    def over_all(self, share: TextShare, device: torch.device) -> "TransferSums":
        """The sums over the whole text, of which each process has those of its batches."""
        sums = torch.from_numpy(self.sums).to(device)
        tokens = torch.tensor(self.tokens, device=device)
        share.group.sum([sums, tokens])
        return TransferSums(sums.cpu().numpy(), int(tokens), share.rows, share.digest.hexdigest(), share.digest)

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, for a file; they share memory with these."""
        return {"sums": torch.from_numpy(self.sums)}


def no_transfer_sums(layers: int) -> TransferSums:
    """The sums over no text, of so many layers."""
    digest = hashlib.sha256()
    return TransferSums(np.zeros((2, layers, layers)), 0, 0, digest.hexdigest(), digest)


def saved_transfer_sums(
    place: dict[str, Any], tensors: dict[str, Tensor], layers: int
) -> tuple[TransferSums, ReadBefore]:
    """The sums that `TransferSums.tensors` gave, of so many layers, and the text that they are of.

    Raises ValueError for what no run could have saved.
    """
    sums = tensors["sums"].clone().numpy()
    numbers = whole_number(place["tokens"], "tokens", 1), whole_number(place["rows"], "rows", 1)
    before = ReadBefore(numbers[1], text_value(place["text"], "text"))
    if sums.dtype != np.float64 or sums.shape != (2, layers, layers) or not (sums >= 0).all():
        raise ValueError("it holds other sums than those of these layers")
    return TransferSums(sums, *numbers, before.sha256, before.digest), before


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
        dtype = dtype_name(lm.dtype)
        raise LenscopeError(f"{lm.name}: a measure came out as NaN in {dtype}; load the model with dtype='float32'")


def _longer(array: np.ndarray, units: int) -> np.ndarray:
    """A copy with zeros for units that are new."""
    longer = np.zeros((units, *array.shape[1:]))
    longer[: len(array)] = array
    return longer


def to_float64(values: Tensor) -> np.ndarray:
    """Numbers of a tensor on any device as an array."""
    return values.cpu().double().numpy()
