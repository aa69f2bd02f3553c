"""Standard output and error: what is written there, in whatever encoding they have, and what happens where they fail.

Knows: encodings of consoles, JSON that no terminal acts on, pipes that are closed and disks that are full.
Does not know: what is written. Imports little, so that an interruption is a line from the very start.
"""

import codecs
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from lenscope.visible_text import printable

# what stands for a mark of ours where the console's encoding lacks it: as wide, so that tables keep their columns
_INSTEAD = {
    "·": ".", "…": "~", "–": "-", "—": "-", "×": "x", "✓": "+", "✗": "x", "↵": "/", "␍": "/", "⇥": ">", "→": ">",
    "‖": "|", "−": "-", "≥": ">", "≤": "<", "│": "|", "─": "-", "━": "-", "•": "*", "ℓ": "l", "½": "?", "Σ": "S",
    "“": '"', "”": '"', "’": "'", "α": "a",
}  # fmt: skip
# beside what JSON itself escapes: C1 controls, marks that turn or hide text, halves of surrogate pairs
_UNSAFE = re.compile(
    "[\x7f-\xa0\xad\u0600-\u0605\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202f\u205f-\u206f\u2800\u3164\ud800-\uf8ff\ufeff\uffa0"
    "\ufff0-\ufffb\U000e0000-\U000e0fff]"
)

_failure: OSError | None = None


def several_processes() -> bool:
    """Whether torchrun started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def first_process() -> bool:
    """Whether this process speaks: the only one, or the first of those that torchrun started."""
    return not several_processes() or os.environ.get("RANK", "0") == "0"


@contextmanager
def quiet_unless_first() -> Iterator[None]:
    """Within the block what is written to stdout goes nowhere in all but the first of several processes."""
    if first_process():
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def _encodable(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_INSTEAD.get(c) or _escaped(c) for c in lacking), error.end


def _escaped(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode("ascii")


@contextmanager
def usable() -> Iterator[None]:
    """Within the block stdout and stderr take every character, also in ASCII or cp1252, and are there at all."""
    global _failure
    _failure = None
    codecs.register_error("lenscope", _encodable)
    before: list[tuple[Any, str]] = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started the process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            before.append((stream, stream.errors))
            stream.reconfigure(errors="lenscope")
    try:
        yield
    finally:
        for stream, errors in before:
            try:
                stream.reconfigure(errors=errors)
            except (OSError, ValueError):  # full or closed, which was told where it happened
                pass


@contextmanager
def writing() -> Iterator[None]:
    """What is written to stdout in the block; where stdout fails, nothing more is written, and `failure` knows.

    So that what is to be saved is still saved where the reader of a pipe has seen enough, or a disk is full.
    """
    global _failure
    try:
        yield
    except OSError as error:
        _failure = error
        silence(sys.stdout)


def failure() -> OSError | None:
    """Why stdout cannot be written to, as soon as that is known."""
    return _failure


def say(line: str) -> None:
    """One line on stdout."""
    with writing():
        print(line)


def print_json(value: Any, before: str = "", end: str = "\n") -> None:
    """One JSON value on stdout, see `as_json`; with what stands `before` and behind it."""
    with writing():
        print(before + as_json(value), end=end)


def as_json(value: Any) -> str:
    """A value as JSON in one line that no terminal acts on: NaN and infinity as null, all of ASCII where stdout is."""
    try:
        text = json.dumps(value, ensure_ascii=not _unicode(), allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=not _unicode(), allow_nan=False)
    # within JSON these are characters of texts, where an escape means the same
    return _UNSAFE.sub(lambda match: json.dumps(match[0])[1:-1], text)


def tell(line: str, everyone: bool = False) -> None:
    """One line on stderr, of `everyone` or the first of several processes; nothing where stderr cannot be written."""
    if not everyone and not first_process():
        return
    try:
        print("lenscope: " + printable(" ".join(line.split())), file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def flush() -> None:
    """Write what is left for stdout."""
    with writing():
        sys.stdout.flush()


def silence(stream: TextIO) -> None:
    """Send what is left for a stream that failed nowhere: Python would complain when it flushes it at the end."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):  # no stream of the system's, such as a test's
        pass


def _unicode() -> bool:
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("_", "-").startswith("utf")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
