"""The staircase: one forward pass for many rows that share every state up to where their patches part them.

Knows: which rows have the same state at which layer, so that it is computed once; how a batch grows from block to
block and its cache with it; the same for generated tokens, where rows with the same history share the layers below
their first patches. Does not know: what a patch is, what is read from the last states, how rows are packed
(chunked_runs.py).
"""

import copy
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from lenscope.engine.hidden_keys import HiddenKeys
from lenscope.engine.patched_rows import ApplyPatches
from lenscope.engine.shared_attention import SharedLayer, cascading
from lenscope.models.language_model import LM
from lenscope.models.residual_stream import forward_kwargs
from lenscope.models.runner import EnoughRead

# Where in a block's arguments a tensor stands (names, and indices of tuples), and how many rows it has per row
Batched = dict[tuple[str | int, ...], int]


class Staircase:
    """Runs N rows that go on from cached prefixes of equal length.

    At layer l, rows with diverges_at > l and the same origin and tokens share one state.

    Args:
        lm: the model.
        prefix: the cache that rows go on from.
        origin: (N,) which row of `prefix` each row goes on from.
        diverges_at: (N,), ascending, the layer from which on a row is like no other: that of its first patch
            (n_layers + 1: never).
        batched: which arguments of the blocks have a batch axis (`batched_arguments`).
        change: patches states in place.
        hidden_keys: which keys the rows may not see; None: they see all.
    """

    def __init__(
        self,
        lm: LM,
        prefix: Cache,
        origin: np.ndarray,
        diverges_at: np.ndarray,
        batched: Batched,
        change: ApplyPatches,
        hidden_keys: HiddenKeys | None = None,
    ) -> None:
        self.lm = lm
        self.batched = batched
        self.change = change
        self.hidden_keys = hidden_keys
        self.cache = copy.copy(prefix)
        self.cache.layers = list(prefix.layers)
        self.diverges_at = diverges_at
        self.rows = np.arange(len(diverges_at))
        # Rows of equal history have read the same tokens; `layout` has, per block, how many parted rows stand in the
        # cache and which histories after them.
        self.history = origin.reshape(-1)
        self.layout: list[tuple[int, np.ndarray]] = []
        self.parent = self.going_on = np.arange(0)

    def run(self, ids: Tensor, last: int = 1) -> Tensor:
        """Feed ids (N, S), each row's next tokens; returns the last layer's states (N, last, D) of the last ones."""
        counts = np.searchsorted(self.diverges_at, np.arange(self.lm.n_layers + 1), side="right")
        classes = [np.unique(self.history[c:]) for c in counts]
        first = np.concatenate([np.arange(counts[0]), counts[0] + _first_of(self.history[counts[0] :], classes[0])])
        # which row of the first block's batch each row of the running batch comes from
        origin = np.arange(len(first))
        out: list[Tensor] = []

        def arrive(layer: int, h: Tensor) -> Tensor | None:
            nonlocal origin
            count = int(counts[layer])
            moved = layer > 0 and count > counts[layer - 1]
            if moved:
                step = self._step(layer, counts, classes)
                origin = origin[step]
                h = h[_index(step, h)]
            if count and not self.layout:
                h = h if moved else h.clone()
                self.change(layer, h[:count], self.rows[:count])
            if layer < self.lm.n_layers:
                self._arrange(layer, count, classes[layer], ids.shape[1])
                return h
            rest = count + np.searchsorted(classes[layer], self.history[count:])
            out.append(h[_index(np.concatenate([np.arange(count), rest]), h), -last:])
            self.lm.runner.require_finite(out[0], layer)
            raise EnoughRead

        def fit(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if len(origin) == len(first):
                return None
            index = _index(origin, ids)
            rest = tuple(_picked(a, (n,), self.batched, index) for n, a in enumerate(args[1:], 1))
            return args[:1] + rest, {k: _picked(v, (k,), self.batched, index) for k, v in kwargs.items()}

        with self.lm.runner.exclusive.alone(), ExitStack() as undo:
            for layer in range(self.lm.n_layers + 1):
                undo.callback(self.lm.runner.hook(layer, lambda h, layer=layer: arrive(layer, h)).remove)
            for block in self.lm.runner.anatomy.blocks if self.batched else ():
                undo.callback(block.register_forward_pre_hook(fit, with_kwargs=True).remove)
            if any(isinstance(layer, SharedLayer) for layer in self.cache.layers):
                undo.enter_context(cascading(self.lm.model))
            undo.enter_context(torch.no_grad())
            wanted = forward_kwargs(self.lm.model, use_cache=True, past_key_values=self.cache)
            try:
                self.lm.model(input_ids=ids[_index(first, ids)], **wanted)
            except EnoughRead:
                pass
        self.layout = [(int(c), known) for c, known in zip(counts, classes, strict=True)]
        return out[0]

    def grow(self, going_on: np.ndarray, tokens: np.ndarray) -> None:
        """Go on with the rows `going_on` (ascending) only, whose next tokens are `tokens` (len(going_on),)."""
        grown, self.history = np.unique(np.stack([self.history[going_on], tokens]), axis=1, return_inverse=True)
        self.history = self.history.reshape(-1)
        self.parent, self.going_on = grown[0], going_on
        self.diverges_at, self.rows = self.diverges_at[going_on], self.rows[going_on]

    def _step(self, layer: int, counts: np.ndarray, classes: list[np.ndarray]) -> np.ndarray:
        """Where each row of the batch at `layer` stood one layer below."""
        below, here = counts[layer - 1], counts[layer]
        known = classes[layer - 1]
        newly = np.searchsorted(known, self.history[below:here])
        return np.concatenate([np.arange(below), below + newly, below + np.searchsorted(known, classes[layer])])

    def _arrange(self, layer: int, count: int, classes: np.ndarray, queries: int) -> None:
        """Arrange the cache of the block above `layer` for the rows that are about to enter it."""
        cached = self.cache.layers[layer] if layer < len(self.cache.layers) else None
        if self.layout:
            before, known = self.layout[layer]
            index = np.concatenate([self.going_on[:count], before + np.searchsorted(known, self.parent[classes])])
            size = before + len(known)
        else:
            index, size = np.concatenate([self.history[:count], classes]), None
        if isinstance(cached, SharedLayer):
            cached.select(torch.from_numpy(index))
            if self.hidden_keys is not None:
                keys = cached.get_seq_length() + queries
                cached.allowed = self.hidden_keys.allowed(layer, self.rows[:count], len(index), queries, keys)
        elif cached is not None:
            # a copy in any case: the prefix stays as it is for others
            self.cache.layers[layer] = _selected_rows(cached, index, size)


def batched_arguments(lm: LM) -> Batched:
    """Which arguments of the blocks have a batch axis first, seen in two runs with different batches from a cache."""
    seen: list[dict[tuple[str | int, ...], int]] = []
    for rows in (2, 3):
        shapes: dict[tuple[str | int, ...], int] = {}

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any = shapes) -> None:
            for path, t in _tensors({**dict(enumerate(args)), **kwargs}):
                if path not in ((0,), ("hidden_states",)) and t.ndim > 1:
                    shapes[path] = t.shape[0]

        ids = lm.runner.anatomy.ids[:rows]
        with lm.runner.exclusive.alone(), ExitStack() as undo, torch.no_grad():
            # the stream itself need not be (B, T, D); nothing else says which rows are which
            past = lm.model(input_ids=ids[:, :4], **forward_kwargs(lm.model, use_cache=True)).past_key_values
            for block in lm.runner.anatomy.blocks:
                undo.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
            lm.model(input_ids=ids[:, 4:6], **forward_kwargs(lm.model, use_cache=True, past_key_values=past))
        seen.append(shapes)
    two, three = seen
    return {p: n // 2 for p, n in two.items() if n % 2 == 0 and n > 0 and three.get(p) == n // 2 * 3}


def _tensors(value: Any, path: tuple[str | int, ...] = ()) -> Any:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict):
        for k, v in value.items():
            yield from _tensors(v, (*path, k))
    elif isinstance(value, tuple | list):
        for n, v in enumerate(value):
            yield from _tensors(v, (*path, n))


def _picked(value: Any, path: tuple[str | int, ...], batched: Batched, index: Tensor) -> Any:
    """`value` with every tensor that has a batch axis arranged by `index`."""
    if isinstance(value, Tensor) and path in batched:
        each = batched[path]
        return value[index] if each == 1 else value.unflatten(0, (-1, each))[index].flatten(0, 1)
    if isinstance(value, dict) and type(value) is dict:
        return {k: _picked(v, (*path, k), batched, index) for k, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_picked(v, (*path, n), batched, index) for n, v in enumerate(value))
    return value


def _selected_rows(cached: Any, index: np.ndarray, size: int | None) -> Any:
    """A copy of a cache's layer with its rows arranged by `index`; `size`: how many it has (None: any)."""

    def pick(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 1 and size in (None, value.shape[0]):
            return value[_index(index, value)]
        if type(value) is dict:
            return {k: pick(v) for k, v in value.items()}
        return type(value)(map(pick, value)) if type(value) in (tuple, list) else value

    selected = copy.copy(cached)
    for name, value in vars(cached).items():
        setattr(selected, name, pick(value))
    return selected


def _first_of(history: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """For each class the first row that belongs to it."""
    order = np.argsort(history, kind="stable")
    return order[np.searchsorted(history[order], classes)]


def _index(index: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(index).to(like.device)
