"""Files of unknown origin: read within limits, and one kind of error for whatever they make a parser raise.

Knows: which files may be read whole, how parsers fail, that what a file declares is no reason to allocate it.
Does not know: what a file is for.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lenscope.errors import LenscopeError

if TYPE_CHECKING:
    from torch import Tensor

# Bytes: of a configuration, and of results as JSON, which take up to twenty times as much memory once parsed.
CONFIG_LIMIT = 64 << 20
TEXT_LIMIT = 1 << 30


@contextmanager
def checked_reading(source: object, what: str = "cannot be read") -> Iterator[None]:
    """Turn whatever reading and checking a file raises into one LenscopeError: "source: what (reason)".

    LenscopeError and what is no `Exception` (an interrupt) pass unchanged. Use it around parsers and around code that
    trusts their values; a mistake of lenscope's own in there would look like a damaged file.
    """
    try:
        yield
    except LenscopeError:
        raise
    except Exception as error:  # parsers of zip, gzip, JSON, pickles, tensors and columns fail in as many ways
        raise LenscopeError(f"{escaped(source)}: {what} ({reason(error)})") from error
    except BaseException as error:
        # what a parser written in Rust raises when it fails in a way its authors did not expect
        if type(error).__name__ != "PanicException":
            raise
        raise LenscopeError(f"{escaped(source)}: {what} ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """Why something failed, in one line without control characters and of at most 200 characters."""
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError) and error.args:
        return f"it lacks {escaped(repr(error.args[0]))[:150]}"
    return escaped(" ".join(str(error).split()))[:200] or type(error).__name__


def escaped(value: object) -> str:
    """A value as text of one line: what is no printable character stands as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(value))


def read_text(path: str | os.PathLike[str], limit: int = TEXT_LIMIT) -> str:
    """A file's text (UTF-8, with or without a byte order mark), if the file has at most `limit` bytes.

    Raises LenscopeError for a file that is missing, larger, no regular file or not in UTF-8.
    """
    path = Path(path)
    with checked_reading(path):
        # opening a pipe waits for its writer, and a device never ends
        if path.exists() and not path.is_file() and not path.is_dir():
            raise LenscopeError(f"{escaped(path)}: is no regular file")
        with path.open("rb") as file:
            # what is asked for is allocated at once, whatever there is to read
            content = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
        if len(content) > limit:
            raise LenscopeError(f"{escaped(path)}: is larger than {limit:,} bytes, the most that is read as text")
        return content.decode("utf-8-sig")


def read_json(path: str | os.PathLike[str], limit: int = CONFIG_LIMIT) -> Any:
    """The value of a JSON file of at most `limit` bytes. Raises LenscopeError for anything else."""
    text = read_text(path, limit)
    with checked_reading(Path(path), "is no JSON"):
        return json.loads(text)


def read_safetensors(path: str | os.PathLike[str]) -> "dict[str, Tensor]":
    """The tensors of a safetensors file, on the CPU. Raises LenscopeError for a file that is damaged or none."""
    import safetensors.torch

    with checked_reading(Path(path), "is damaged, or no file of tensors"):
        return safetensors.torch.load_file(path)


def read_safetensors_header(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts by name that the header of a safetensors file has beside its tensors; empty where it has none.

    Raises LenscopeError for a file that is missing, damaged or none.
    """
    from safetensors import safe_open

    path = Path(path)
    with checked_reading(path, "is damaged, or no file of tensors"):
        if not path.is_file():
            raise LenscopeError(f"{escaped(path)}: no such file")
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
