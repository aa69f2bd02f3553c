"""Influence: what ablating a direction does to a lens, and what it does to the model itself.

Knows: which states are ablated, how both are measured, what a table of directions shows.
Does not know: how directions are found (causal_basis.py), how the blocks above a layer run again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from lenscope import visible_text as visible
from lenscope.directions.basis import Basis, check_model
from lenscope.directions.energy import energies, wide_readout
from lenscope.engine.run_above_layer import RunAbove
from lenscope.files.parquet_tables import columns_frame
from lenscope.lenses.lens import Lens, lens_layers
from lenscope.measures.streamed import reduce
from lenscope.models.language_model import LM
from lenscope.models.progress import Progress
from lenscope.models.provenance import provenance
from lenscope.models.readout import wide
from lenscope.statistics.estimates import spearman
from lenscope.statistics.intervals import Estimate
from lenscope.text.predictions import TextRows
from lenscope.text.row_states import as_float64, counts_by_unit, row_states


@dataclass(frozen=True, eq=False)
class Influence:
    """What ablating each direction of a basis alone does to the lens and to the model, on some text.

    `lens` and `model` (L, k) are mean KLs in nats from what is read without the ablation; `by_unit` (2, units, L, k)
    has the sums of the two over the predictions of each document or row, of which there are `counts` (units,).
    """

    basis: Basis
    by_unit: np.ndarray
    counts: np.ndarray
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Influence({self.basis!r}, {int(self.counts.sum())} tokens)"

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of the basis."""
        return self.basis.layers

    @property
    def lens(self) -> np.ndarray:
        """Influence on the lens, (L, k) in nats."""
        return self.by_unit[0].sum(0) / self.counts.sum()

    @property
    def model(self) -> np.ndarray:
        """Influence on the model, (L, k) in nats."""
        return self.by_unit[1].sum(0) / self.counts.sum()

    def fidelity(self, *, seed: int = 0) -> list[Estimate]:
        """Causal fidelity per layer: Spearman's rank correlation, over directions, of influence on lens and on model.

        Belrose et al. 2023, Figs 8 and 20; intervals resample directions.
        """
        return [spearman(a, b, seed=seed) for a, b in zip(self.lens, self.model, strict=True)]

    def to_dataframe(self) -> Any:
        """A row for each layer and direction: its energy, and its influence on lens and model, in nats.

        It is a data frame of pandas, or of polars where only that is installed; LenscopeError without both.
        """
        layer, direction = np.indices(self.lens.shape).reshape(2, -1)
        numbers = {"energy": self.basis.energies, "on_lens": self.lens, "on_model": self.model}
        names = {"layer": np.array(self.layers)[layer], "direction": direction}
        return columns_frame({**names, **{name: np.asarray(values).reshape(-1) for name, values in numbers.items()}})

    def to_json(self) -> dict[str, Any]:
        """Influences, energies and fidelity as JSON values."""
        return {
            "kind": "influence",
            "model": self.basis.model["model"],
            "lens": self.basis.lens,
            "basis": self.basis.kind,
            "layers": list(self.layers),
            "tokens": int(self.counts.sum()),
            "energies": self.basis.energies.tolist(),
            "influence_on_lens": self.lens.tolist(),
            "influence_on_model": self.model.tolist(),
            "fidelity": [[None if np.isnan(v) else v for v in one] for one in self.fidelity()],
            "provenance": self.provenance,
        }

    def table(self, layer: int, promoted: Sequence[Sequence[str]] = (), *, limit: int | None = None) -> Table:
        """One layer's directions for a terminal: influences in nats and, where given, the tokens each promotes."""
        i = self.basis.at(layer)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name in ("", "energy", "on lens", "on model"):
            table.add_column(name, justify="right", no_wrap=True)
        if promoted:
            table.add_column("promotes", overflow="ellipsis", no_wrap=True)
        columns = self.basis.energies[i].numpy(), self.lens[i], self.model[i]
        for n in range(min(limit or self.basis.k, self.basis.k)):
            words = [Text(" ".join(visible.printable_token(w) for w in promoted[n]))] if promoted else []
            table.add_row(Text(str(n + 1), style="dim"), *(f"{float(c[n]):.3g}" for c in columns), *words)
        return table


@torch.no_grad()
def influence(
    lm: LM, rows: TextRows, basis: Basis, f: Callable[..., Any] | None = None, *, progress: Progress | None = None
) -> Influence:
    """What ablating each direction of a basis does to the lens f and to the model (Belrose et al. 2023, §4.1, Fig. 8).

    Each direction alone is ablated at every position that counts, r(h, v) = h + v vᵀ (mean - h) with the basis's mean:
    in the states that the lens reads, KL(lens(h) ‖ lens(r)), and in the model's own run at that layer, KL(model ‖
    ablated model), in nats. `rows` are texts, rows of ids or batches of a corpus, of which the positions count
    that `causal_basis` counts; take others than the basis was extracted from. f None is the logit lens.

    The blocks above a layer run for many directions together, those below not at all where that was seen to give the
    same. Raises LenscopeError for a basis of another model.

    Args:
        lm: the model.
        rows: texts, rows of token ids, or batches of a corpus.
        basis: the directions.
        f: the lens's mapping; None: the logit lens.
        progress: called with how much is done and how much there is.
    """
    check_model(lm, basis)
    lens, readout = Lens(lm, f), wide_readout(lm)
    lens_layers(lens, basis.layers)
    runs = row_states(lm, rows, basis.layers)
    counts = counts_by_unit(runs)
    sums = np.zeros((2, len(counts), len(basis.layers), basis.k))
    for n, run in enumerate(runs):
        units, final = run.units[run.counted.numpy()], run.states[-1][run.counted]
        for i, layer in enumerate(basis.layers):
            states = run.states[i]
            h = states[run.counted].to(wide(final[:0]).dtype)
            ablated = basis.ablated(h, layer)
            on_lens = energies(lens, readout, h, ablated, layer)
            np.add.at(sums[0, :, i], units, as_float64(on_lens.T))
            above = RunAbove(lm.runner, run.prompts, layer, run.states[i], run.states[-1])
            for at in range(0, basis.k, above.together):
                part = slice(at, at + above.together)
                changed = states.expand(len(ablated[part]), *states.shape).clone()
                changed[:, run.counted] = ablated[part].to(states)
                last = above(changed)[:, run.counted]
                kl = reduce(lm.runner.readout, lm.vocab_size, last, final, None, 1, False).kl
                np.add.at(sums[1, :, i, part], units, as_float64(kl.T))
        if progress is not None:
            progress(n + 1, len(runs))
    return Influence(basis, sums, counts, {**provenance(lm), "lens": repr(f), "tokens": int(counts.sum())})
