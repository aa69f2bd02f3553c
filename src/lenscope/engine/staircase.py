"""The staircase: one forward pass for many rows that share every state up to where their patches part them.

Knows: which rows have the same state at which layer, so that it is computed once; how a batch grows from block to
block and its cache with it; the same for generated tokens, where rows with the same history share the layers below
their first patches. Does not know: what a patch is, what is read from the last states, how rows are packed
(chunked_runs.py).
"""

from collections.abc import Callable, MutableMapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lenscope.engine.cache_layout import CacheLayout, tensors_within
from lenscope.engine.hidden_keys import HiddenKeys
from lenscope.engine.patched_rows import ApplyPatches
from lenscope.engine.shared_attention import SharedLayer, cascading, follow, layer_shown
from lenscope.models.carried_states import CarriedStates, picked_rows
from lenscope.models.language_model import LM
from lenscope.models.runner import EnoughRead

# pick(path, tensor) -> the tensor as a block is to have it
Pick = Callable[[tuple[str | int, ...], Tensor], Tensor]


class Staircase:
    """Runs N rows that go on from cached prefixes of equal length.

    At layer l, rows with diverges_at > l and the same origin and tokens share one state.

    Args:
        lm: the model.
        prefix: what the rows go on from.
        origin: (N,) which row of `prefix` each row goes on from.
        diverges_at: (N,), ascending, the layer from which on a row is like no other: that of its first patch
            (n_layers + 1: never).
        layout: what belongs to which row and block (`cache_layout`).
        change: patches states in place.
        hidden_keys: which keys the rows may not see; None: they see all.
        one_by_one: whether tokens are fed one at a time, as some models need that carry recurrent states.
    """

    def __init__(
        self,
        lm: LM,
        prefix: CarriedStates,
        origin: np.ndarray,
        diverges_at: np.ndarray,
        layout: CacheLayout,
        change: ApplyPatches,
        hidden_keys: HiddenKeys | None = None,
        one_by_one: bool = False,
    ) -> None:
        self.lm = lm
        self.layout = layout
        self.change = change
        self.hidden_keys = hidden_keys
        self.carried = prefix.twin()
        self.one_by_one = one_by_one
        # tokens of each row that were fed, and those of its prompt: only these are patched
        self.fed, self.in_prompt = 0, 0
        self.diverges_at = diverges_at
        self.rows = np.arange(len(diverges_at))
        # Rows of equal history have read the same tokens; `cached` has, per block, how many parted rows stand in the
        # cache and which histories after them.
        self.history = origin.reshape(-1)
        self.cached: list[tuple[int, np.ndarray]] = []
        self.parent = self.going_on = np.arange(0)

    def run(self, ids: Tensor, last: int = 1) -> Tensor:
        """Feed ids (N, S), each row's next tokens; returns the last layer's states (N, last, D) of the last ones."""
        self.in_prompt = self.in_prompt or ids.shape[1]
        if not self.one_by_one:
            return self._feed(ids, last)
        states = []
        for at in range(ids.shape[1]):
            if at:
                self.grow(np.arange(len(self.rows)), ids[:, at - 1].cpu().numpy())
            h = self._feed(ids[:, at : at + 1], 1)
            if at >= ids.shape[1] - last:
                states.append(h)
        return torch.cat(states, 1)

    def _feed(self, ids: Tensor, last: int) -> Tensor:
        counts = np.searchsorted(self.diverges_at, np.arange(self.lm.n_layers + 1), side="right")
        classes = [np.unique(self.history[c:]) for c in counts]
        first = np.concatenate([np.arange(counts[0]), counts[0] + _first_of(self.history[counts[0] :], classes[0])])
        out: list[Tensor] = []
        # what blocks pass on to later ones, and the layer whose batch it has
        passed: dict[int, tuple[Tensor, int]] = {}

        def arrive(layer: int, h: Tensor) -> Tensor | None:
            count = int(counts[layer])
            moved = layer > 0 and count > counts[layer - 1]
            if moved:
                h = h[_index(self._place(layer - 1, layer, counts, classes), h)]
            if count and self.fed < self.in_prompt:
                h = h if moved else h.clone()
                self.change(layer, h[:count], self.rows[:count], self.fed)
            if layer < self.lm.n_layers:
                self._arrange(layer, count, classes[layer], ids.shape[1])
                return h
            rest = count + np.searchsorted(classes[layer], self.history[count:])
            out.append(h[_index(np.concatenate([np.arange(count), rest]), h), -last:])
            self.lm.runner.require_finite(out[0], layer)
            raise EnoughRead

        def fit(layer: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            def pick(path: tuple[str | int, ...], t: Tensor) -> Tensor:
                each = self.layout.batched.get(path, 0)
                known = passed.get(id(t))
                below = known[1] if known is not None else 0
                if each and counts[below] < counts[layer]:
                    index, given = _index(self._place(below, layer, counts, classes), t), t
                    t = t[index] if each == 1 else t.unflatten(0, (-1, each))[index].flatten(0, 1)
                    if known is not None:
                        passed[id(t)] = t, layer
                        follow(given, t)
                return t

            rest = tuple(_arranged(a, (n,), pick) for n, a in enumerate(args[1:], 1))
            kwargs = {k: _arranged(v, (k,), pick) for k, v in kwargs.items()}
            for _path, t in tensors_within(_passed_on((*rest, *kwargs.values()))) if self.hidden_keys else ():
                shared, rows = layer_shown(t), int(counts[layer])
                if shared is not None:
                    batch = rows + len(classes[layer])
                    self._hide(shared, layer, rows, batch, ids.shape[1], shared.get_seq_length())
            return args[:1] + rest, kwargs

        def note(layer: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            beside = output[1:] if isinstance(output, tuple | list) else ()
            for _path, t in tensors_within([beside, _passed_on((*args, *kwargs.values()))]):
                passed.setdefault(id(t), (t, layer))

        with self.lm.runner.exclusive.alone(), ExitStack() as undo:
            for layer in range(self.lm.n_layers + 1):
                undo.callback(self.lm.runner.hook(layer, lambda h, layer=layer: arrive(layer, h)).remove)
            for layer, block in enumerate(self.lm.runner.anatomy.blocks):
                undo.callback(block.register_forward_pre_hook(partial(fit, layer), with_kwargs=True).remove)
                undo.callback(block.register_forward_hook(partial(note, layer), with_kwargs=True).remove)
            if any(isinstance(layer, SharedLayer) for layer in self.carried.layers):
                undo.enter_context(cascading(self.lm.model))
            undo.enter_context(torch.no_grad())
            fed = ids[_index(first, ids)]
            # last, to replace what blocks are given in the end
            given = undo.enter_context(self.carried.passed(fed))
            try:
                self.lm.model(input_ids=fed, **given)
            except EnoughRead:
                pass
        self.fed += ids.shape[1]
        self.cached = [(int(c), known) for c, known in zip(counts, classes, strict=True)]
        return out[0]

    def grow(self, going_on: np.ndarray, tokens: np.ndarray) -> None:
        """Go on with the rows `going_on` (ascending) only, whose next tokens are `tokens` (len(going_on),)."""
        grown, self.history = np.unique(np.stack([self.history[going_on], tokens]), axis=1, return_inverse=True)
        self.history = self.history.reshape(-1)
        self.parent, self.going_on = grown[0], going_on
        self.diverges_at, self.rows = self.diverges_at[going_on], self.rows[going_on]

    def _place(self, lower: int, layer: int, counts: np.ndarray, classes: list[np.ndarray]) -> np.ndarray:
        """Where each row of the batch at `layer` stood in that at a lower layer."""
        below, here = counts[lower], counts[layer]
        known = classes[lower]
        newly = np.searchsorted(known, self.history[below:here])
        return np.concatenate([np.arange(below), below + newly, below + np.searchsorted(known, classes[layer])])

    def _arrange(self, layer: int, count: int, classes: np.ndarray, queries: int) -> None:
        """Arrange the cache of the block above `layer` for the rows that are about to enter it."""
        if self.cached:
            before, known = self.cached[layer]
            index = np.concatenate([self.going_on[:count], before + np.searchsorted(known, self.parent[classes])])
            size = before + len(known)
            # what was copied for these rows before may stay
            stays = len(index) == size and bool((index == np.arange(size)).all())
        else:
            index, size, stays = np.concatenate([self.history[:count], classes]), None, False

        def pick(cached: Any) -> Any:
            if isinstance(cached, SharedLayer):
                cached.select(torch.from_numpy(index))
                self._hide(cached, layer, count, len(index), queries, cached.get_seq_length() + queries)
                return cached
            # a copy at first: the prefix stays as it is for others
            return cached if stays else picked_rows(cached, torch.from_numpy(index), size)

        self.carried.arrange(layer, self.layout.layers[layer], pick)

    def _hide(self, cached: SharedLayer, block: int, count: int, batch: int, queries: int, keys: int) -> None:
        """Say to a layer which of its keys the rows in the batch of a block may see there."""
        if self.hidden_keys is not None:
            cached.allowed = self.hidden_keys.allowed(block, self.rows[:count], batch, queries, keys)


def _passed_on(arguments: tuple[Any, ...]) -> list[Any]:
    """What blocks write into for later blocks, such as keys that these share."""
    return [v for v in arguments if isinstance(v, MutableMapping) and type(v) is not dict]


def _arranged(value: Any, path: tuple[str | int, ...], pick: Pick) -> Any:
    """`value` with every tensor in it as `pick` makes it; what blocks write into for later blocks stays itself."""
    if isinstance(value, Tensor):
        return pick(path, value)
    if type(value) is dict:
        return {k: _arranged(v, (*path, k), pick) for k, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_arranged(v, (*path, n), pick) for n, v in enumerate(value))
    if isinstance(value, MutableMapping):
        for k, v in list(value.items()):
            value[k] = _arranged(v, (*path, k), pick)
    return value


def _first_of(history: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """For each class the first row that belongs to it."""
    order = np.argsort(history, kind="stable")
    return order[np.searchsorted(history[order], classes)]


def _index(index: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(index).to(like.device)
