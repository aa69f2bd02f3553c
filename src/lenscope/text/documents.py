"""Where text comes from: files, folders, patterns, lists and iterables, data sets of the hub; one document at a time.

Knows: file formats, an index of places instead of texts in memory, how documents are put in a random order.
Does not know: tokens, models.
"""

import glob
import hashlib
import importlib
import json
import os
import random
import tempfile
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pyarrow.parquet as pq

from lenscope.errors import LenscopeError
from lenscope.files import parquet_footers as footers
from lenscope.files.text_files import encoding_of
from lenscope.files.untrusted import CONFIG_LIMIT, TEXT_LIMIT, checked_reading
from lenscope.models.inputs import elements, is_integer
from lenscope.text.document_files import (
    KINDS,
    Document,
    as_lines,
    as_utf8,
    kind_of,
    line_sizes,
    parsed,
    piece_sizes,
    unpacked,
    value_of,
    version,
)

Data = str | os.PathLike[str] | Iterable[str | os.PathLike[str] | Sequence[int]]

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
    if isinstance(data, bytes | bytearray | set | frozenset):
        what = "a set, which has no order" if isinstance(data, set | frozenset) else "bytes"
        raise LenscopeError(f"data: is {what}; give a path, the name of a data set, or a list of texts")
    if isinstance(data, Mapping) and field in data:
        data = data[field]
    if (isinstance(data, Mapping) and any(value is not None for value in data.values())) or any(
        hasattr(data, name) for name in ("tolist", "to_pylist", "columns")
    ):
        data = _column(data)
    if callable(data):
        return DocumentStream(getattr(data, "__name__", "stream"), lambda _: data())
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
        if data and all(isinstance(d, str) and kind_of(d) and Path(d).is_file() for d in data):
            raise LenscopeError(f"data: a list of strings is a list of texts; for files, give Path({data[0]!r}), …")
        return _shelf("list of texts", data, field)
    if iter(data) is data:
        return _shelf("iterator", data, field)
    return DocumentStream(type(data).__name__, lambda _: iter(data))


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
        kind, packed = kind_of(path.name) or ("", "")
        with checked_reading(path):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
            self.sources.append({"path": str(path), "bytes": size, "sha256": digest})
            if kind in (".json", ".parquet"):
                self._copy(str(path), as_lines(self._values(path, kind, packed), self.field, str(path)))
                return
            with unpacked(path, packed) as file:
                if packed or not encoding_of(file.peek(4)[:4]).startswith("utf-8"):
                    self._copy(str(path), as_utf8(file, str(path)), kind == ".jsonl")
                    return
            self._index(path, str(path), kind == ".jsonl")

    def add_values(self, values: Iterable[Any]) -> None:
        """Add texts or lists of token ids, written down as lines of JSON."""
        digest, count = hashlib.sha256(), len(self)

        def lines() -> Iterator[bytes]:
            for line in as_lines(values, self.field, self.name):
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
            self._files.append(_File(path, name, lines, version(file), len(self)))
            at = 0
            for size, full in line_sizes(file, name) if lines else piece_sizes(file):
                if full:
                    self._file.append(len(self._files) - 1)
                    self._start.append(at)
                    self._size.append(size)
                at += size

    def _document(self, n: int) -> Document:
        known = self._files[self._file[n]]
        with checked_reading(known.path), known.path.open("rb") as file:
            if version(file) != known.version:
                raise LenscopeError(f"{known.name}: was changed while it was being read; open it again")
            file.seek(self._start[n])
            raw = file.read(self._size[n])
        place = f"{known.name}, document {n - known.first + 1}"
        return parsed(raw, known.lines, self.field, place)

    def _values(self, path: Path, kind: str, packed: str) -> Iterator[Any]:
        if kind == ".json":
            # a packed file is small whatever it holds, and its values take several times their text
            limit = CONFIG_LIMIT if packed else TEXT_LIMIT
            content = bytearray()
            with unpacked(path, packed) as file:
                while len(content) <= limit and (piece := file.read(1 << 20)):
                    content += piece
            if len(content) > limit:
                raise LenscopeError(f"{path}: has more than {limit:,} bytes; write it as .jsonl")
            values = json.loads(content)
            if not isinstance(values, list):
                raise LenscopeError(f"{path}: is not a list; a .json file is a list of texts or of objects")
            yield from values
            return
        # a file whose footer says what is not there makes pyarrow ask for gigabytes before it fails
        footers.declared_sizes(path)
        with pq.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if self.field not in names:
                raise LenscopeError(
                    f"{path}: has no column {self.field!r}; name one of these as field (--field): {', '.join(names)}"
                )
            for batch in table.iter_batches(batch_size=256, columns=[self.field]):
                yield from (value for value in batch.column(0).to_pylist() if value is not None)


@final
class DocumentStream(Documents):
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
            document = value_of(value, self.field, f"{self.name}, document {n + 1}")
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


def _column(data: Any) -> list[Any]:
    """An array, a column or a tokenizer's output as a list of documents."""
    given = elements(data, "a path, the name of a data set, or a list of texts")
    return [given] if given and all(map(is_integer, given)) else given


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
        if not kind_of(path.name):
            raise LenscopeError(
                f"{name}: lenscope cannot read such files; give one that ends in {endings}, also with .gz or .zst"
            )
        return [path]
    elif glob.has_magic(name):
        hits = map(Path, glob.iglob(str(path), recursive=True))
    elif kind_of(name) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise LenscopeError(f"{name}: no such file or folder")
    else:
        return None
    files = sorted(p for p in hits if kind_of(p.name) and not p.name.startswith(".") and p.is_file())
    if not files:
        raise LenscopeError(f"{name}: no files there that end in {endings}, or in these with .gz or .zst")
    return files


def _hub(name: str, field: str) -> DocumentStream:
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
        data_set = datasets.load_dataset(**asked, streaming=True)

    def rows(seed: int) -> Iterator[Any]:
        with _reachable(name):
            # the shards in a random order; within them the stream's own buffer shuffles
            yield from data_set.shuffle(seed=seed, buffer_size=1)

    return DocumentStream(name, rows, field, {"hub": asked, "datasets": datasets.__version__})


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
