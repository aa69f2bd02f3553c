"""Results as values: equal where all that they hold is equal, shown in one short line.

Knows: arrays, tensors and JSON values, NaN among them. Does not know: which results there are, files.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np


class Compared:
    """A dataclass that equals another of its class with the same contents, NaN being equal to NaN; it has no hash."""

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))  # type: ignore[arg-type]


def same(a: Any, b: Any) -> bool:
    """Whether two values hold the same: arrays and tensors of one dtype and shape, lists as tuples, NaN as NaN."""
    if hasattr(a, "detach") and hasattr(b, "detach"):
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        floats = a.dtype.kind == "f"
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=floats)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) or (isinstance(a, float) and isinstance(b, float) and a != a and b != b)


class Brief:
    """A dataclass that shows in one short line: of arrays and tensors the shape, of long values the beginning."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{f.name}={brief(getattr(self, f.name))}" for f in fields(self))  # type: ignore[arg-type]
        shown = shown if len(shown) <= 160 else shown[:159] + "…"
        return f"{type(self).__name__}({shown})"


def brief(value: Any) -> str:
    """A value in a few words, on one line."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"{len(value)} by name"
    if isinstance(value, list | tuple) and (len(value) > 4 or any(hasattr(v, "shape") for v in value)):
        return f"{len(value)} of them"
    if callable(value):
        return str(getattr(value, "__name__", type(value).__name__))
    text = "".join(c if c.isprintable() else "�" for c in repr(value))
    return text if len(text) <= 40 else text[:39] + "…"
