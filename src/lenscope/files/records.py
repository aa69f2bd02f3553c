"""Results in files: one way to save and one to load, for every class that says what its files hold.

Knows: .json documents and .parquet tables that say what they are, and are checked before they are believed.
Does not know: which results there are, what their columns mean.

A new class of results extends `Record`; its kind, with what users call it, stands in kinds.py. It needs no more.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from lenscope.contents import Compared
from lenscope.errors import LenscopeError
from lenscope.files.digests import FORMAT, Column, check_format, sealed, stamped, unsealed
from lenscope.files.json_values import to_exact_lists, to_lists
from lenscope.files.kinds import KINDS, PARQUET, kind_of_document, refusal
from lenscope.files.parquet_tables import columns_of, data_frame, read_columns, read_metadata, write_parquet
from lenscope.files.untrusted import TEXT_LIMIT, checked_reading, escaped, read_json
from lenscope.files.writing import whole_file

# how arrays are written: `to_lists` or `to_exact_lists`
Lists = Callable[[np.ndarray], Any]


class Record(Compared, ABC):
    """A result that is saved and loaded: it says its kind, its document, and its rows.

    `file_kind` is a key of `kinds.KINDS`. `file_mark` is the key of a Parquet file's metadata that the head stands
    under, None for a class that is saved as .json only. `in_lists`: a file may hold a list of them.
    """

    file_kind: ClassVar[str]
    file_mark: ClassVar[str | None] = None
    in_lists: ClassVar[bool] = False

    @abstractmethod
    def _document(self, lists: Lists) -> dict[str, Any]:
        """All of it as JSON values, arrays as `lists` gives them: its "kind", its "version" and all that it holds."""

    @classmethod
    @abstractmethod
    def _from_document(cls, data: dict[str, Any]) -> Self:
        """The inverse of `_document`, also with arrays in place of lists. Any exception says that it is none."""

    @abstractmethod
    def _rows(self) -> pa.Table:
        """Its numbers as the rows of a table."""

    def _head(self, lists: Lists) -> dict[str, Any]:
        """What its document holds beside its rows; asked for only of a class that has a `file_mark`."""
        raise NotImplementedError

    @classmethod
    def _from_columns(cls, head: dict[str, Any], columns: dict[str, Column]) -> Any:
        """The inverse of `_rows` and `_head`, whatever the order of rows. Any exception says that it is none.

        It is asked for only of a class that has a `file_mark`.
        """
        raise NotImplementedError

    def _parquet(self) -> tuple[pa.Table, dict[str, str]]:
        """The table and the metadata of a Parquet file."""
        rows = self._rows()
        head = stamped(self._head(to_exact_lists), columns_of(rows))
        return rows, {str(self.file_mark): json.dumps(head, ensure_ascii=False)}

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values, null being what is not known."""
        return sealed(self._document(to_lists))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_json`. Raises LenscopeError for values that no result of this class has."""
        with checked_reading("data", f"is no {KINDS[cls.file_kind][0]} of format {FORMAT}"):
            if kind_of_document(data) not in (None, cls.file_kind):
                raise ValueError(f"kind {str(data['kind'])[:40]}")
            return cls._from_document(data)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a .json file, or to a .parquet file with a row for each of its numbers; whole or not at all.

        Raises LenscopeError for another ending, and where the file cannot be written.
        """
        save_record(self, path)

    def to_dataframe(self) -> Any:
        """A data frame with the rows of the Parquet file: of pandas, or of polars where only that is installed.

        Raises LenscopeError without both.
        """
        return data_frame(self._rows())


def check_measure(name: str, known: Iterable[str]) -> None:
    """Raise LenscopeError unless `name` is one of the measures that a result has."""
    if name not in known:
        raise LenscopeError(f"measure {name!r}: there are {', '.join(known)}")


def save_record(record: Record, path: str | os.PathLike[str]) -> None:
    """Write a result to a .json or .parquet file, whole or not at all."""
    if record.file_mark is None and Path(path).suffix != ".json":
        raise LenscopeError(f"{os.fspath(path)}: {KINDS[record.file_kind][0]}s are saved as .json")
    if Path(path).suffix == ".parquet":
        write_parquet(path, *record._parquet())
    else:
        write_json(path, document_of(record))


def document_of(record: Record) -> dict[str, Any]:
    """A result as the JSON object of a file, with the digest of its contents; nothing of it is lost."""
    return sealed(record._document(to_exact_lists))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a .json file, whole or not at all."""
    if Path(path).suffix != ".json":
        raise LenscopeError(f"{Path(path)}: results are saved as .parquet or .json")
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    with whole_file(path) as making:
        making.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def load_record(path: str | os.PathLike[str], classes: Sequence[type[Record]]) -> Any:
    """Read what `save_record` wrote of one of these classes, equal to what was saved; a list where the file holds one.

    Raises LenscopeError for a file of something else, whose loader it names; for a damaged one, one with values that no
    such result has, and one that takes far more memory than it has bytes.
    """
    path = Path(path)
    by_kind = {c.file_kind: c for c in classes}
    wanted = classes[0].file_kind if len(classes) < 3 else "result"
    noun = KINDS[wanted][0] if wanted in KINDS else wanted
    if path.is_dir():
        raise refusal(path, wanted, "it is a folder")
    if not path.is_file():
        raise LenscopeError(f"{escaped(path)}: no such file")
    with _about_file(path, f"is no {noun} that lenscope saved"):
        with path.open("rb") as file:
            start = file.read(4)
        return _from_parquet(path, by_kind, wanted) if start == b"PAR1" else _from_json(path, by_kind, wanted)


@contextmanager
def _about_file(path: Path, what: str) -> Iterator[None]:
    """As `checked_reading`; what a result's `from_json` says of its data is said of the file."""
    with checked_reading(path, what):
        try:
            yield
        except LenscopeError as error:
            if not str(error).startswith("data: "):
                raise
            raise LenscopeError(f"{escaped(path)}: {str(error).removeprefix('data: ')}") from error


def _from_json(path: Path, by_kind: dict[str, type[Record]], wanted: str) -> Any:
    try:
        value = read_json(path, TEXT_LIMIT)
    except LenscopeError as error:
        raise refusal(path, wanted, error) from error
    documents = value if isinstance(value, list) else [value]
    if not documents or not all(isinstance(d, dict) and kind_of_document(d) in [*by_kind] for d in documents):
        raise refusal(path, wanted, "its kind is another")
    kinds = [by_kind[kind_of_document(d)] for d in documents]
    if isinstance(value, list) and not all(kind.in_lists for kind in kinds):
        raise ValueError("it holds a list of them")
    contents = [unsealed(d) for d in documents]
    records = [kind.from_json(d) for kind, d in zip(kinds, contents, strict=True)]
    return records if isinstance(value, list) else records[0]


def _from_parquet(path: Path, by_kind: dict[str, type[Record]], wanted: str) -> Any:
    metadata = read_metadata(path)
    marks = [mark for mark in metadata if mark in PARQUET]
    if len(marks) != 1:
        raise refusal(path, wanted, "its metadata has no mark of lenscope")
    head = json.loads(metadata[marks[0]])
    kind = kind_of_document(head) if "kind" in head else PARQUET[marks[0]]
    if kind not in [*by_kind]:
        raise refusal(path, wanted, "its kind is another")
    check_format(head["version"])
    return by_kind[kind]._from_columns(head, read_columns(path))
