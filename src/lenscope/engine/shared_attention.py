"""Attention over a shared prefix: keys and values that all rows have in common are held, and multiplied, once.

Knows: how attention splits into the part over a prefix that every row shares and the part over each row's own tokens,
joined in one softmax (cascade attention); how a model is told to use it.
Does not know: which rows share what (staircase.py), what a sweep is.
"""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from lenscope.errors import LenscopeError
from lenscope.models.attention_implementations import attention_by

NAME = "lenscope_cascade"
# what attention functions may be told besides what every one of them must heed
HEEDED = {"scaling", "dropout", "softcap", "s_aux", "is_causal", "sliding_window", "position_ids", "use_cache"}


class Unshareable(LenscopeError):
    """This model's attention does something that sharing a prefix does not cover; it runs another way."""


class SharedLayer(DynamicLayer):
    """One block's keys and values: a prefix (1, H, P, d) that all rows share, and each row's own (U, H, R, d).

    `room` is how many own tokens a row may have in all; 1 pass without generation keeps none. `allowed` (U, S, P + R),
    if set, says which keys each row may see in the running pass, besides the model's own mask. `late`: attention sees
    what is made of cached keys and values, token by token; the prefix then goes through the same as further rows.
    """

    def __init__(self, keys: Tensor | None, values: Tensor | None, rows: int, room: int, late: bool = False) -> None:
        super().__init__()
        self.is_initialized = True
        self.keys, self.values = keys, values
        self.rows, self.room, self.late = rows, room, late
        self.own: tuple[Tensor, Tensor] | None = None
        self.live, self.length = 0, 0
        # rows of keys and values that the cache returned last, more than `live` where the prefix follows them
        self.returned = 0
        self.allowed: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append the running tokens to the rows' own and return those: the prefix waits in `keys`, or follows them."""
        new = key_states.shape[-2]
        own = self.own
        if own is None and new == self.room:
            own = key_states.contiguous(), value_states.contiguous()
        else:
            if own is None:
                k, v = ((t.shape[1], self.room, t.shape[3]) for t in (key_states, value_states))
                own = key_states.new_empty(self.rows, *k), value_states.new_empty(self.rows, *v)
            for buffer, t in zip(own, (key_states, value_states), strict=True):
                buffer[: len(t), :, self.length : self.length + new] = t
        self.own = own
        self.live, self.length = len(key_states), self.length + new
        keys, values = (t[: self.live, :, : self.length] for t in own)
        if self.late and self.keys is not None and self.values is not None:
            keys, values = (
                torch.cat([t, _as_rows(prefix, self.length)])
                for t, prefix in ((keys, self.keys), (values, self.values))
            )
        self.returned = len(keys)
        _running.show(self, keys, values)
        return keys, values

    def parts(self, key: Tensor, value: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
        """Keys and values as attention sees them: the rows' own, and those of the prefix, (H, P, d) each."""
        if not self.late:
            if not _running.shows(self, key, value):
                raise Unshareable("the keys that attention sees are not those that were cached")
            return (key, value), None if self.keys is None or self.values is None else (self.keys[0], self.values[0])
        if any(t.shape[0] != self.returned or t.shape[2] != self.length for t in (key, value)):
            raise Unshareable("the keys that attention sees are not made of those that were cached, token by token")
        if len(key) == self.live:
            return (key, value), None
        prefix = tuple(t[self.live :].transpose(0, 1).flatten(1, 2)[:, : self.before] for t in (key, value))
        return (key[: self.live], value[: self.live]), (prefix[0], prefix[1])

    def select(self, index: Tensor) -> None:
        """Make row i what row index[i] was; `index` begins with rows that stay where they are as far as it can."""
        if self.own is None:
            return
        moved = (index != torch.arange(len(index))).nonzero()
        if len(moved):
            first = int(moved[0])
            rest = index[first:].to(self.own[0].device)
            for buffer in self.own:
                buffer[first : len(index), :, : self.length] = buffer[rest, :, : self.length]
        self.live = len(index)

    def get_seq_length(self) -> int:
        """Tokens seen: the prefix and the rows' own."""
        return self.before + self.length

    @property
    def before(self) -> int:
        """P: the tokens of the shared prefix."""
        return 0 if self.keys is None else self.keys.shape[-2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All keys are there, whatever the window: the mask decides."""
        return self.get_seq_length() + query_length, 0


class SharedLayerBesideState(LinearAttentionLayer, SharedLayer):
    """A `SharedLayer` of a block that keeps a recurrent or convolution state too: a row's own, after the prefix."""

    device: Any
    dtype: Any
    is_croppable: Any = False

    def __init__(self, read: LinearAttentionLayer, shared: SharedLayer) -> None:
        LinearAttentionLayer.__init__(self, read.number_of_states)
        SharedLayer.__init__(self, shared.keys, shared.values, shared.rows, shared.room, shared.late)
        for name in vars(LinearAttentionLayer(read.number_of_states)):
            setattr(self, name, copy.copy(getattr(read, name)))

    def select(self, index: Tensor) -> None:
        """As that of `SharedLayer`; states are copied in any case: the prefix stays as it is for others."""
        super().select(index)
        for states in (self.conv_states, self.recurrent_states):
            for n, state in states.items():
                states[n] = None if state is None else state[index.to(state.device)]


def _as_rows(prefix: Tensor, length: int) -> Tensor:
    """The prefix (1, H, P, d) as rows (E, H, length, d), the last filled up with zeros."""
    filled = nn.functional.pad(prefix[0], (0, 0, 0, -prefix.shape[2] % length))
    return filled.unflatten(1, (-1, length)).transpose(0, 1)


class _Running(threading.local):
    """In this thread: which layer was updated last, and whose keys and values the tensors of the running pass are."""

    def __init__(self) -> None:
        self.last: SharedLayer | None = None
        # by the tensor's id: the tensor itself, whose layer's it is, and whether it is keys
        self.shown: dict[int, tuple[Tensor, SharedLayer, bool]] = {}

    def show(self, layer: SharedLayer, keys: Tensor, values: Tensor) -> None:
        self.last = layer
        if not layer.late:
            self.shown[id(keys)] = keys, layer, True
            self.shown[id(values)] = values, layer, False

    def shows(self, layer: SharedLayer, key: Tensor, value: Tensor) -> bool:
        """Whether these are keys and values of this layer."""
        return all(
            id(t) in self.shown and self.shown[id(t)][1] is layer and self.shown[id(t)][2] == is_key
            for t, is_key in ((key, True), (value, False))
        )

    def layer_of(self, key: Tensor) -> SharedLayer | None:
        """The layer whose keys these are, or that was updated last, if attention sees what is made of it."""
        if self.last is not None and self.last.late:
            return self.last
        return self.shown[id(key)][1] if id(key) in self.shown else None

    def forget(self) -> None:
        self.last, self.shown = None, {}


_running = _Running()


@contextmanager
def cascading(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, the model's attention is this module's; its configuration is as before afterwards."""
    try:
        with attention_by(model, lambda _: NAME):
            yield
    finally:
        _running.forget()


def follow(given: Tensor, arranged: Tensor) -> None:
    """Keys or values that one block has cached and another reads are `arranged` for the batch of the latter."""
    if id(given) in _running.shown:
        _, layer, is_key = _running.shown[id(given)]
        _running.shown[id(arranged)] = arranged, layer, is_key


def layer_shown(keys: Tensor) -> SharedLayer | None:
    """The layer whose keys or values these are, in the running pass."""
    return _running.shown[id(keys)][1] if id(keys) in _running.shown else None


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of queries over the shared prefix and the rows' own keys; (U, S, H, d).

    Args:
        module: the model's attention module.
        query: (U, H, S, d).
        key: the rows' own keys (U, kv, R, d) that the layer's cache returned, or what was made of all that it returned.
        value: the rows' own values (U, kv, R, d), likewise.
        attention_mask: the model's mask of all keys, prefix included; None where attention is causal.
        scaling: factor of the scores; None: d to the power of -1/2.
        softcap: scores are squashed to between minus and plus this.
        s_aux: (H,) logits of a key without a value (GPT-OSS).
        others: what other attention functions are given; tensors among them that are not `HEEDED` are refused.
    """
    layer = _running.layer_of(key)
    strange = {name for name, value in others.items() if name not in HEEDED and isinstance(value, Tensor)}
    if layer is None or strange:
        raise Unshareable("the keys that attention sees are not those that were cached")
    (key, value), prefix = layer.parts(key, value)
    u, heads, s, d = query.shape
    kv, p = key.shape[1], layer.before
    g, r = heads // kv, layer.length
    q = query.reshape(u, kv, g * s, d) * (d**-0.5 if scaling is None else scaling)
    # (U, kv, g·S, P + R): one softmax over both parts needs no merging
    scores = q.new_empty(u, kv, g * s, p + r)
    if prefix is not None:
        shared = torch.matmul(q.transpose(0, 1).reshape(kv, u * g * s, d), prefix[0].transpose(1, 2))
        scores[..., :p] = shared.view(kv, u, g * s, p).transpose(0, 1)
    scores[..., p:] = torch.matmul(q, key.transpose(2, 3))
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    grouped = scores.view(u, kv, g, s, p + r)
    _bar(grouped, attention_mask, layer.allowed)
    weights = _softmax(grouped, s_aux).to(value.dtype).view(u, kv, g * s, p + r)
    out = torch.matmul(weights[..., p:], value)
    if prefix is not None:
        flat = weights[..., :p].transpose(0, 1).reshape(kv, u * g * s, p)
        out += torch.matmul(flat, prefix[1]).view(kv, u, g * s, -1).transpose(0, 1)
    return out.view(u, heads, s, -1).transpose(1, 2).contiguous(), None


def _bar(scores: Tensor, mask: Tensor | None, allowed: Tensor | None) -> None:
    """Take from `scores` (U, kv, g, S, K) what the model's mask, the same for every row, and the rows' own forbid."""
    _, kv, g, s, k = scores.shape
    if mask is not None:
        mask = mask[:1, :, :, -k:]
        mask = mask.reshape(1, kv, g, s, k) if mask.shape[1] == kv * g else mask.unsqueeze(2)
        if mask.dtype != torch.bool:
            scores.add_(mask)
        elif s > 1 or not mask.all():
            scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    elif s > 1:
        seen = torch.ones(s, k, dtype=torch.bool, device=scores.device).tril(k - s)
        scores.masked_fill_(~seen, torch.finfo(scores.dtype).min)
    if allowed is not None:
        scores.masked_fill_(~allowed[:, None, None].to(scores.device), torch.finfo(scores.dtype).min)


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over keys in float32 or wider; `sinks` (H,) are logits of a key without a value (GPT-OSS)."""
    wide = scores if scores.dtype in (torch.float32, torch.float64) else scores.float()
    if sinks is None:
        return wide.softmax(-1)
    u, kv, g, s, _ = wide.shape
    extra = sinks.to(wide).reshape(1, kv, g, 1, 1).expand(u, -1, -1, s, 1)
    return torch.cat([wide, extra], -1).softmax(-1)[..., :-1]


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    # always a mask: "causal, so none is needed" counts keys from the first own token, not from the prefix
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, _mask)
