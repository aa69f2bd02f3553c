"""Documents as files hold them: which files have any, where each begins, and what one is.

Knows: kinds of files and their compression, encodings, pieces of plain text, lines of JSON.
Does not know: which files are wanted, in which order their documents are read.
"""

import gzip
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from lenscope.errors import LenscopeError
from lenscope.files.text_files import LONGEST_LINE, encoding_of
from lenscope.files.untrusted import reason
from lenscope.models.inputs import plain, token_ids

# a text, or token ids that are taken as they are
Document = str | tuple[int, ...]

KINDS = (".txt", ".jsonl", ".json", ".parquet")
PACKED = ("", ".gz", ".zst")
# Bytes of a plain text file that make one document at most.
PIECE_BYTES = 16_384
# Bytes that make no text, NULs among them, which a file has where it was never written to.
BLANK = b" \t\n\r\x0b\x0c\0"


def version(file: IO[bytes]) -> tuple[int, int]:
    """What changes where a file is written to: its size, and when that was."""
    stat = os.fstat(file.fileno())
    return stat.st_size, stat.st_mtime_ns


def kind_of(name: str) -> tuple[str, str] | None:
    """The format and the compression that a file's name tells."""
    name = name.lower()
    for kind in KINDS:
        for packed in PACKED if kind != ".parquet" else ("",):
            if name.endswith(kind + packed):
                return kind, packed
    return None


def unpacked(path: Path, packed: str) -> Any:
    """A file's content as bytes, unpacked, to be looked at before it is read."""
    if packed == ".gz":
        return gzip.open(path, "rb")
    return io.BufferedReader(pa.input_stream(str(path), compression="zstd")) if packed else path.open("rb")


def as_lines(values: Iterable[Any], field: str, place: str) -> Iterator[bytes]:
    """Documents as lines of JSON; LenscopeError, which names the place, for what is none."""
    for n, value in enumerate(values, 1):
        if isinstance(value, Mapping) and "input_ids" not in value:
            try:
                yield json.dumps(dict(value)).encode() + b"\n"
                continue
            except (TypeError, ValueError):
                # what JSON does not know in a row of another library; only the text is wanted
                value = value.get(field)
        document = as_document(value, f"{place}, document {n}")
        yield json.dumps(document).encode() + b"\n"


def value_of(value: Any, field: str, place: str) -> Document:
    """The text or token ids of one document as it was stored."""
    if isinstance(value, Mapping) and "input_ids" not in value:
        if field not in value:
            fields = ", ".join(map(str, value)) or "none"
            raise LenscopeError(f"{place}: has no field {field!r}; name one of these as field (--field): {fields}")
        value = value[field]
    document = as_document(value, place)
    # half a surrogate pair, as some scraped JSON has, is no text
    if isinstance(document, str) and not document.isascii():
        return document.encode("utf-8", "replace").decode()
    return document


def as_document(value: Any, place: str) -> Document:
    """A text, or token ids, as Python's own; LenscopeError, which names the place, for what is neither."""
    if type(value) is str:
        return value
    if value is None:
        return ""
    try:
        value = plain(value)
        return value if isinstance(value, str) else token_ids(value)
    except LenscopeError as error:
        raise LenscopeError(
            f"{place}: is neither a text nor a list of token ids ({error}); name the field that holds one"
        ) from error


def line_sizes(file: IO[bytes], name: str) -> Iterator[tuple[int, bool]]:
    """The sizes of lines of JSON, and whether there is more than white space in them."""
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise LenscopeError(f"{name}: a line has more than {LONGEST_LINE:,} bytes; break it up")
        # a carriage return alone ends a line too: within JSON's strings there is none
        for part in re.split(rb"(?<=\r)(?!\n)", line) if b"\r" in line else (line,):
            yield len(part), bool(part.strip())


def as_utf8(file: Any, name: str) -> Iterator[bytes]:
    """A text file's content as UTF-8, whatever encoding its byte order mark tells."""
    coded = encoding_of(file.peek(4)[:4])
    if coded.startswith("utf-8"):
        yield from iter(lambda: file.read(1 << 20), b"")
        return
    text = io.TextIOWrapper(file, coded, newline="")
    yield from (piece.encode() for piece in iter(lambda: text.read(1 << 20), ""))


def piece_sizes(file: IO[bytes]) -> Iterator[tuple[int, bool]]:
    """The sizes of the pieces that a plain text is cut into, and whether there is more than white space in them."""
    rest = b""
    while data := rest + file.read(PIECE_BYTES + 1 - len(rest)):
        cut = len(data) if len(data) <= PIECE_BYTES else _piece_end(data[:PIECE_BYTES])
        yield cut, bool(data[:cut].strip(BLANK))
        rest = data[cut:]


def _piece_end(data: bytes) -> int:
    """Where a piece best ends: after a blank line, a line, a word, else between two characters."""
    for mark in (b"\n\n", b"\r\n\r\n", b"\n", b"\r", b" "):
        at = data.rfind(mark, len(data) // 2)
        if at >= 0:
            return at + len(mark)
    end = len(data)
    # the first byte of a character is no continuation of one
    while end > len(data) - 4 and data[end - 1] & 0xC0 == 0x80:
        end -= 1
    return end - 1 if data[end - 1] >= 0xC0 else len(data)


def parsed(raw: bytes, lines: bool, field: str, place: str) -> Document:
    """The document of a file's bytes: a line of JSON, or plain text, as it is."""
    try:
        if lines:
            return value_of(json.loads(raw.removeprefix(b"\xef\xbb\xbf")), field, place)
        text = raw.decode("utf-8-sig").rstrip("\0")
    except UnicodeDecodeError as error:
        raise LenscopeError(f"{place}: is not UTF-8 (byte {raw[error.start]:#04x}); convert it") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise LenscopeError(f"{place}: is not a line of JSON ({reason(error)})") from error
    if "\0" in text:
        raise LenscopeError(f"{place}: is no text (it has NUL bytes); give UTF-8, or UTF-16 with its mark")
    return text
