"""A basis: orthonormal directions of the states of each layer, in order of what ablating them does to a lens.

Knows: shapes, units, orders and signs, the files of bases, states without a direction or with another one's.
Does not know: how directions are found (causal_basis.py), how they are ablated in a model (influence.py).
"""

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.files import weights_folder as artifacts
from lenscope.models.language_model import LM
from lenscope.models.same_model import is_same_model

FORMAT = 1
STEM = "basis"


@dataclass(frozen=True, eq=False)
class Basis:
    """k orthonormal directions per layer, ordered by their influence on a lens: `basis[layer]` is (k, D).

    `directions` (L, k, D) are float32; `energies` (L, k) the mean KL(lens(h) ‖ lens(r(h, v))) in nats of ablating each
    alone (σ of Belrose et al. 2023, Eq. 10), falling; r(h, v) = h + v vᵀ (mean - h) with `mean` (L, D) that of the
    states. `spread` (L, k) is the states' standard deviation along each direction, whose sign is that of the longer
    tail. `kind` is "causal", "principal" or "random", `lens` the lens's name, `model` what
    `lenscope.models.same_model.model_identity` says.
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
        shapes = {name: tuple(getattr(self, name).shape) for name in wanted}
        if not k or shapes != wanted or len(self.layers) != count or size != self.model.get("hidden_size"):
            raise LenscopeError(
                f"basis: directions of shape {tuple(self.directions.shape)} with {shapes} for {len(self.layers)} "
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
        artifacts.write_folder(folder, STEM, config, {n: getattr(self, n).detach().cpu().clone() for n in names})


def load_basis(folder: str | os.PathLike[str]) -> Basis:
    """Read what `Basis.save` wrote. Raises LenscopeError for whatever is missing, damaged or of another format."""
    with artifacts.opened_folder(folder, STEM, FORMAT) as (config, tensors):
        layers = tuple(int(n) for n in config["layers"])
        about = str(config["kind"]), str(config["lens"]), dict(config["model"]), dict(config["provenance"])
        basis = Basis(tensors["directions"], tensors["energies"], tensors["mean"], tensors["spread"], layers, *about)
        gram = basis.directions.double() @ basis.directions.double().mT
        if not torch.allclose(gram, torch.eye(basis.k, dtype=gram.dtype).expand_as(gram), atol=1e-3):
            raise ValueError("its directions are not orthonormal")
        return basis


def check_model(lm: LM, basis: Basis) -> None:
    """Raise LenscopeError where a basis was extracted from another model."""
    if not is_same_model(basis.model, lm):
        raise LenscopeError(
            f"basis: extracted from {basis.model['model']}, not from {lm.name} or not these weights; extract one anew"
        )
