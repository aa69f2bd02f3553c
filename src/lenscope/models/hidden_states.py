"""Hidden states with their addresses: `states[layer, position]`.

Knows: which layer, position and prompt each vector came from.
Does not know: models, or what the vectors mean.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.models.inputs import is_integer, sliced
from lenscope.models.layers import Layers, check_layers
from lenscope.models.prompts import Positions, Prompt


@dataclass(frozen=True, eq=False, repr=False)
class HiddenStates(Brief):
    """Hidden states with their addresses: `states[layer, position]`. `LM.read` gives them.

    Index with layer numbers (negative ones count from the model's last layer) and positions of the prompt, each an int,
    a slice or a list; a position may also be a substring of the prompt. A single index drops its axis: `states[3, -1]`
    is one vector (D,), `states[:, -1]` has all layers (L, D), `states[[0, 5], "Paris"]` is (2, D). States of a list of
    prompts have a leading axis for prompts: `states[:, -1]` is then (B, L, D), where -1 is each prompt's own last
    token.

    Attributes:
        tensor: all states (B, L, P, D), with zeros after the positions of shorter prompts.
        layers: the layers that were read.
        positions: the positions that were read, prompt by prompt.
        prompts: the prompts.
        batched: whether a list of prompts was read.
        n_layers: the number of the model's last layer.
        model: the name of the model.
        last: states (B, P, D) of the last layer that predictions are compared with, where `tensor` holds others, as in
            a control; else None.
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
        """Give the states of each prompt alone, without padding."""
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
            sliced_layers = tuple(n for n in sliced(layer, self.n_layers + 1, "layers") if n in self.layers)
            if not sliced_layers:
                raise LenscopeError(
                    f"layers {layer.start}:{layer.stop}: none of the layers {self.layers} that were read"
                )
            return sliced_layers
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
