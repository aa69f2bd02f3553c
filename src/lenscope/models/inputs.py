"""What a person gives as numbers, token ids or texts, turned into Python's own values: of any array or table library.

Knows: integers of other libraries, arrays, columns, what a tokenizer returns, text that is no text.
Does not know: tokenizers, layers, positions.
"""

import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex, TypeGuard

from lenscope.errors import LenscopeError

# how much of a value is shown where it is refused
SHOWN = 60


def is_integer(value: Any) -> TypeGuard[SupportsIndex]:
    """Whether a value is one integer of Python, numpy or torch; a bool is none, and so is 5.0."""
    if type(value) is int:
        return True
    if isinstance(value, bool) or getattr(value, "ndim", 0) != 0 or str(getattr(value, "dtype", "")) == "torch.bool":
        return False
    try:
        operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def integer(value: Any, what: str) -> int:
    """One integer of Python, numpy or torch as Python's; LenscopeError, which begins with `what`, for all else."""
    if not is_integer(value):
        raise LenscopeError(f"{what} {shown(value)}: give an integer")
    return operator.index(value)


def count(value: Any, what: str, least: int = 1, most: int | None = None) -> int:
    """An integer of at least `least` and at most `most`; LenscopeError, which begins with `what`, for all else."""
    number = integer(value, what)
    if number < least or (most is not None and number > most):
        valid = f"at least {least}" if most is None else f"{least}–{most}"
        raise LenscopeError(f"{what} {number}: give {valid}")
    return number


def sliced(numbers: slice, length: int, what: str) -> tuple[int, ...]:
    """Which of 0…length-1 a slice takes; LenscopeError, which begins with `what`, for bounds that are no integers."""
    try:
        return tuple(range(length))[numbers]
    except (TypeError, ValueError) as error:
        raise LenscopeError(f"{what} {slice_in_words(numbers)}: {error}") from error


def slice_in_words(numbers: slice) -> str:
    """A slice as a person writes it: 20:10, :0, 0:31:5."""
    bounds = [numbers.start, numbers.stop, *([] if numbers.step is None else [numbers.step])]
    return ":".join("" if n is None else str(n) for n in bounds)


def plain(value: Any) -> Any:
    """A text, array, column or tokenizer's output as str or list; anything else unchanged.

    Bytes are UTF-8 text. Of what a tokenizer returns (`input_ids`, `attention_mask`) the ids whose mask is not 0 are
    taken. Raises LenscopeError for bytes in another encoding and a mask that does not fit.
    """
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError as error:
            raise LenscopeError(
                f"{shown(value)}: bytes that are not UTF-8; give text, or a list of token ids"
            ) from error
    if isinstance(value, type):
        return value
    if isinstance(value, Mapping):
        return _ids(value["input_ids"], value.get("attention_mask")) if "input_ids" in value else value
    if hasattr(value, "attention_mask") and hasattr(value, "ids"):
        return _ids(value.ids, value.attention_mask)
    for name in ("as_py", "tolist", "to_pylist"):
        if callable(method := getattr(value, name, None)):
            try:
                return method()
            except (RuntimeError, NotImplementedError, TypeError) as error:
                raise LenscopeError(f"{shown(value)}: has no values that can be read") from error
    return value


def elements(value: Any, what: str) -> list[Any]:
    """The elements of a list, array, column or iterator in their order; LenscopeError for what is none, or has none.

    `what` says in the error what should have been given.
    """
    value = plain(value)
    if isinstance(value, list | tuple | range):
        return list(value)
    reason = ""
    if isinstance(value, Mapping):
        turn = "role" in value and "content" in value
        reason = "a chat turn; LM.chat takes a list of them" if turn else "a dict without input_ids"
    elif isinstance(value, set | frozenset):
        reason = "a set, which has no order"
    elif isinstance(value, os.PathLike):
        reason = "a path; read its text first"
    elif hasattr(value, "read") and hasattr(value, "close"):
        reason = "an open file; read its text first"
    elif hasattr(value, "columns"):
        reason = "a table; take one of its columns"
    elif isinstance(value, str | type) or not isinstance(value, Iterable):
        reason = f"of type {type(value).__name__}"
    if reason:
        raise LenscopeError(f"{shown(value)}: is {reason}; give {what}")
    return list(value)


def token_ids(value: Any) -> tuple[int, ...]:
    """Token ids as Python's integers; LenscopeError where one is none."""
    ids = elements(value, "a text or a list of token ids")
    bad = next((i for i in ids if type(i) is not int and not is_integer(i)), None)
    if bad is not None or None in ids:
        raise LenscopeError(f"{shown(bad)}: is no token id; a prompt is a text or a list of integers")
    return tuple(map(operator.index, ids))


def sound(text: str) -> str:
    """A text with halves of surrogate pairs that belong together joined; LenscopeError for a half alone."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            bad = next(c for c in text if "\ud800" <= c <= "\udfff")
            raise LenscopeError(
                f"{shown(text)}: has {bad!r}, half of a surrogate pair, which is no character; leave it out"
            ) from error
    return text


def shown(value: Any) -> str:
    """A value in one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _ids(ids: Any, mask: Any) -> list[Any]:
    """Ids, or rows of them, without those that a mask of the same shape hides."""
    numbers = elements(ids, "token ids")
    if mask is None:
        return numbers
    hidden = elements(mask, "a mask")
    if len(hidden) != len(numbers):
        raise LenscopeError(f"attention_mask: has {len(hidden)} entries for {len(numbers)} of input_ids; give as many")
    if numbers and not is_integer(numbers[0]):
        return [_ids(row, shows) for row, shows in zip(numbers, hidden, strict=True)]
    if not all(shows in (0, 1) for shows in hidden):
        raise LenscopeError("attention_mask: has other values than 0 and 1; give a mask of one row per prompt")
    return [i for i, shows in zip(numbers, hidden, strict=True) if shows]
