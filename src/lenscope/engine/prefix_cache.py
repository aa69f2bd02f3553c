"""Prefixes read once: the cached keys, values and states of what target prompts have in common.

Knows: how a model's own cache is filled, and which of its layers may be held once for all rows.
Does not know: which rows go on from a prefix (staircase.py), when (chunked_runs.py).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DummyLayer, DynamicCache, DynamicLayer, LinearAttentionAndFullAttentionLayer

from lenscope.engine.cache_layout import ATTENTION, BESIDE_STATE, cache_layout
from lenscope.engine.shared_attention import SharedLayer, SharedLayerBesideState, Unshareable
from lenscope.models.carried_states import CacheStates, CarriedStates, nothing_read
from lenscope.models.language_model import LM
from lenscope.models.residual_stream import forward_kwargs


class Prefixes:
    """Reads prefixes for the chunks of one sweep; what the next prompt shares with the last one is not read again."""

    def __init__(self, lm: LM) -> None:
        self.lm = lm
        self.ids: tuple[int, ...] = ()
        self.cache: Any = None

    def own(self, prefixes: Sequence[tuple[int, ...]]) -> CarriedStates:
        """What the model carries after reading prefixes (G, P): a row each."""
        carried = nothing_read(self.lm.runner)
        if prefixes[0]:
            self._read(prefixes, carried)
        return carried

    def shared(self, prompt: tuple[int, ...], length: int, rows: int, room: int) -> CarriedStates:
        """A cache for `rows` rows that go on from the first `length` tokens of `prompt`, with `room` tokens each.

        Attention layers hold the prefix once; layers of other kinds are the model's own.
        """
        carried = nothing_read(self.lm.runner)
        if not isinstance(carried, CacheStates):
            raise Unshareable("there are no keys and values to share")
        cache: Any = carried.cache
        plain = [type(layer) in ATTENTION for layer in cache.layers]
        # blocks that read the keys of others have nothing of their own
        if not all(known or type(layer) is DummyLayer for known, layer in zip(plain, cache.layers, strict=True)):
            # a recurrent state cannot be cut back to a shorter prefix: read exactly this one
            carried.cache = cache = self._fresh(cache)
            if length:
                self._read([prompt[:length]], carried)
        else:
            cache = self._attention(prompt, length, carried)
        sharing = DynamicCache(config=self.lm.model.config)
        for n, (layer, attention) in enumerate(zip(cache.layers, plain, strict=True)):
            if attention:
                sharing.layers[n] = self._shared(layer, length, rows, room)
            elif type(layer) in BESIDE_STATE:
                sharing.layers[n] = SharedLayerBesideState(layer, self._shared(layer, length, rows, room))
            else:
                sharing.layers[n] = layer
        return carried.with_cache(sharing, length)

    def _attention(self, prompt: tuple[int, ...], length: int, empty: CacheStates) -> Any:
        """The cache of at least `length` tokens of `prompt`, kept for the next call."""
        known = next((n for n, (a, b) in enumerate(zip(self.ids, prompt, strict=False)) if a != b), None)
        known = min(len(self.ids), len(prompt)) if known is None else known
        if self.lm.runner.regimes.of(len(self.ids)) != self.lm.runner.regimes.of(length):
            # where the model may behave differently at that length, its keys may differ too
            known, self.cache = 0, None
        if self.cache is None or known < length:
            fresh = self._fresh(DynamicCache(config=self.lm.model.config))
            if self.cache is not None and known:
                for new, old in zip(fresh.layers, self.cache.layers, strict=True):
                    if type(old) is not DummyLayer:
                        new.update(old.keys[:, :, :known].clone(), old.values[:, :, :known].clone())
            else:
                known = 0
            if known < length:
                self._read([prompt[known:length]], empty.with_cache(fresh, known))
            self.ids, self.cache = prompt[:length], fresh
        return self.cache

    def _fresh(self, cache: Any) -> Any:
        # sliding layers forget what later positions cannot see, but the mask sees to that
        cache.layers = [
            DynamicLayer()
            if type(layer) in ATTENTION
            else LinearAttentionAndFullAttentionLayer(layer.number_of_states)
            if type(layer) in BESIDE_STATE
            else layer
            for layer in cache.layers
        ]
        return cache

    def _read(self, ids: Sequence[tuple[int, ...]], carried: CarriedStates) -> None:
        read = torch.tensor(ids, device=self.lm.runner.input_device)
        with self.lm.runner.exclusive.alone(), torch.no_grad(), carried.passed(read) as given:
            self.lm.model(input_ids=read, **forward_kwargs(self.lm.model, logits_to_keep=1), **given)

    def _shared(self, layer: Any, length: int, rows: int, room: int) -> SharedLayer:
        late = cache_layout(self.lm).late
        if isinstance(layer.keys, Tensor) and length:
            return SharedLayer(layer.keys[:, :, :length], layer.values[:, :, :length], rows, room, late)
        return SharedLayer(None, None, rows, room, late)
