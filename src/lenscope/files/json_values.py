"""Values of results as JSON, and read again: each is what it must be, or a ValueError says what is wrong.

Knows: whole numbers, numbers, texts, layers and arrays of them, with NaN and infinities. Does not know: which results
there are, files.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def to_lists(values: np.ndarray) -> Any:
    """Nested lists with the shortest decimals that give the same float32 again.

    None is what is no finite number, and in an array of objects what is below 0: the rank of no token.
    """
    return _lists(values, False)


def to_exact_lists(values: np.ndarray) -> Any:
    """As `to_lists`, with infinities as texts, so that nothing is lost in a file."""
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


def whole_number(value: Any, what: str, low: int = 0, high: int | None = None) -> int:
    """A whole number from `low` to `high`, else ValueError."""
    if type(value) is not int or value < low or (high is not None and value > high):
        span = f"{low}–{high}" if high is not None else f"{low} or more"
        raise ValueError(f"{what} {str(value)[:40]}: must be a whole number, {span}")
    return value


def text_value(value: Any, what: str) -> str:
    """A string, else ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{what}: must be text, not {type(value).__name__}")
    return value


def text_values(values: Any, what: str) -> tuple[str, ...]:
    """A tuple of strings, else ValueError."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"{what}: must be a list of texts")
    return tuple(text_value(v, what) for v in values)


def vocabulary_value(value: Any) -> dict[int, str]:
    """The texts of tokens by id, else ValueError."""
    return {int(i): text_value(t, "vocabulary") for i, t in value.items()}


def whole_numbers(values: Any, what: str, low: int = 0, high: int | None = None) -> tuple[int, ...]:
    """A tuple of whole numbers from `low` to `high`, else ValueError."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"{what}: must be a list of whole numbers")
    return tuple(whole_number(v, what, low, high) for v in values)


def layer_numbers(values: Any, n_layers: int, low: int = 0) -> tuple[int, ...]:
    """Layers, ascending and each once, as all results have them, else ValueError."""
    layers = whole_numbers(values, "layers", low, n_layers)
    if not layers or list(layers) != sorted(set(layers)):
        raise ValueError("layers: must be ascending, each once, and at least one")
    return layers


def object_value(value: Any, what: str) -> dict[str, Any]:
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
    return _reshaped(given.astype(np.int64), what, shape)


def float_array(values: Any, what: str, shape: Sequence[int] | None = None, dtype: Any = np.float32) -> np.ndarray:
    """Numbers as an array of a shape; None stands for NaN. Else ValueError."""
    given = values if isinstance(values, np.ndarray) else np.array(values, dtype=object)
    if given.dtype.kind == "O":
        if not all(v is None or type(v) in (int, float) or v in ("Infinity", "-Infinity") for v in given.flat):
            raise ValueError(f"{what}: must be numbers, in lists of equal length")
        given = np.where(given == None, np.nan, given)  # noqa: E711, an array is compared
    elif given.dtype.kind not in "fiu":
        raise ValueError(f"{what}: must be numbers")
    return _reshaped(given.astype(dtype), what, shape)


def _reshaped(values: np.ndarray, what: str, shape: Sequence[int] | None) -> np.ndarray:
    return values if shape is None else shaped(values, what, shape)


def shaped(values: np.ndarray, what: str, shape: Sequence[int]) -> np.ndarray:
    """An array that has this shape, or is empty where the shape is, else ValueError."""
    if values.shape != tuple(shape) and not (values.size == 0 == int(np.prod(shape))):
        raise ValueError(f"{what}: has shape {values.shape}, not {tuple(shape)}")
    return values.reshape(tuple(shape))


def check_within(
    values: np.ndarray, what: str, low: float = -np.inf, high: float = np.inf, slack: float = 1e-4
) -> None:
    """ValueError unless all numbers lie between two bounds, up to rounding; NaN does."""
    if values.size and bool(((values < low - slack) | (values > high + slack)).any()):
        raise ValueError(f"{what}: has values outside {low:g} … {high:g}")


def check_most_probable(log_probs: np.ndarray, max_probability: np.ndarray) -> None:
    """ValueError unless log-probabilities (N, k) are those of the k most probable tokens, the first as probable."""
    check_within(log_probs, "log-probabilities", high=0.0)
    probs = np.exp(log_probs.astype(np.float64))
    if probs.size and ((np.diff(probs, axis=-1) > 1e-3).any() or (probs.sum(-1) > 1 + 1e-2).any()):
        raise ValueError("log-probabilities: do not fall, or their probabilities sum to more than 1")
    if probs.size and np.abs(probs[:, 0] - max_probability).max() > 1e-2:
        raise ValueError("max probability: is not that of the top token")


def whole_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of a column that other tools may have made numbers with gaps of."""
    if values.dtype.kind == "f":
        gone = np.isnan(values)
        if (values[~gone] % 1).any():
            raise ValueError("rank: must be whole numbers")
        return np.where(gone, -1, np.nan_to_num(values)).astype(np.int64)
    return values
