"""Where patched vectors come from: hidden states with their addresses, or vectors without one.

Knows: how states become a list of sources, which target layers each of them goes to.
Does not know: target prompts, mappings, rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.mappings import mapping as mappings
from lenscope.models.edits import as_vectors
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.inputs import elements, is_integer
from lenscope.models.language_model import LM
from lenscope.models.layers import check_layers
from lenscope.patchscopes.grid_cells import Source

Layers = None | int | str | slice | Sequence[int] | Sequence[tuple[int, int]] | Sequence[int | tuple[int, int]]


@dataclass(frozen=True, eq=False, repr=False)
class Sources(Brief):
    """S sources: vectors (S, K, D), their addresses, and where the states of a prompt's position stand.

    `final` (S,) is the source that is the same position's last layer, -1 where it was not read; `stack` maps a source
    and a layer to the source that is the same position at that layer. `last` (S, D) is what predictions are compared
    with at a source of the last layer: its own vector, unless a control's states name others.
    """

    vectors: Tensor
    addresses: tuple[Source, ...]
    stack: dict[tuple[int, int], int]
    place: np.ndarray
    final: np.ndarray
    last: Tensor

    def at(self, source: int, layer: int) -> int:
        """The source of the same prompt and position at another layer; LenscopeError where it was not read."""
        number = self.stack.get((int(self.place[source]), layer))
        if number is None:
            raise LenscopeError(
                f"layer {layer}: the sources' states were not read there; read all layers for below='source'"
            )
        return number


def gather(sources: HiddenStates | Tensor, model: str) -> Sources:
    """Sources from hidden states (each prompt, position and layer) or from vectors (D,), (N, D) or (N, K, D)."""
    if not isinstance(sources, HiddenStates):
        sources = as_vectors(sources, "sources")
        if not 1 <= sources.ndim <= 3 or not sources.shape[0] or sources.is_complex():
            raise LenscopeError(f"sources of shape {tuple(sources.shape)}: give (D,), (N, D) or (N, K, D)")
        vectors = sources[None, None] if sources.ndim == 1 else sources[:, None] if sources.ndim == 2 else sources
        if not torch.isfinite(vectors).all():
            raise LenscopeError("sources: a vector holds NaN or infinity")
        addresses = tuple(Source(f"vector {n}") for n in range(len(vectors)))
        nowhere = np.full(len(vectors), -1)
        return Sources(vectors, addresses, {}, nowhere, nowhere, vectors[:, 0])
    listed: list[Source] = []
    stack: dict[tuple[int, int], int] = {}
    places: list[int] = []
    parts = []
    last = []
    place = 0
    for b, (prompt, positions) in enumerate(zip(sources.prompts, sources.positions, strict=True)):
        for column, position in enumerate(positions):
            token = prompt.tokens[position]
            for number, layer in enumerate(sources.layers):
                stack[place, layer] = len(listed)
                label = f"{token.strip() or repr(token)} {layer}"
                listed.append(Source(label, sources.model, prompt.text, token, position, layer))
                parts.append(sources.tensor[b, number, column])
                last.append(parts[-1] if sources.last is None else sources.last[b, column])
                places.append(place)
            place += 1
    final = np.array([stack.get((p, sources.n_layers), -1) for p in places])
    vectors = torch.stack(parts)[:, None]
    return Sources(vectors, tuple(listed), stack, np.array(places), final, torch.stack(last))


def cells(sources: Sources, layers: Layers, lm: LM) -> tuple[np.ndarray, np.ndarray]:
    """Which source goes to which target layer: two arrays (n,), sources first.

    Raises LenscopeError for layers out of range, or "same" and pairs where the sources have no layer.
    """
    count = len(sources.addresses)
    own = np.array([a.layer for a in sources.addresses])
    if isinstance(layers, str):
        if layers != "same":
            raise LenscopeError(f"layers {layers!r}: give numbers, (source, target) pairs, or 'same'")
        if (own < 0).all() and count == lm.n_layers + 1:
            own = np.arange(count)
        _addressed(own, "'same'")
        check_layers(sorted(set(own.tolist())), lm.n_layers, lm.name)
        return np.arange(count), own
    given: Any = slice(None) if layers is None else layers
    whole = isinstance(given, slice) or is_integer(given)
    wanted = [] if whole else elements(given, "layers, pairs of layers, or 'same'")
    pairs = [tuple(p) if isinstance(p, list) else p for p in wanted if not is_integer(p)]
    if not pairs:
        numbers = np.array(sorted(set(check_layers(given if whole else wanted, lm.n_layers, lm.name))))
        return np.repeat(np.arange(count), len(numbers)), np.tile(numbers, count)
    if len(pairs) < len(wanted) or any(not isinstance(p, tuple) or len(p) != 2 for p in pairs):
        raise LenscopeError(f"layers {list(wanted)!r}: give numbers, or (source, target) pairs, not both")
    _addressed(own, "pairs")
    missing = sorted({a for a, _ in pairs} - set(own.tolist()))
    if missing:
        raise LenscopeError(f"source layer {missing[0]}: the sources have layers {sorted(set(own.tolist()))}")
    chosen = check_layers([b for _, b in pairs], lm.n_layers, lm.name)
    cells_named = {(s, t) for (a, _), t in zip(pairs, chosen, strict=True) for s in np.flatnonzero(own == a).tolist()}
    order = sorted(cells_named)
    return np.array([s for s, _ in order]), np.array([t for _, t in order])


class Vectors:
    """What is written into targets: f of the sources, computed once per source, or per source and target layer."""

    def __init__(self, sources: Sources, f: Callable[..., Any] | None, lm: LM) -> None:
        self.sources, self.f = sources, f
        self.layers = lm.n_layers + 1
        self.slots = sources.vectors.shape[1]
        self.own = np.array([a.layer for a in sources.addresses])
        self.takes = 1 if f is None else mappings.arguments_used(f)
        if self.takes > 1:
            _addressed(self.own, "a mapping f(h, layer)")

    def at(self, source: np.ndarray, layer: np.ndarray, slot: int) -> np.ndarray:
        """Numbers that name f(source, slot) at target layers, (n,), for `table`."""
        return (source * self.layers + (layer if self.takes > 2 else 0)) * self.slots + slot

    def table(self, names: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """The vectors that `names` (n,) name, each once, (K, D*), and the number of each (n,) among them."""
        used, number = np.unique(names, return_inverse=True)
        source, layer, slot = used // self.slots // self.layers, used // self.slots % self.layers, used % self.slots
        h = self.sources.vectors[torch.from_numpy(source), torch.from_numpy(slot)]
        if self.f is None:
            return h, number.reshape(-1)
        out: Tensor | None = None
        pairs = np.stack([self.own[source] if self.takes > 1 else 0 * source, layer if self.takes > 2 else 0 * layer])
        for pair in np.unique(pairs, axis=1).T:
            mine = torch.from_numpy(np.flatnonzero((pairs == pair[:, None]).all(0)))
            with torch.no_grad():
                mapped = mappings.call_mapping(self.f, h[mine], int(pair[0]), int(pair[1]))
            if mapped.ndim != 2 or len(mapped) != len(mine):
                raise LenscopeError(
                    f"f: makes {tuple(mapped.shape)} of states {tuple(h[mine].shape)}; it must return a vector for each"
                )
            out = mapped.new_empty(len(h), mapped.shape[-1]) if out is None else out
            out[mine] = mapped
        assert out is not None
        return out, number.reshape(-1)


def _addressed(own: np.ndarray, what: str) -> None:
    if (own < 0).any():
        raise LenscopeError(f"layers: {what} needs sources with layers of their own; give HiddenStates, not vectors")
