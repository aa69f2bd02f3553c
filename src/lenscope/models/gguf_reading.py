"""GGUF files read in less time: transformers reads the same header three times, a number at a time.

Knows: which steps of the gguf package transformers repeats. Does not know: what is made of a file (loading.py).
"""

import functools
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gguf
import numpy as np
from transformers import modeling_gguf_pytorch_utils as transformers_gguf

# what stands in for steps of the gguf package does so for the whole process
_ONE_AT_A_TIME = threading.RLock()


class _ArrayReader(gguf.GGUFReader):
    """A reader over a plain array: numpy's memory maps make each of a million slices ten times as slow."""

    @property
    def data(self) -> Any:
        return self._bytes

    @data.setter
    def data(self, mapped: Any) -> None:
        self._bytes = np.asarray(mapped)


def _unshown(items: Any, **_: Any) -> Any:
    """What a bar of progress would go through."""
    return items


@contextmanager
def headers_read_once() -> Iterator[None]:
    """A block in which each GGUF file's header is read once, each architecture's names of tensors are made once.

    On SmolLM2's file of 98 MB, whose header holds 49,152 tokens, that saves 14 of 18 seconds. What is read is the
    same. No bar of progress is drawn, which nothing else can switch off.
    """
    instead = {
        (gguf, "GGUFReader"): functools.cache(_ArrayReader),
        (gguf, "get_tensor_name_map"): functools.cache(gguf.get_tensor_name_map),
        (transformers_gguf, "tqdm"): _unshown,
    }
    with _ONE_AT_A_TIME, ExitStack() as replaced:
        for (module, name), value in instead.items():
            # a later version may have no use for it
            if hasattr(module, name):
                replaced.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, value)
        yield
