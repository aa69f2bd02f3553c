"""Attention over a shared prefix: keys and values that all rows have in common are held, and multiplied, once.

Knows: how attention splits into the part over a prefix that every row shares and the part over each row's own tokens,
joined in one softmax (cascade attention); how a model is told to use it.
Does not know: which rows share what (staircase.py), what a sweep is.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from lenscope.errors import LenscopeError

NAME = "lenscope_cascade"
# what attention functions may be told besides what every one of them must heed
HEEDED = {"scaling", "dropout", "softcap", "s_aux", "is_causal", "sliding_window", "position_ids", "use_cache"}


class Unshareable(LenscopeError):
    """This model's attention does something that sharing a prefix does not cover; it runs another way."""


class SharedLayer(DynamicLayer):
    """One block's keys and values: a prefix (1, H, P, d) that all rows share, and each row's own (U, H, R, d).

    `room` is how many own tokens a row may have in all; 1 pass without generation keeps none. `allowed` (U, S, P + R),
    if set, says which keys each row may see in the running pass, besides the model's own mask.
    """

    def __init__(self, keys: Tensor | None, values: Tensor | None, rows: int, room: int) -> None:
        super().__init__()
        self.is_initialized = True
        self.keys, self.values = keys, values
        self.rows, self.room = rows, room
        self.own: tuple[Tensor, Tensor] | None = None
        self.live, self.length = 0, 0
        self.shown: Tensor | None = None
        self.allowed: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append the running tokens to the rows' own and return those alone: the prefix waits in `keys`."""
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
        self.shown = own[0][: self.live, :, : self.length]
        _running.layers.append(self)
        return self.shown, own[1][: self.live, :, : self.length]

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


class _Running(threading.local):
    """The layer that the attention function running next in this thread belongs to, if any."""

    def __init__(self) -> None:
        self.layers: list[SharedLayer] = []


_running = _Running()


@contextmanager
def cascading(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, the model's attention is this module's; its configuration is as before afterwards."""
    configs = {id(c): c for m in model.modules() for c in _attention_configs(m)}
    before = [(c, c._attn_implementation) for c in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation_internal = NAME
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name
        _running.layers.clear()


def _attention_configs(module: nn.Module) -> Iterator[Any]:
    config = getattr(module, "config", None)
    if hasattr(config, "_attn_implementation_internal"):
        yield config


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
        key: the rows' own keys (U, kv, R, d), those that the layer's cache returned.
        value: the rows' own values (U, kv, R, d).
        attention_mask: the model's mask of all keys, prefix included; None where attention is causal.
        scaling: factor of the scores; None: d to the power of -1/2.
        softcap: scores are squashed to between minus and plus this.
        s_aux: (H,) logits of a key without a value (GPT-OSS).
        others: what other attention functions are given; tensors among them that are not `HEEDED` are refused.
    """
    layer = _running.layers.pop() if _running.layers else None
    strange = {name for name, value in others.items() if name not in HEEDED and isinstance(value, Tensor)}
    if layer is None or layer.shown is not key or layer.own is None or strange:
        raise Unshareable("the keys that attention sees are not those that were cached")
    u, heads, s, d = query.shape
    kv, p = key.shape[1], layer.before
    g, r = heads // kv, layer.length
    q = query.reshape(u, kv, g * s, d) * (d**-0.5 if scaling is None else scaling)
    # (U, kv, g·S, P + R): one softmax over both parts needs no merging
    scores = q.new_empty(u, kv, g * s, p + r)
    if layer.keys is not None:
        shared = torch.matmul(q.transpose(0, 1).reshape(kv, u * g * s, d), layer.keys[0].transpose(1, 2))
        scores[..., :p] = shared.view(kv, u, g * s, p).transpose(0, 1)
    scores[..., p:] = torch.matmul(q, key.transpose(2, 3))
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    grouped = scores.view(u, kv, g, s, p + r)
    _bar(grouped, attention_mask, layer.allowed)
    weights = _softmax(grouped, s_aux).to(value.dtype).view(u, kv, g * s, p + r)
    out = torch.matmul(weights[..., p:], value)
    if layer.values is not None:
        flat = weights[..., :p].transpose(0, 1).reshape(kv, u * g * s, p)
        out += torch.matmul(flat, layer.values[0]).view(kv, u, g * s, -1).transpose(0, 1)
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
