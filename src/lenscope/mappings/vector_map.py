"""Small trained maps of one vector to another: a scale, a low-rank or a full product, and a shift.

Knows: the formula, which tensors make which shape, weights that layers share or that each layer has.
Does not know: models, how a map is trained (fitting/verbaliser.py), files.

A `PairMapping` (mapping.py) belongs to two models and to pairs of layers; this one is a formula with numbers alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, final

import torch
from torch import Tensor

from lenscope.errors import LenscopeError

# the tensors of a map by name, and how many axes each has where layers share it
AXES = {"scale": 0, "U": 2, "V": 2, "W": 2, "bias": 1}

# which tensors a map has beside its bias → what it is called
_SHAPES = {
    frozenset({"scale"}): "scale",
    frozenset({"scale", "U", "V"}): "low_rank",
    frozenset({"U", "V"}): "low_rank_only",
    frozenset({"W"}): "full",
    frozenset({"scale", "W"}): "full",
}


@final
@dataclass(frozen=True, eq=False, repr=False)
class VectorMap:
    """A map of vectors, f(h) = s n(h) + U V n(h) + W n(h) + b, with n(h) = h / ‖h‖ or h: (..., D) → (..., D*).

    A tensor that is None is left out of the sum, and what is there names the `shape`: "scale_only" (s alone), "affine"
    (s and b), "low_rank" (s, U, V; with b or without), "low_rank_only" (U, V), "full" (W). They cover the projections
    of SelfIE adapters (arXiv 2602.10352). A scale alone keeps the width of what it is given. Where `layers` are given,
    every tensor has one more axis in front, with weights for each of these layers, and the map is called f(h, layer);
    otherwise all layers share the weights, and it is called f(h). Weights are kept in float32; the map is computed in
    float32, in float64 where h is. The zero vector is mapped to b. `lenscope.mappings.mapping_hash` tells maps apart
    by their contents.

    Attributes:
        scale: s, a scalar ().
        U: (D*, r), to be given with V.
        V: (r, D).
        W: (D*, D).
        bias: b, (D*,).
        normalize: whether n(h) is h / ‖h‖; False: h itself.
        layers: the layers that have weights of their own; None: all share them.

    Raises LenscopeError for tensors that make no map, of shapes that do not go together, and for NaN and infinity.
    """

    scale: Tensor | None = None
    U: Tensor | None = None
    V: Tensor | None = None
    W: Tensor | None = None
    bias: Tensor | None = None
    normalize: bool = True
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "normalize", bool(self.normalize))
        if self.layers is not None:
            object.__setattr__(self, "layers", _checked_layers(self.layers))
        for name, axes in AXES.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, self._checked(name, axes))
        if frozenset(self.tensors()) - {"bias"} not in _SHAPES:
            given = ", ".join(self.tensors()) or "nothing"
            raise LenscopeError(
                f"map: has {given}; give a scale, U and V, a scale with U and V, or W, each with a bias or without"
            )
        sizes = {
            "V": None if self.V is None or self.U is None else ("rows", self.V.shape[-2], self.U.shape[-1], "U's rank"),
            "bias": None
            if self.bias is None or self.width is None
            else ("numbers", self.bias.shape[-1], self.width, "width of what the map gives"),
        }
        for name, size in sizes.items():
            if size is not None and size[1] != size[2]:
                raise LenscopeError(f"map: {name} has {size[1]} {size[0]}, and the {size[3]} is {size[2]}")
        if self.scale is not None and None not in (self.input_width, self.width) and self.input_width != self.width:
            raise LenscopeError(
                f"map: a scale keeps a vector's width, and the others map {self.input_width} numbers to {self.width}; "
                "leave the scale out"
            )

    def __repr__(self) -> str:
        widths = "" if self.width is None else f", {self.input_width} → {self.width}"
        rank = "" if self.rank is None else f", rank {self.rank}"
        where = "" if self.layers is None else f", layers {', '.join(map(str, self.layers))}"
        return f"VectorMap({self.shape}{rank}{widths}{'' if self.normalize else ', not normalized'}{where})"

    def __call__(self, h: Tensor, layer: int | None = None) -> Tensor:
        """f of vectors h (..., D), which were read at `layer`: (..., D*), in float32 or float64.

        Raises LenscopeError for vectors of another width, and where layers have weights of their own for a layer that
        has none, or for none named; of one layer it need not be named.
        """
        if self.input_width is not None and h.shape[-1] != self.input_width:
            raise LenscopeError(
                f"vectors of {h.shape[-1]} numbers: this map takes {self.input_width}; give states of the model that "
                "it was trained for"
            )
        weights = self.tensors()
        if self.layers is not None:
            if layer is None and len(self.layers) == 1:
                layer = self.layers[0]
            if layer not in self.layers:
                known = ", ".join(map(str, self.layers))
                raise LenscopeError(f"layer {layer}: this map has weights for layers {known}; give vectors of these")
            weights = {name: w[self.layers.index(layer)] for name, w in weights.items()}
        wide = h.double() if h.dtype == torch.float64 else h.float()
        return mapped_vectors(wide, {name: w.to(wide) for name, w in weights.items()}, self.normalize)

    @property
    def shape(self) -> str:
        """What the map is called: scale_only, affine, low_rank, low_rank_only or full."""
        name = _SHAPES[frozenset(self.tensors()) - {"bias"}]
        return name if name != "scale" else "scale_only" if self.bias is None else "affine"

    @property
    def input_width(self) -> int | None:
        """D; None where a scale alone takes vectors of any width."""
        matrix = self.V if self.V is not None else self.W
        return self.width if matrix is None else matrix.shape[-1]

    @property
    def width(self) -> int | None:
        """D*; None where a scale alone keeps whatever width vectors have."""
        if self.U is not None:
            return self.U.shape[-2]
        if self.W is not None:
            return self.W.shape[-2]
        return None if self.bias is None else self.bias.shape[-1]

    @property
    def rank(self) -> int | None:
        """The rank r of U V; None without them."""
        return None if self.U is None else self.U.shape[-1]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that the map has, by name."""
        return {name: getattr(self, name) for name in AXES if getattr(self, name) is not None}

    def settings(self) -> dict[str, Any]:
        """What else the map is made of, as JSON values: `VectorMap(**tensors, **settings)` is the same map."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in AXES}
        return {**own, "layers": None if self.layers is None else list(self.layers)}

    def contents(self) -> tuple[list[Any], dict[str, Tensor]]:
        """What tells it apart from other mappings, for `mapping_hash`: JSON values, and its tensors by name."""
        return ["vector map", self.settings()], self.tensors()

    def _checked(self, name: str, axes: int) -> Tensor:
        given = getattr(self, name)
        try:
            tensor = torch.as_tensor(given).detach().to("cpu", torch.float32, copy=True).contiguous()
        except (TypeError, ValueError, RuntimeError) as error:
            raise LenscopeError(f"map: {name} {type(given).__name__}: is no tensor of numbers") from error
        shared = self.layers is None
        if name == "scale" and tensor.shape == ((1,) if shared else (len(self.layers or ()), 1)):
            # adapters keep their scale as a vector of one number
            tensor = tensor[..., 0].contiguous()
        wanted = axes if shared else axes + 1
        if tensor.ndim != wanted or not tensor.numel():
            raise LenscopeError(f"map: {name} of shape {tuple(tensor.shape)}; it must have {wanted} axes, none empty")
        if self.layers is not None and len(tensor) != len(self.layers):
            raise LenscopeError(f"map: {name} is of {len(tensor)} layers, and there are {len(self.layers)}")
        if not torch.isfinite(tensor).all():
            raise LenscopeError(f"map: {name} holds NaN or infinity; train the map anew")
        return tensor


def mapped_vectors(h: Tensor, weights: Mapping[str, Tensor], normalize: bool) -> Tensor:
    """The formula of `VectorMap` in the dtype of h (..., D), differentiable in h and in the weights: (..., D*)."""
    n = directions(h) if normalize else h
    parts = []
    if "scale" in weights:
        parts.append(weights["scale"] * n)
    if "U" in weights:
        parts.append(n @ weights["V"].T @ weights["U"].T)
    if "W" in weights:
        parts.append(n @ weights["W"].T)
    if "bias" in weights:
        parts.append(weights["bias"])
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def directions(h: Tensor) -> Tensor:
    """h / ‖h‖ of vectors (..., D), however long; the zero vector, which has no direction, stays as it is."""
    # squares of the numbers of a long or a short vector may be infinite or zero
    h = h / h.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(h.dtype).tiny)
    # the largest number is 1, or all are 0
    return h / h.norm(dim=-1, keepdim=True).clamp_min(0.5)


def _checked_layers(layers: Any) -> tuple[int, ...]:
    try:
        numbers = tuple(layers)
    except TypeError as error:
        raise LenscopeError(f"layers {layers!r}: give a list of layers, or None for weights that all share") from error
    if not numbers or any(type(n) is not int or n < 0 for n in numbers) or len(set(numbers)) < len(numbers):
        raise LenscopeError(f"layers {numbers!r}: give whole numbers from 0 on, each once, or None")
    return numbers
