"""Directions of the residual stream: bases of states per layer, and what ablating each direction does.

Knows: shapes, units, orders and signs, the files of bases, intervals, tables for a terminal.
Does not know: models, how directions are found (causal.py), how they are ablated in a model (ablation.py).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lenscope.display import visible_text as visible
from lenscope.errors import LenscopeError
from lenscope.files import weights_folder as artifacts
from lenscope.files.untrusted import reading
from lenscope.statistics.estimates import Estimate, mean, spearman

FORMAT = 1
STEM = "basis"


@dataclass(frozen=True, eq=False)
class Basis:
    """k orthonormal directions per layer, ordered by their influence on a lens: `basis[layer]` is (k, D).

    `directions` (L, k, D) are float32; `energies` (L, k) the mean KL(lens(h) ‖ lens(r(h, v))) in nats of ablating each
    alone (σ of Belrose et al. 2023, Eq. 10), falling; r(h, v) = h + v vᵀ (mean - h) with `mean` (L, D) that of the
    states. `spread` (L, k) is the states' standard deviation along each direction, whose sign is that of the longer
    tail. `kind` is "causal", "principal" or "random", `lens` the lens's name, `model` what `mappings.identify` says.
    """

    directions: Tensor
    energies: Tensor
    mean: Tensor
    spread: Tensor
    layers: tuple[int, ...]
    kind: str
    lens: str
    model: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count, k, size = self.directions.shape if self.directions.ndim == 3 else (0, 0, 0)
        wanted = {"energies": (count, k), "mean": (count, size), "spread": (count, k)}
        found = {name: tuple(getattr(self, name).shape) for name in wanted}
        if not k or found != wanted or len(self.layers) != count or size != self.model.get("hidden_size"):
            raise LenscopeError(
                f"basis: directions of shape {tuple(self.directions.shape)} with {found} for {len(self.layers)} "
                "layers; give (layers, k, D), with energies and spread (layers, k) and a mean (layers, D)"
            )
        if not all(bool(torch.isfinite(getattr(self, name)).all()) for name in ("directions", *wanted)):
            raise LenscopeError("basis: it holds NaN or infinity; extract it anew")

    def __repr__(self) -> str:
        size = f"{len(self.layers)} layers × {self.k} directions"
        return f"Basis({self.kind}, {self.lens}, {self.model['model']}: {size})"

    def __getitem__(self, layer: int) -> Tensor:
        return self.directions[self.at(layer)]

    @property
    def k(self) -> int:
        """How many directions each layer has."""
        return self.directions.shape[1]

    def at(self, layer: int) -> int:
        """The index of a layer; LenscopeError if the basis does not have it."""
        if layer not in self.layers:
            raise LenscopeError(f"layer {layer}: this basis has layers {', '.join(map(str, self.layers))}")
        return self.layers.index(layer)

    def top(self, k: int) -> "Basis":
        """The first k directions of every layer; they span its principal causal subspace of that size."""
        if not 1 <= k <= self.k:
            raise LenscopeError(f"k {k}: this basis has 1–{self.k} directions a layer")
        parts = self.directions[:, :k], self.energies[:, :k], self.mean, self.spread[:, :k]
        return Basis(*parts, self.layers, self.kind, self.lens, self.model, self.provenance)

    def ablated(self, h: Tensor, layer: int) -> Tensor:
        """r(h, v) of states (..., D) of a layer for each of its directions alone: (k, ..., D), in the dtype of h."""
        i = self.at(layer)
        v, mean = self.directions[i].to(h), self.mean[i].to(h)
        along = (mean - h) @ v.T
        return h + along.movedim(-1, 0)[..., None] * v.view(len(v), *[1] * (h.ndim - 1), -1)

    def exchanged(self, h: Tensor, other: Tensor, layer: int) -> Tensor:
        """h (..., D) with its component in the subspace of all directions replaced by that of `other` (..., D)."""
        v = self[layer].to(h)
        return h + (other.to(h) - h) @ v.T @ v

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and basis-….safetensors into a folder, whole or not at all."""
        config = {
            "format": FORMAT,
            "kind": self.kind,
            "lens": self.lens,
            "layers": self.layers,
            "model": self.model,
            "provenance": self.provenance,
        }
        names = "directions", "energies", "mean", "spread"
        artifacts.write(folder, STEM, config, {n: getattr(self, n).detach().cpu().clone() for n in names})


def load_basis(folder: str | os.PathLike[str]) -> Basis:
    """Read what `Basis.save` wrote. Raises LenscopeError for whatever is missing, damaged or of another format."""
    with reading(folder, "is no basis that lenscope saved"):
        config, found = artifacts.read(folder, STEM)
        if config["format"] != FORMAT:
            raise LenscopeError(f"{folder}: has format {config['format']!r}; this lenscope reads {FORMAT}")
        layers = tuple(int(n) for n in config["layers"])
        about = str(config["kind"]), str(config["lens"]), dict(config["model"]), dict(config["provenance"])
        basis = Basis(found["directions"], found["energies"], found["mean"], found["spread"], layers, *about)
        gram = basis.directions.double() @ basis.directions.double().mT
        if not torch.allclose(gram, torch.eye(basis.k, dtype=gram.dtype).expand_as(gram), atol=1e-3):
            raise ValueError("its directions are not orthonormal")
        return basis


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
            words = [Text(" ".join(visible.token(w) for w in promoted[n]))] if promoted else []
            table.add_row(Text(str(n + 1), style="dim"), *(f"{float(c[n]):.3g}" for c in columns), *words)
        return table


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

    def estimate(self, lens: str, layer: int, *, seed: int = 0) -> Estimate:
        """A lens's similarity at a layer, every document or row counting alike, with its bootstrap interval."""
        values = self.units(lens, layer)
        return mean(values[~np.isnan(values)], seed=seed)
