"""Hidden states with their addresses: `states[layer, position]`.

Knows: which layer, position and prompt each vector came from.
Does not know: models, or what the vectors mean.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.models.inputs import elements, is_integer, shown, sliced
from lenscope.models.prompts import Positions, Prompt

# layers as a person names them
Layers = int | slice | Sequence[int]


@dataclass(frozen=True, eq=False, repr=False)
class HiddenStates(Brief):
    """What `LM.read` read: `states[layer, position]` is the residual stream after `layer` blocks.

    Index with layer numbers (not tensor indices; negative ones from the model's last layer) and positions of the
    prompt, each an int, a slice or a list; positions also as substrings. A single index drops its axis:
    `states[3, -1]` is (D,), `states[:, -1]` (L, D), `states[[0, 5], "Paris"]` (2, D). States of a list of prompts
    carry a leading batch axis: `states[:, -1]` is then (B, L, D), -1 each prompt's own last token, and
    `states.split()` gives them one by one. `tensor` is (B, L, P, D), with zeros after the positions of shorter prompts.
    `last` (B, P, D) are the states of the last layer that predictions are compared with where `tensor` holds others, as
    in a control (controls.py).
    """

    tensor: Tensor
    layers: tuple[int, ...]
    n_layers: int
    prompts: tuple[Prompt, ...]
    positions: tuple[tuple[int, ...], ...]
    batched: bool
    model: str
    last: Tensor | None = None

    def __getitem__(self, key: tuple[Layers, Positions]) -> Tensor:
        if not isinstance(key, tuple) or len(key) != 2:
            raise LenscopeError("index hidden states with [layer, position]")
        layer, position = key
        layers = [self.layers.index(n) for n in self._layers(layer)]
        columns = [self._columns(row, position) for row in range(len(self.prompts))]
        if len({len(c) for c in columns}) > 1:
            counts = ", ".join(str(len(c)) for c in columns)
            raise LenscopeError(f"positions {position!r}: {counts} of them in the prompts; split() reads each alone")
        rows = torch.arange(len(self.prompts))[:, None, None]
        picked = self.tensor[rows, torch.tensor(layers)[None, :, None], torch.tensor(columns)[:, None, :]]
        if isinstance(position, str) or is_integer(position):
            picked = picked[:, :, 0]
        if is_integer(layer):
            picked = picked[:, 0]
        return picked if self.batched else picked[0]

    def split(self) -> "list[HiddenStates]":
        """The states of each prompt alone, without padding."""
        return [
            HiddenStates(
                self.tensor[b : b + 1, :, : len(self.positions[b])],
                self.layers,
                self.n_layers,
                (prompt,),
                (self.positions[b],),
                False,
                self.model,
                None if self.last is None else self.last[b : b + 1, : len(self.positions[b])],
            )
            for b, prompt in enumerate(self.prompts)
        ]

    def _layers(self, layer: Layers) -> tuple[int, ...]:
        if isinstance(layer, slice):
            found = tuple(n for n in sliced(layer, self.n_layers + 1, "layers") if n in self.layers)
            if not found:
                raise LenscopeError(
                    f"layers {layer.start}:{layer.stop}: none of the layers {self.layers} that were read"
                )
            return found
        wanted = check_layers(layer, self.n_layers, self.model)
        missing = [n for n in wanted if n not in self.layers]
        if missing:
            have = ", ".join(map(str, self.layers))
            raise LenscopeError(f"layer {missing[0]}: was not read; these states have layers {have}")
        return wanted

    def _columns(self, row: int, position: Positions) -> list[int]:
        have = self.positions[row]
        if isinstance(position, slice):
            wanted = tuple(p for p in self.prompts[row].positions(position) if p in have)
        else:
            wanted = self.prompts[row].positions(position)
        missing = [p for p in wanted if p not in have]
        if missing or not wanted:
            read = ", ".join(map(str, have))
            raise LenscopeError(f"position {missing[0] if missing else position}: was not read; only {read}")
        return [have.index(p) for p in wanted]


def check_layers(layers: Layers, n_layers: int, model: str) -> tuple[int, ...]:
    """Layer numbers 0…n_layers (negative ones from the end) of an int, a slice or a list, in the order given.

    Raises LenscopeError for layers out of range, none at all, and what is no integer.
    """
    if isinstance(layers, slice):
        found = list(sliced(layers, n_layers + 1, "layers"))
        if not found:
            raise LenscopeError(f"layers {layers.start}:{layers.stop}: {model} has layers 0–{n_layers}; none of them")
        return tuple(found)
    valid = f"{model} has layers 0–{n_layers} (0 is the input of the first block, {n_layers} the last block's output)"
    found = []
    for layer in [layers] if is_integer(layers) else elements(layers, "a layer, a slice or a list of layers"):
        number = operator.index(layer) if is_integer(layer) else None
        if number is None or not -n_layers - 1 <= number <= n_layers:
            raise LenscopeError(f"layer {shown(layer) if number is None else number}: {valid}")
        found.append(number % (n_layers + 1))
    if not found:
        raise LenscopeError("layers: the list is empty; name at least one")
    return tuple(found)


def spaced(layers: Sequence[int], count: int) -> tuple[int, ...]:
    """Up to `count` of the layers, evenly apart, the first and the last among them."""
    return tuple(layers[round(n)] for n in np.linspace(0, len(layers) - 1, min(count, len(layers))))
