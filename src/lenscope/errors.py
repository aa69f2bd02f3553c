"""The one exception for mistakes a user can mend.

Knows: that its message names the value, the valid range and the remedy, in one line.
Does not know: who raises it, or how it is shown.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class LenscopeError(ValueError):
    """A mistake that you can mend. Its one line names the value, what would be valid, and what to do instead."""


@contextmanager
def naming_place(place: str) -> Iterator[None]:
    """Within the block a LenscopeError begins with the place, such as "prompts.jsonl, line 3"; "" names none."""
    try:
        yield
    except LenscopeError as error:
        if not place:
            raise
        raise LenscopeError(f"{place}: {error}") from error
