"""Where text comes from: files, folders, patterns, lists and iterables, data sets of the hub; one document at a time.

Knows: file formats, an index of places instead of texts in memory, how documents are put in a random order.
Does not know: tokens, models.
"""

import glob
import gzip
import hashlib
import importlib
import json
import os
import random
import tempfile
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lenscope.errors import LenscopeError

# a text, or token ids that are taken as they are
Document = str | tuple[int, ...]
Data = str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Sequence[int]]

KINDS = (".txt", ".jsonl", ".json", ".parquet")
PACKED = ("", ".gz", ".zst")
# Bytes of a plain text file that make one document at most.
PIECE = 16_384
# Documents of a stream that wait to be drawn from.
BUFFER = 2048


class Documents(ABC):
    """A collection of documents that can be read again and again, in the order that a seed and an epoch give."""

    name: str

    @abstractmethod
    def read(self, seed: int, epoch: int) -> Iterator[Document]:
        """Every document once."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Where they come from, as JSON values."""


def find_documents(data: Data, field: str = "text") -> Documents:
    """The documents that `data` names.

    - A path, a folder (searched through) or a pattern with * or ?, as str or Path, or a list of Paths: files named
      .txt, .jsonl, .json (a list) or .parquet, all but the last also with .gz or .zst behind it. `field` is the
      field or column with the text, or with a list of token ids; a line of JSON that is a bare string is a text.
    - A list of strings, each a document (or of lists of token ids), or an iterator, which is read to its end at once.
    - An iterable that starts anew whenever it is iterated, or a function that returns an iterator: a stream.
    - "owner/name", "owner/name:config", "owner/name:config:split" (train by default), with @revision behind the name: a
      data set of the hub, streamed by the optional package `datasets`.

    A .txt file is one document up to 16,384 bytes; a longer one is cut into pieces of at most that, at blank lines as
    far as possible, and each piece is a document. Files, lists and iterators are kept as an index of places (20 bytes a
    document); what is compressed, in .json or .parquet, or no file, is first written to a temporary file. They are read
    in a truly random order. A stream is shuffled within a buffer of 2,048 documents, the hub's also by shards.

    Raises LenscopeError for what does not exist, cannot be read, has no such field, or holds no text.
    """
    if callable(data):
        return Stream(getattr(data, "__name__", "stream"), lambda _: data())
    if isinstance(data, str | os.PathLike):
        name = os.fspath(data)
        paths = _files(name)
        return _hub(name, field) if paths is None else _shelf(name, paths, field)
    if not isinstance(data, Iterable):
        raise LenscopeError(f"data {data!r}: give a path, the name of a data set, or a list of texts")
    if isinstance(data, Sequence):
        if data and all(isinstance(d, os.PathLike) for d in data):
            paths = [p for d in data for p in _files(os.fspath(d)) or [Path(d)]]
            return _shelf(f"{len(data)} paths", paths, field)
        if data and all(isinstance(d, str) and _kind(d) and Path(d).is_file() for d in data):
            raise LenscopeError(f"data: a list of strings is a list of texts; for files, give Path({data[0]!r}), …")
        return _shelf("list of texts", data, field)
    if iter(data) is data:
        return _shelf("iterator", data, field)
    return Stream(type(data).__name__, lambda _: iter(data))


@dataclass(frozen=True)
class _File:
    """A file with documents: what it is called, lines of JSON or plain text, its version, its first document."""

    path: Path
    name: str
    lines: bool
    version: tuple[int, int]
    first: int


@final
class Shelf(Documents):
    """Documents on disk at known places, so that any order costs the same."""

    def __init__(self, name: str, field: str) -> None:
        self.name = name
        self.field = field
        self.sources: list[dict[str, Any]] = []
        # copies of what cannot be read at any place; goes when the shelf goes
        self._folder = tempfile.TemporaryDirectory(prefix="lenscope-")
        self._files: list[_File] = []
        self._file, self._start, self._size = array("i"), array("q"), array("q")

    def __len__(self) -> int:
        return len(self._file)

    def add_file(self, path: Path) -> None:
        """Index a file, or a copy of it that can be read at any place."""
        kind, packed = _kind(path.name) or ("", "")
        with _readable(path):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
            self.sources.append({"path": str(path), "bytes": size, "sha256": digest})
            if kind in (".json", ".parquet"):
                self._copy(str(path), _lines(self._values(path, kind, packed), str(path)))
            elif packed:
                with _open(path, packed) as file:
                    self._copy(str(path), iter(lambda: file.read(1 << 20), b""), kind == ".jsonl")
            else:
                self._index(path, str(path), kind == ".jsonl")

    def add_values(self, values: Iterable[Any]) -> None:
        """Add texts or lists of token ids, written down as lines of JSON."""
        digest, count = hashlib.sha256(), len(self)

        def lines() -> Iterator[bytes]:
            for line in _lines(values, self.name):
                digest.update(line)
                yield line

        self._copy(self.name, lines())
        self.sources.append(
            {"name": self.name, "documents": len(self) - count, "sha256_of_json_lines": digest.hexdigest()}
        )

    def read(self, seed: int, epoch: int) -> Iterator[Document]:
        """Every document once, in a random order."""
        for n in np.random.default_rng((seed, epoch)).permutation(len(self)).tolist():
            document = self._document(n)
            if document:
                yield document

    def about(self) -> dict[str, Any]:
        """Paths, sizes and SHA-256 of files; of texts the SHA-256 of them as lines of JSON."""
        return {"data": self.name, "field": self.field, "documents": len(self), "sources": self.sources}

    def _copy(self, name: str, pieces: Iterable[bytes], lines: bool = True) -> None:
        copy = Path(self._folder.name) / str(len(self._files))
        with copy.open("wb") as file:
            file.writelines(pieces)
        self._index(copy, name, lines)

    def _index(self, path: Path, name: str, lines: bool) -> None:
        with path.open("rb") as file:
            self._files.append(_File(path, name, lines, _version(file), len(self)))
            at = 0
            for size, full in ((len(x), bool(x.strip())) for x in file) if lines else _pieces(file):
                if full:
                    self._file.append(len(self._files) - 1)
                    self._start.append(at)
                    self._size.append(size)
                at += size

    def _document(self, n: int) -> Document:
        known = self._files[self._file[n]]
        with _readable(known.path), known.path.open("rb") as file:
            if _version(file) != known.version:
                raise LenscopeError(f"{known.name}: was changed while it was being read; open it again")
            file.seek(self._start[n])
            raw = file.read(self._size[n])
        place = f"{known.name}, document {n - known.first + 1}"
        try:
            return _value(json.loads(raw), self.field, place) if known.lines else raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise LenscopeError(f"{place}: is not UTF-8 (byte {raw[error.start]:#04x}); convert it") from error
        except json.JSONDecodeError as error:
            raise LenscopeError(f"{place}: is not a line of JSON ({error})") from error

    def _values(self, path: Path, kind: str, packed: str) -> Iterator[Any]:
        if kind == ".json":
            with _open(path, packed) as file:
                values = json.load(file)
            if not isinstance(values, list):
                raise LenscopeError(f"{path}: is not a list; a .json file is a list of texts or of objects")
            yield from values
            return
        with pq.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if self.field not in names:
                raise LenscopeError(f"{path}: has no column {self.field!r} but {', '.join(names)}; name one as field")
            for some in table.iter_batches(batch_size=256, columns=[self.field]):
                yield from (value for value in some.column(0).to_pylist() if value is not None)


@final
class Stream(Documents):
    """Documents that only come one after the other, each time anew; shuffled within a buffer."""

    def __init__(
        self, name: str, start: Callable[[int], Iterator[Any]], field: str = "text", about: dict[str, Any] | None = None
    ) -> None:
        self.name = name
        self.start = start
        self.field = field
        self.described = about or {}

    def read(self, seed: int, epoch: int) -> Iterator[Document]:
        """Every document once: a random one of the next 2,048, again and again."""
        draw = random.Random(f"{seed} {epoch}")
        waiting: list[Document] = []
        for n, value in enumerate(self.start(seed + epoch)):
            document = _value(value, self.field, f"{self.name}, document {n + 1}")
            if not document:
                continue
            if len(waiting) < BUFFER:
                waiting.append(document)
                continue
            at = draw.randrange(BUFFER)
            waiting[at], document = document, waiting[at]
            yield document
        draw.shuffle(waiting)
        yield from waiting

    def about(self) -> dict[str, Any]:
        """The name, and of a data set of the hub what was asked for and which version answered."""
        return {"data": self.name, "field": self.field, **self.described}


def _shelf(name: str, items: Iterable[Any], field: str) -> Shelf:
    shelf = Shelf(name, field)
    if isinstance(items, list) and items and all(isinstance(i, Path) for i in items):
        for path in items:
            shelf.add_file(path)
    else:
        shelf.add_values(items)
    if not len(shelf):
        raise LenscopeError(f"{name}: holds no text; give at least one document")
    return shelf


def _files(name: str) -> list[Path] | None:
    """The files of a path, folder or pattern; None where the name can only be the hub's."""
    path = Path(name).expanduser()
    endings = ", ".join(KINDS)
    hits: Iterable[Path]
    if not name.strip():
        raise LenscopeError("data: is an empty name; give a path, or None for the model's own samples")
    if path.is_dir():
        hits = path.rglob("*")
    elif path.exists():
        if not _kind(path.name):
            raise LenscopeError(f"{name}: is no kind of text known here; files end in {endings}, also with .gz or .zst")
        return [path]
    elif glob.has_magic(name):
        hits = map(Path, glob.iglob(str(path), recursive=True))
    elif _kind(name) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise LenscopeError(f"{name}: no such file or folder")
    else:
        return None
    found = sorted(p for p in hits if _kind(p.name) and not p.name.startswith(".") and p.is_file())
    if not found:
        raise LenscopeError(f"{name}: no files there that end in {endings}, or in these with .gz or .zst")
    return found


def _version(file: IO[bytes]) -> tuple[int, int]:
    stat = os.fstat(file.fileno())
    return stat.st_size, stat.st_mtime_ns


def _kind(name: str) -> tuple[str, str] | None:
    """The format and the compression that a file's name tells."""
    name = name.lower()
    for kind in KINDS:
        for packed in PACKED if kind != ".parquet" else ("",):
            if name.endswith(kind + packed):
                return kind, packed
    return None


def _open(path: Path, packed: str) -> Any:
    if packed == ".gz":
        return gzip.open(path, "rb")
    return pa.input_stream(str(path), compression="zstd") if packed else path.open("rb")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except LenscopeError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
        raise LenscopeError(f"{path}: cannot be read ({reason})") from error


def _lines(values: Iterable[Any], place: str) -> Iterator[bytes]:
    for n, value in enumerate(values):
        if not isinstance(value, str | dict):
            try:
                value = [int(i) for i in value]
            except (TypeError, ValueError) as error:
                raise LenscopeError(f"{place}, document {n + 1}: is neither a text nor a list of token ids") from error
        yield json.dumps(value).encode() + b"\n"


def _value(value: Any, field: str, place: str) -> Document:
    """The text or token ids of one document as it was stored."""
    if isinstance(value, dict):
        if field not in value:
            raise LenscopeError(
                f"{place}: has no field {field!r} but {', '.join(map(str, value)) or 'none'}; name one as field"
            )
        value = value[field]
    if value is None:
        return ""
    if isinstance(value, str):
        # half a surrogate pair, as some scraped JSON has, is no text
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, Sequence) and all(isinstance(i, int) for i in value):
        return tuple(value)
    raise LenscopeError(f"{place}: is neither a text nor a list of token ids; name the field that holds one")


def _pieces(file: IO[bytes]) -> Iterator[tuple[int, bool]]:
    """The sizes of the pieces that a plain text is cut into, and whether there is more than white space in them."""
    rest = b""
    while data := rest + file.read(PIECE + 1 - len(rest)):
        cut = len(data) if len(data) <= PIECE else _cut(data[:PIECE])
        yield cut, bool(data[:cut].strip())
        rest = data[cut:]


def _cut(data: bytes) -> int:
    """Where a piece best ends: after a blank line, a line, a word, else between two characters."""
    for mark in (b"\n\n", b"\r\n\r\n", b"\n", b" "):
        at = data.rfind(mark, len(data) // 2)
        if at >= 0:
            return at + len(mark)
    end = len(data)
    # the first byte of a character is no continuation of one
    while end > len(data) - 4 and data[end - 1] & 0xC0 == 0x80:
        end -= 1
    return end - 1 if data[end - 1] >= 0xC0 else len(data)


def _hub(name: str, field: str) -> Stream:
    """A data set of the hub, streamed."""
    where, *more = name.split(":")
    path, _, revision = where.partition("@")
    if len(more) > 2 or not path:
        raise LenscopeError(f"{name}: a data set of the hub is named owner/name@revision:config:split")
    config, split = [*more, "", ""][:2]
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise LenscopeError(
            f"{name}: no such file or folder; if it is a data set of the hub, run: pip install 'lenscope[hub]'"
        ) from error
    asked = {"path": path, "name": config or None, "split": split or "train", "revision": revision or None}
    with _reachable(name):
        found = datasets.load_dataset(**asked, streaming=True)

    def rows(seed: int) -> Iterator[Any]:
        with _reachable(name):
            # the shards in a random order; within them the stream's own buffer shuffles
            yield from found.shuffle(seed=seed, buffer_size=1)

    return Stream(name, rows, field, {"hub": asked, "datasets": datasets.__version__})


@contextmanager
def _reachable(name: str) -> Iterator[None]:
    try:
        yield
    except LenscopeError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise LenscopeError(
            f"{name}: cannot be read as a data set of the hub ({reason}); check the name and the network, or give files"
        ) from error
