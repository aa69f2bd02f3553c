"""One run of a model at a time, of the model that was verified, untouched by the runs before.

Knows: the lock of each model, how a model that was changed after loading is told, which traces earlier runs leave.
Does not know: what is run, or why.
"""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from lenscope.errors import LenscopeError
from lenscope.models.adapter_layers import adapter_layers, state_of_adapters
from lenscope.models.interruption import held, may_stop, stoppable
from lenscope.models.residual_stream import Anatomy, embedding

_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_making = threading.Lock()


def lock_of(model: nn.Module) -> Any:
    """The reentrant lock of a model: one for all that is loaded around the same module."""
    with _making:
        if model not in _locks:
            _locks[model] = threading.RLock()
        return _locks[model]


def share_lock(model: nn.Module, other: nn.Module) -> None:
    """From now on a model that nothing runs yet has the lock of another one, whose weights it shares."""
    lock = lock_of(other)
    with _making:
        _locks[model] = lock


class Exclusive:
    """Lets one thread at a time run a model, as long as it is the model that was observed and verified.

    `renew(change)` is called where it is not any more, and observes it anew or raises LenscopeError.
    """

    def __init__(self, model: PreTrainedModel, renew: Callable[[str], None]) -> None:
        self.model, self.renew = model, renew
        self.lock = lock_of(model)
        self._asking = False
        # why the model can be run no more, in a line
        self.ended = ""

    def watch(self, anatomy: Anatomy) -> None:
        """From now on changes are those since the model had this anatomy."""
        self.anatomy = anatomy
        self.configs = [(c, copy.deepcopy(_settings(c))) for c in _all_configs(self.model)]
        self.adapters = adapter_layers(self.model)
        self.seen = self._fingerprint()
        self.modules = list(self.model.modules())
        self.dynamic = [m for m in self.model.modules() if "dynamic" in str(getattr(m, "rope_type", ""))]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within the block no other thread runs this model, which is as it was observed, or edits it.

        Where that may be interrupted (see interruption.py), the model's blocks ask before they run. Raises
        LenscopeError for a model that has `ended`.
        """
        with held(self.lock):
            if self.ended:
                raise LenscopeError(self.ended)
            change = self.changed()
            if change:
                self.renew(change)
            for module in self.dynamic:
                _forget_lengths(module)
            if self._asking or not may_stop():
                yield
                return
            self._asking = True
            try:
                with stoppable(self.anatomy.blocks):
                    yield
            finally:
                self._asking = False

    @property
    def training(self) -> bool:
        """Whether any part of the model is in training mode, where dropout may draw at random."""
        return any(module.training for module in self.modules)

    def hook(self, register: Callable[[], Any]) -> "Hook":
        """What `register` registers, while no other thread runs the model: torch goes through its hooks then."""
        with self.lock:
            return Hook(register(), self.lock)

    def changed(self) -> str:
        """What of the model's structure is not as it was when it was loaded, in words; "" where nothing is.

        Weights that were changed in place are not looked at: what is read of them is what the model is now.
        """
        blocks, anatomy = self.anatomy.blocks, self.anatomy
        try:
            now: tuple[nn.Module, ...] = tuple(self.model.get_submodule(anatomy.name).children())
            if len(now) != len(blocks):
                return f"its number of blocks changed from {len(blocks)} to {len(now)}"
            for n, (before, after) in enumerate(zip(blocks, now, strict=True)):
                if before is not after:
                    return f"block {n} was replaced"
            for name, module in anatomy.tail:
                if self.model.get_submodule(name) is not module:
                    return f"its module {name} was replaced"
        except (AttributeError, TypeError):
            return "modules of it were removed"
        fingerprint = self._fingerprint()
        for what, before in self.seen.items():
            if fingerprint[what] != before:
                return f"its {what} changed from {_short_value(before)} to {_short_value(fingerprint[what])}"
        for config, old in self.configs:
            new = _settings(config)
            if new != old:
                name = next(k for k in {**old, **new} if old.get(k) != new.get(k))
                return f"{name} in its configuration changed from {old.get(name)!r} to {new.get(name)!r}"
        return ""

    def _fingerprint(self) -> dict[str, Any]:
        weight = embedding(self.model)
        head = getattr(self.model, "get_output_embeddings", lambda: None)()
        parts = [self.model, *self.anatomy.blocks, *(module for _, module in self.anatomy.tail)]
        first = [next(block.parameters(), None) for block in self.anatomy.blocks]
        return {
            "embedding's shape": tuple(weight.shape),
            "device": str(weight.device),
            "dtype": [str(p.dtype) for p in (weight, *first) if p is not None],
            "head": None if head is None else (type(head).__name__, id(head), *_shape(getattr(head, "weight", None))),
            # what is loaded or deleted changes layers inside of blocks
            "adapters": (*(getattr(self.model, "peft_config", None) or ()), state_of_adapters(self.adapters)),
            "own forward": vars(self.model).get("forward"),
            "compilation": [getattr(m, "_compiled_call_impl", None) is not None for m in parts],
        }


def _shape(weight: Any) -> tuple[int, ...]:
    return tuple(getattr(weight, "shape", ()))


class Hook:
    """A hook that is taken away when no other thread is running the model."""

    def __init__(self, handle: Any, lock: Any) -> None:
        self.handle, self.lock = handle, lock

    def remove(self) -> None:
        """Take the hook away."""
        with self.lock:
            self.handle.remove()


def _all_configs(model: nn.Module) -> list[Any]:
    """The configurations that the modules of a model look at, each once."""
    configs = {
        id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None and hasattr(c, "to_dict")
    }
    return list(configs.values())


def _settings(config: Any) -> dict[str, Any]:
    """What of a configuration may move numbers: not its inner workings, which attention switches while it runs."""
    return {k: v for k, v in vars(config).items() if not k.startswith("_") and not hasattr(v, "to_dict")}


def _forget_lengths(module: Any) -> None:
    """Take back what "dynamic" rotary embeddings keep of the longest run so far: a run is as if it were the first."""
    for name in [n for n in vars(module) if n.endswith("original_inv_freq")] + [
        n for n in module._buffers if n.endswith("original_inv_freq")
    ]:
        prefix = name.removesuffix("original_inv_freq")
        current, original = getattr(module, f"{prefix}inv_freq"), getattr(module, name)
        if current.shape != original.shape or not torch.equal(current, original.to(current)):
            module.register_buffer(f"{prefix}inv_freq", original.to(current).clone(), persistent=False)
        if hasattr(module, f"{prefix}max_seq_len_cached"):
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
    if hasattr(module, "max_seq_len_cached"):
        module.max_seq_len_cached = module.original_max_seq_len


def _short_value(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:59] + "…"
