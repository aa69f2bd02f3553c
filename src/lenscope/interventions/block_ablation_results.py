"""Ablations: what single blocks are worth to a model on text, with intervals.

Knows: what was measured of which block under which change, the units, what is resampled.
Does not know: models, how blocks are changed (block_ablation.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from lenscope.errors import LenscopeError
from lenscope.files.parquet_tables import columns_frame
from lenscope.statistics.intervals import Estimate, bootstrap

# name → unit, of what is lost
MEASURES = {
    "loss": "nats per token, cross-entropy of the next token - that of the model as it is",
    "kl": "nats per token, KL(model ‖ ablated model)",
    "agreement": "share of positions, 0–1, whose top token stays",
    "direct_loss": "as loss, the later blocks adding what they added before",
    "direct_kl": "as kl, the later blocks adding what they added before",
    "repair": "nats per token, direct_kl - kl: what the later blocks make good",
}
READ = {
    "kl": "nats per token, KL(model ‖ lens on the ablated model's states)",
    "agreement": "share of positions, 0–1, whose top token is the model's",
}


@final
@dataclass(frozen=True, eq=False)
class BlockAblations:
    """What is lost on text where single blocks are changed: sums per unit that is resampled, a document or a row.

    `sums` by measure are (C, L, U) over `changes`, `layers` (blocks, by the layer each makes) and units; `counts` (U,)
    predictions; `own` (U,) the summed cross-entropy of the model as it is. `read_sums` are (lenses, C, L, M, U) over
    the layers `read`, NaN below the block; `clean` (lenses, M, U) the same of the model as it is. Units are in
    `MEASURES` and `READ`.
    """

    model: str
    n_layers: int
    changes: tuple[str, ...]
    layers: tuple[int, ...]
    lenses: tuple[str, ...]
    read: tuple[int, ...]
    counts: np.ndarray
    own: np.ndarray
    sums: dict[str, np.ndarray]
    read_sums: dict[str, np.ndarray]
    clean: dict[str, np.ndarray]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Ablations({self.model}: {', '.join(self.changes)} × {len(self.layers)} blocks, {self.tokens} tokens)"

    @property
    def tokens(self) -> int:
        """The number of predictions."""
        return int(self.counts.sum())

    def column(self, measure: str) -> np.ndarray:
        """A measure's means per token, (C, L)."""
        return np.asarray(self._sums(measure).sum(-1) / self.counts.sum())

    def estimate(self, measure: str, change: str, layer: int, less: str | None = None, *, seed: int = 0) -> Estimate:
        """A measure of one change of one block with its 95 % interval over units.

        Args:
            measure: one of `MEASURES`.
            change: one of `changes`.
            layer: one of `layers`.
            less: the change whose value is taken off; by default none.
            seed: what units are resampled with.
        """
        sums = self._sums(measure)[:, self._at(layer, self.layers, "layer")]
        mine = sums[self._at(change, self.changes, "change")]
        if less is not None:
            mine = mine - sums[self._at(less, self.changes, "change")]
        return bootstrap(_per_token, mine, self.counts, seed=seed)

    def reading(self, measure: str, lens: str, change: str, layer: int, read: int, *, seed: int = 0) -> Estimate:
        """What a lens reads at a layer, less what it reads of the model as it is, with its 95 % interval over units.

        Args:
            measure: one of `READ`.
            lens: one of `lenses`.
            change: one of `changes`.
            layer: one of `layers`, whose block is changed.
            read: the layer that is read, one of `read`.
            seed: what units are resampled with.
        """
        if measure not in self.read_sums:
            raise LenscopeError(f"measure {measure!r}: lenses read {', '.join(READ)}")
        i, m = self._at(lens, self.lenses, "lens"), self._at(read, self.read, "layer")
        at = i, self._at(change, self.changes, "change"), self._at(layer, self.layers, "layer"), m
        return bootstrap(_per_token, self.read_sums[measure][at] - self.clean[measure][i, m], self.counts, seed=seed)

    def to_dataframe(self) -> Any:
        """A row for each change and block: the means of all measures per token, in their units.

        It is a data frame of pandas, or of polars where only that is installed; LenscopeError without both.
        """
        change, layer = np.indices((len(self.changes), len(self.layers))).reshape(2, -1)
        names = {"change": [self.changes[n] for n in change], "layer": np.array(self.layers)[layer]}
        return columns_frame({**names, **{name: self.column(name).reshape(-1) for name in self.sums}})

    def _sums(self, measure: str) -> np.ndarray:
        if measure not in self.sums:
            raise LenscopeError(f"measure {measure!r}: there are {', '.join(self.sums)}")
        return self.sums[measure]

    @staticmethod
    def _at(one: Any, known: Sequence[Any], what: str) -> int:
        if one not in known:
            raise LenscopeError(f"{what} {one!r}: there are {', '.join(map(str, known))}")
        return known.index(one)


def _per_token(sums: np.ndarray, counts: np.ndarray) -> float:
    return float(sums.sum() / counts.sum())
