"""Results as values: equal where all that they hold is equal, and checked where they were read from a file.

Knows: arrays, tensors and JSON values, NaN among them. Does not know: which results there are.
"""

from collections.abc import Mapping, Sequence
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


def whole(value: Any, what: str, low: int = 0, high: int | None = None) -> int:
    """A whole number from `low` to `high`, else ValueError."""
    if type(value) is not int or value < low or (high is not None and value > high):
        span = f"{low}–{high}" if high is not None else f"{low} or more"
        raise ValueError(f"{what} {str(value)[:40]}: must be a whole number, {span}")
    return value


def text(value: Any, what: str) -> str:
    """A string, else ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{what}: must be text, not {type(value).__name__}")
    return value


def texts(values: Any, what: str) -> tuple[str, ...]:
    """A tuple of strings, else ValueError."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"{what}: must be a list of texts")
    return tuple(text(v, what) for v in values)


def numbers(values: Any, what: str, low: int = 0, high: int | None = None) -> tuple[int, ...]:
    """A tuple of whole numbers from `low` to `high`, else ValueError."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"{what}: must be a list of whole numbers")
    return tuple(whole(v, what, low, high) for v in values)


def layers(values: Any, n_layers: int, low: int = 0) -> tuple[int, ...]:
    """Layers, ascending and each once, as all results have them, else ValueError."""
    found = numbers(values, "layers", low, n_layers)
    if not found or list(found) != sorted(set(found)):
        raise ValueError("layers: must be ascending, each once, and at least one")
    return found


def mapping(value: Any, what: str) -> dict[str, Any]:
    """A dictionary, else ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"{what}: must be an object")
    return value


def whole_array(values: Any, what: str, shape: Sequence[int] | None = None) -> np.ndarray:
    """Whole numbers as an int64 array of a shape; None stands for -1. Else ValueError."""
    given = values if isinstance(values, np.ndarray) else np.array(values, dtype=object)
    if given.dtype.kind == "O":
        if not all(v is None or type(v) is int for v in given.flat):
            raise ValueError(f"{what}: must be whole numbers, in lists of equal length")
        given = np.where(given == None, -1, given)  # noqa: E711, an array is compared
    elif given.dtype.kind not in "iu":
        raise ValueError(f"{what}: must be whole numbers")
    made = given.astype(np.int64)
    return made if shape is None else shaped(made, what, shape)


def float_array(values: Any, what: str, shape: Sequence[int] | None = None, dtype: Any = np.float32) -> np.ndarray:
    """Numbers as an array of a shape; None stands for NaN. Else ValueError."""
    given = values if isinstance(values, np.ndarray) else np.array(values, dtype=object)
    if given.dtype.kind == "O":
        if not all(v is None or type(v) in (int, float) or v in ("Infinity", "-Infinity") for v in given.flat):
            raise ValueError(f"{what}: must be numbers, in lists of equal length")
        given = np.where(given == None, np.nan, given)  # noqa: E711, an array is compared
    elif given.dtype.kind not in "fiu":
        raise ValueError(f"{what}: must be numbers")
    made = given.astype(dtype)
    return made if shape is None else shaped(made, what, shape)


def shaped(values: np.ndarray, what: str, shape: Sequence[int]) -> np.ndarray:
    """An array that has this shape, or is empty where the shape is, else ValueError."""
    if values.shape != tuple(shape) and not (values.size == 0 == int(np.prod(shape))):
        raise ValueError(f"{what}: has shape {values.shape}, not {tuple(shape)}")
    return values.reshape(tuple(shape))


def within(values: np.ndarray, what: str, low: float = -np.inf, high: float = np.inf, slack: float = 1e-4) -> None:
    """ValueError unless all numbers lie between two bounds, up to rounding; NaN does."""
    if values.size and bool(((values < low - slack) | (values > high + slack)).any()):
        raise ValueError(f"{what}: has values outside {low:g} … {high:g}")


def best(log_probs: np.ndarray, max_probability: np.ndarray) -> None:
    """ValueError unless log-probabilities (N, k) are those of the k most probable tokens, the first as probable."""
    within(log_probs, "log-probabilities", high=0.0)
    found = np.exp(log_probs.astype(np.float64))
    if found.size and ((np.diff(found, axis=-1) > 1e-3).any() or (found.sum(-1) > 1 + 1e-2).any()):
        raise ValueError("log-probabilities: do not fall, or their probabilities sum to more than 1")
    if found.size and np.abs(found[:, 0] - max_probability).max() > 1e-2:
        raise ValueError("max probability: is not that of the top token")


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of a column that other tools may have made numbers with gaps of."""
    if values.dtype.kind == "f":
        gone = np.isnan(values)
        if (values[~gone] % 1).any():
            raise ValueError("rank: must be whole numbers")
        return np.where(gone, -1, np.nan_to_num(values)).astype(np.int64)
    return values


def listed(values: np.ndarray) -> Any:
    """Nested lists with the shortest decimals that give the same float32 again.

    None is what is no finite number, and in an array of objects what is below 0: the rank of no token.
    """
    return _lists(values, False)


def exactly(values: np.ndarray) -> Any:
    """As `listed`, with infinities as texts, so that nothing is lost in a file."""
    return _lists(values, True)


def _lists(values: np.ndarray, exact: bool) -> Any:
    if values.dtype.kind == "O":
        return [[None if v < 0 else v for v in row] for row in values.tolist()]
    if values.dtype.kind in "iu":
        return values.tolist()
    short = values.astype(str).astype(float).astype(object)
    if exact:
        short[values == np.inf], short[values == -np.inf] = "Infinity", "-Infinity"
        short[np.isnan(values)] = None
    else:
        short[~np.isfinite(values)] = None
    return short.tolist()


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
