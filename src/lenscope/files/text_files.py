"""Text files: their lines, their rows as tables, as any editor, spreadsheet, data frame or web page may write them.

Knows: byte order marks, what ends a line, quotes in tables, JSON by lines, how much one line may hold.
Does not know: what lines and rows mean.
"""

import codecs
import csv
import gzip
import io
import json
import os
import re
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from lenscope.errors import LenscopeError
from lenscope.files.untrusted import checked_reading, escaped, reason

# Characters that one line may have, so that a small compressed file does not fill the memory.
LONGEST_LINE = 1 << 26
# File names that are tables, and what stands between their columns (None: objects, one a line).
TABLES = {".tsv": "\t", ".csv": ",", ".jsonl": None}
# The marks that a text may begin with, and the encoding that each stands for; the longer ones first.
MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
# Bytes that are none of the encoding stand in their line as these characters, which no encoding gives, so that the
# lines before are read although a file is decoded in blocks.
UNDECODED, FIRST_UNDECODED = "lenscope-undecoded", 0xDC00
_BAD = re.compile("[\udc00-\udcff]")


def _undecoded(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(FIRST_UNDECODED + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(UNDECODED, _undecoded)


def encoding_of(head: bytes) -> str:
    """The encoding of a text by its first bytes: what its byte order mark says, else UTF-8."""
    return next((name for mark, name in MARKS if head.startswith(mark)), "utf-8")


def read_lines(file: str | os.PathLike[str] | IO[Any]) -> Iterator[str]:
    r"""The lines of a text file (.gz too), each as soon as it is there, without its end; "-" is standard input.

    Only \n, \r\n and \r end a line: a form feed or U+2028 within one belongs to it. A byte order mark is no text, also
    where files were joined, and UTF-16 or UTF-32 are read where one says so; all else is UTF-8. NULs at the end of the
    file are none of its text. Raises LenscopeError for a file that cannot be read, and, with the number of the line and
    after all lines before it, for one that is no text or has more than 67,108,864 characters.
    """
    with closing(lines_or_mistakes(file)) as lines:
        for line in lines:
            if isinstance(line, LenscopeError):
                raise line
            yield line


def lines_or_mistakes(file: str | os.PathLike[str] | IO[Any]) -> Generator[str | LenscopeError]:
    """The lines that `read_lines` reads; for one that it would refuse comes the LenscopeError, then the next line."""
    if isinstance(file, str | os.PathLike):
        name = os.fspath(file)
        name, file = ("standard input", sys.stdin) if name == "-" else (name, Path(name))
    else:
        name = "standard input" if file is sys.stdin else str(getattr(file, "name", "text"))
    name, n = escaped(name), 0
    with checked_reading(name, "cannot be read as text"), _open_text(file) as stream:
        while line := stream.readline(LONGEST_LINE + 2):
            n += 1
            cut = line[-1] != "\n" and len(line) > LONGEST_LINE
            # NULs: what was never written of a file that grew to its size first
            text = line if line[-1] == "\n" else line.rstrip("\0")
            if why := _why_no_line(text, stream, cut):
                yield LenscopeError(f"{name}, line {n}: {why}")
            else:
                yield text.removesuffix("\n").removeprefix("\ufeff")
            while cut and line and line[-1] != "\n":
                line = stream.readline(LONGEST_LINE + 2)


def read_json_lines(file: str | os.PathLike[str]) -> Iterator[tuple[str, Any]]:
    """("file, line n", value) of each line of JSON (.gz too); empty lines are none.

    Raises LenscopeError as `lines`, and for a line that is not JSON.
    """
    for n, line in enumerate(read_lines(file), 1):
        if line.strip():
            where = f"{os.fspath(file)}, line {n}"
            yield where, parse_json_line(line, where)


def parse_json_line(line: str, where: str) -> Any:
    """The value of a line of JSON; LenscopeError, which names `where`, for what is none."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        # it is one line, whose number `where` has
        why = f"{error.msg.removesuffix(' at')}, column {error.colno}"
        raise LenscopeError(f"{where}: is not JSON ({why})") from error
    except (ValueError, RecursionError) as error:
        raise LenscopeError(f"{where}: is not JSON ({reason(error)})") from error


def read_table(file: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file, line n", row) of a table: .tsv or .csv with a header, or .jsonl with an object a line; .gz too.

    A field in quotes is read as it was meant: quotes within are doubled, and tabs, commas and line ends may stand in
    it. In a .tsv file, a field with a quote at its start that is not written so is taken as it is. Columns without a
    name (an index) are left out, and what a short row lacks is "". Raises LenscopeError, with the line, for anything
    else, such as columns apart by semicolons.
    """
    name = os.fspath(file)
    ending = Path(name.removesuffix(".gz")).suffix.lower()
    if ending not in TABLES:
        raise LenscopeError(f"{name}: give a {', '.join(TABLES)} file, or one of these with .gz behind it")
    separator = TABLES[ending]
    if separator is None:
        for where, row in read_json_lines(file):
            if not isinstance(row, dict):
                raise LenscopeError(f"{where}: give an object with keys")
            yield where, row
        return
    header: list[str] | None = None
    for n, fields in _records(name, read_lines(file), separator):
        if header is None:
            header = _header(name, [field.strip() for field in fields], separator)
        else:
            if any(fields[len(header) :]):
                raise LenscopeError(f"{name}, line {n}: has {len(fields)} columns, and the header {len(header)}")
            padded = [*fields, *[""] * (len(header) - len(fields))]
            yield f"{name}, line {n}", {key: value for key, value in zip(header, padded, strict=False) if key}


def _header(name: str, header: list[str], separator: str) -> list[str]:
    if len(header) == 1 and any(other in header[0] for other in "\t,;|"):
        what = "tabs" if separator == "\t" else "commas"
        raise LenscopeError(
            f"{name}: its header has no {what} between columns: {header[0][:60]!r}; write it with {what}"
        )
    double = next((key for key in header if key and header.count(key) > 1), None)
    if double is not None:
        raise LenscopeError(f"{name}: has two columns named {double!r}; rename one")
    return header


def _records(name: str, lines: Iterator[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table, each after the number of its first line; rows without anything are none."""
    width, at = 0, 1
    waiting: list[str] = []
    while (line := waiting.pop(0) if waiting else next(lines, None)) is not None:
        fields, used = line.split(separator), 0
        if any(field.startswith('"') for field in fields):
            ahead = _Ahead(line, waiting, lines)
            try:
                quoted = next(csv.reader(ahead, delimiter=separator, strict=True))
            except csv.Error as error:
                # a .tsv file may have been written without any quoting
                if separator != "\t" or "limit" in str(error):
                    raise LenscopeError(f"{name}, line {at}: cannot be cut into columns ({error})") from error
            else:
                plain = all(len(one.split(separator)) == width for one in (line, *waiting[: ahead.used]))
                if ahead.used and plain:
                    raise LenscopeError(
                        f"{name}, line {at}: a field begins with a quote that is closed {ahead.used} lines below; "
                        "put fields with quotes into quotes, and double those within"
                    )
                fields, used = quoted, ahead.used
        if any(field.strip() for field in fields):
            width = width or len(fields)
            yield at, fields
        at += 1 + used
        del waiting[:used]


class _Ahead:
    """A line and those after it, which go on waiting: `used` is how many of them a record took."""

    # lines that one field may run over
    MOST = 1000

    def __init__(self, line: str, waiting: list[str], lines: Iterator[str]) -> None:
        self.line, self.waiting, self.lines = line, waiting, lines
        self.used = -1

    def __iter__(self) -> "_Ahead":
        return self

    def __next__(self) -> str:
        self.used += 1
        if not self.used:
            return self.line + "\n"
        if self.used > len(self.waiting):
            if self.used > self.MOST:
                raise StopIteration
            self.waiting.append(next(self.lines))
        return self.waiting[self.used - 1] + "\n"


@contextmanager
def _open_text(file: Path | IO[Any]) -> Iterator[IO[str]]:
    """A file or stream as text whose lines end in a line feed."""
    if not isinstance(file, Path):
        raw = getattr(file, "buffer", file)
        if isinstance(raw, io.TextIOBase) or not hasattr(raw, "readline"):
            # already text, as in a notebook
            yield _Lines(raw)  # type: ignore[misc]
            return
        source: Any = nullcontext(raw)
    else:
        source = (gzip.open if file.suffix.lower() == ".gz" else open)(file, "rb")
    with source as binary:
        peeked = binary if hasattr(binary, "peek") else io.BufferedReader(binary)
        text = io.TextIOWrapper(peeked, encoding=encoding_of(peeked.peek(4)[:4]), errors=UNDECODED, newline=None)
        try:
            yield text
        finally:
            if not isinstance(file, Path):
                text.detach()


class _Lines:
    """Text that comes in pieces, cut where its lines end."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self.found = (line for piece in pieces for line in io.StringIO(piece, newline=None))

    def readline(self, _: int) -> str:
        return next(self.found, "")


def _why_no_line(line: str, stream: IO[str], cut: bool) -> str:
    """Why a line is refused, which is `cut` where it is too long; "" if it is not. Text has no encoding."""
    encoding: str | None = getattr(stream, "encoding", None)
    if encoding is not None and not line.isascii() and (bad := _BAD.search(line)):
        byte = ord(bad[0]) - FIRST_UNDECODED
        return f"is not {encoding.removesuffix('-sig').upper()} (byte {byte:#04x}); convert it"
    if cut:
        return f"has more than {LONGEST_LINE:,} characters; break it up"
    return "is no text (it has NUL bytes); give UTF-8, or UTF-16 with its mark" if "\0" in line else ""
