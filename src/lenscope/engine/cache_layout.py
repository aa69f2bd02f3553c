"""What going on from a model's cache must know of it, seen in short runs: whose keys are where, what blocks are given.

Knows: which arguments of the blocks have a batch axis, which layers of the cache each block writes, whether keys and
values are made from what is cached only after it was read, how many bytes a token takes, and a row.
Does not know: how a prefix is kept (prefix_cache.py), which rows go on from it (staircase.py).
"""

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)

from lenscope.engine.shared_attention import SharedLayer, SharedLayerBesideState, Unshareable, cascading
from lenscope.models.carried_states import CarriedStates, nothing_read
from lenscope.models.deviations import FAILURES
from lenscope.models.language_model import LM
from lenscope.models.residual_stream import forward_kwargs

# plain attention layers: a prefix of theirs can be cut, and shared
ATTENTION = (DynamicLayer, DynamicSlidingWindowLayer)
# those that keep a recurrent or convolution state beside their keys, which cannot be cut
BESIDE_STATE = (LinearAttentionAndFullAttentionLayer, LinearAttentionAndSlidingWindowAttentionLayer)
# Where in a block's arguments a tensor stands (names, and indices of tuples), and how many rows it has per row
Batched = dict[tuple[str | int, ...], int]


@dataclass(frozen=True)
class CacheLayout:
    """What of a model's cache and of its blocks' arguments belongs to which row and which block.

    `batched` are the arguments that have a batch axis; `layers` has for each block the layers of the cache that it
    writes; `late` says that keys and values are made from what is cached when it is read (multi-head latent attention);
    `maskable` that there are keys, all in layers that can be shared, so that attention can be told what not to see.
    `bytes_per_row` are those of states that do not grow with the text.
    """

    batched: Batched
    layers: tuple[tuple[int, ...], ...]
    late: bool
    maskable: bool
    bytes_per_token: int
    bytes_per_row: int


def cache_layout(lm: LM) -> CacheLayout:
    """How a model's cache is laid out, seen once in a few short runs; raises what a model without a cache raises."""

    def seen() -> CacheLayout:
        shapes: list[dict[tuple[str | int, ...], int]] = []
        writers: list[tuple[tuple[int, ...], ...]] = []
        for rows in (2, 3):
            one, layers = _watched(lm, lm.runner.anatomy.ids[:rows])
            shapes.append(one)
            writers.append(layers)
        two, three = shapes
        batched = {p: n // 2 for p, n in two.items() if n % 2 == 0 and n > 0 and three.get(p) == n // 2 * 3}
        ids = lm.runner.anatomy.ids
        half = ids.shape[1] // 2
        short, long = (size(_carried_after(lm, part), writers[0]) // len(ids) for part in (ids[:, :half], ids))
        per_token = 1 + max(0, long - short) // (ids.shape[1] - half)
        per_row = max(0, long - per_token * ids.shape[1])
        kinds = [type(n) for n in _carried_after(lm, ids).layers if isinstance(getattr(n, "keys", None), Tensor)]
        maskable = bool(kinds) and all(kind in (*ATTENTION, *BESIDE_STATE) for kind in kinds)
        return CacheLayout(batched, writers[0], _makes_keys_late(lm), maskable, per_token, per_row)

    return lm.runner.measured.once(("cache layout",), seen)


def tensors_within(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Tensor]]:
    """Every tensor in arguments or outputs, in whatever containers they stand, and where."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict | MutableMapping):
        for k, v in value.items():
            yield from tensors_within(v, (*path, k))
    elif isinstance(value, tuple | list):
        for n, v in enumerate(value):
            yield from tensors_within(v, (*path, n))


def size(carried: CarriedStates, layers: Sequence[Sequence[int]]) -> int:
    """The bytes of all that is carried; `layers` has for each block those of the cache that it writes."""
    total = 0

    def count(one: Any) -> Any:
        nonlocal total
        parts = one if isinstance(one, Tensor | dict | tuple | list) else vars(one)
        total += sum(t.numel() * t.element_size() for _, t in tensors_within(parts))
        return one

    for block, own in enumerate(layers):
        carried.arrange(block, own, count)
    return total


def _carried_after(lm: LM, ids: Tensor) -> CarriedStates:
    """What the model carries after reading ids (B, T)."""
    carried = nothing_read(lm.runner)
    with lm.runner.exclusive.alone(), torch.no_grad(), carried.passed(ids) as given:
        lm.model(input_ids=ids, **forward_kwargs(lm.model, logits_to_keep=1), **given)
    return carried


def _watched(lm: LM, ids: Tensor) -> tuple[dict[tuple[str | int, ...], int], tuple[tuple[int, ...], ...]]:
    """The first sizes of the blocks' arguments in a run of two tokens from a cache, and which layers each block wrote.

    The stream itself need not be (B, T, D), and is left out.
    """
    shapes: dict[tuple[str | int, ...], int] = {}
    wrote: list[tuple[int, ...]] = []
    before: list[list[Any]] = []
    carried = _carried_after(lm, ids[:, :4])

    def contents() -> list[list[Any]]:
        # the tensors themselves are held, so that none of them is another's successor in memory
        return [[(t, t._version) for _, t in tensors_within(vars(layer))] for layer in carried.layers]

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for path, t in tensors_within({**dict(enumerate(args)), **kwargs}):
            if path not in ((0,), ("hidden_states",)) and path[0] not in carried.arguments and t.ndim:
                shapes[path] = t.shape[0]
        before[:] = contents()

    def end(*_: Any) -> None:
        # layers are made as they are written where the configuration does not say how many there are
        changed = [n for n, now in enumerate(contents()) if n >= len(before) or not _unchanged(before[n], now)]
        wrote.append(tuple(changed))

    with lm.runner.exclusive.alone(), ExitStack() as undo, torch.no_grad():
        for block in lm.runner.anatomy.blocks:
            undo.callback(block.register_forward_pre_hook(begin, with_kwargs=True).remove)
            undo.callback(block.register_forward_hook(end).remove)
        given = undo.enter_context(carried.passed(ids[:, 4:6]))
        lm.model(input_ids=ids[:, 4:6], **given)
    return shapes, tuple(wrote)


def _unchanged(before: list[Any], now: list[Any]) -> bool:
    return len(before) == len(now) and all(a is b and m == n for (a, m), (b, n) in zip(before, now, strict=True))


def _makes_keys_late(lm: LM) -> bool:
    """Whether attention sees other keys or values than those that its cache gave back."""
    cache: Any = DynamicCache(config=lm.model.config)
    for n, layer in enumerate(cache.layers):
        if type(layer) in ATTENTION:
            cache.layers[n] = SharedLayer(None, None, 2, 2)
        elif type(layer) in BESIDE_STATE:
            cache.layers[n] = SharedLayerBesideState(layer, SharedLayer(None, None, 2, 2))
    ids = lm.runner.anatomy.ids[:2, :2]
    try:
        with lm.runner.exclusive.alone(), cascading(lm.model), torch.no_grad():
            lm.model(input_ids=ids, **forward_kwargs(lm.model, use_cache=True, past_key_values=cache))
    except Unshareable:
        return True
    except FAILURES:
        return False
    return False
