"""Files of results: JSON documents and Parquet tables that say what they are, and are checked before they are believed.

Knows: digests of contents, page checksums, the order of rows, how much memory a table may take.
Does not know: what columns mean.

A file of version 2 holds the SHA-256 of its contents; one of version 1, which lenscope 0.1.0 wrote, has none.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lenscope.errors import LenscopeError
from lenscope.files import parquet_footers as footers
from lenscope.files.kinds import KINDS, PARQUET, refused
from lenscope.files.untrusted import TEXT_LIMIT, read_json, reading, visible
from lenscope.files.writing import whole_file

VERSION = 2
# A table may take this many bytes in memory, or so many times its file's: repeated values take next to none in a file.
SMALL, TIMES = 1 << 28, 64
_ROWS = 1 << 16

# A column of JSON that a row may lack.
HEAD = "head"

# whole numbers, numbers or texts by row; lists as (lengths, all their values)
Column = Any


def save(
    path: str | os.PathLike[str], document: dict[str, Any], mark: str, head: dict[str, Any], table: pa.Table | None
) -> None:
    """Write a .json file of a document, or a .parquet file of a table whose head stands in its metadata under a mark.

    `table` may be None where the path ends in .json.
    """
    if table is not None and Path(path).suffix == ".parquet":
        save_table(path, table, {mark: json.dumps(stamped(head, table), ensure_ascii=False)})
    else:
        save_json(path, sealed(document))


def save_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a .json file, whole or not at all."""
    path = Path(path)
    if path.suffix != ".json":
        raise LenscopeError(f"{path}: results are saved as .parquet or .json")
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    with whole_file(path) as making:
        making.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def save_table(path: str | os.PathLike[str], table: pa.Table, metadata: dict[str, str]) -> None:
    """Write a .parquet file with checksums of its pages, whole or not at all."""
    path = Path(path)
    if path.suffix != ".parquet":
        raise LenscopeError(f"{path}: results are saved as .parquet or .json")
    with whole_file(path) as making:
        pq.write_table(table.replace_schema_metadata(metadata), making, write_page_checksum=True)


def stamped(head: dict[str, Any], table: pa.Table) -> dict[str, Any]:
    """The head of a table with the SHA-256 of both."""
    return {**head, "sha256": _digest(head, {name: _column(table[name], name) for name in table.column_names})}


def load(path: str | os.PathLike[str], wanted: Sequence[str]) -> tuple[Any, dict[str, Column] | None]:
    """What `save` wrote: a document, or the head of a table and its columns.

    Raises LenscopeError for a file of none of the `wanted` kinds, for a damaged one, and for one that takes far more
    memory than it has bytes.
    """
    path = Path(path)
    noun = KINDS[wanted[0]][0] if len(wanted) < 3 else "result"
    if path.is_dir():
        raise refused(path, wanted[0] if len(wanted) < 3 else "result", "it is a folder")
    if not path.is_file():
        raise LenscopeError(f"{visible(path)}: no such file")
    with reading(path, f"is no {noun} that lenscope saved"):
        with path.open("rb") as file:
            start = file.read(4)
        if start == b"PAR1":
            return _parquet(path, wanted)
        try:
            value = read_json(path, TEXT_LIMIT)
        except LenscopeError as error:
            raise refused(path, wanted[0] if len(wanted) < 3 else "result", error) from error
        many = value if isinstance(value, list) else [value]
        if not many or not all(isinstance(d, dict) and kind(d) in wanted for d in many):
            raise refused(path, wanted[0] if len(wanted) < 3 else "result", "its kind is another")
        opened = [unsealed(d) for d in many]
        return (opened if isinstance(value, list) else opened[0]), None


@contextmanager
def opening(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """As `untrusted.reading`; what a result's `from_json` says of its data is said of the file."""
    with reading(path, what):
        try:
            yield
        except LenscopeError as error:
            if not str(error).startswith("data: "):
                raise
            raise LenscopeError(f"{visible(path)}: {str(error).removeprefix('data: ')}") from error


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """A JSON document with the SHA-256 of its contents."""
    return {**document, "sha256": _digest(document, {})}


def unsealed(document: dict[str, Any]) -> dict[str, Any]:
    """A JSON document whose contents are those that its SHA-256 is of, without it; ValueError for another."""
    rest = {name: value for name, value in document.items() if name != "sha256"}
    version = rest.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ValueError(f"it has format {str(version)[:40]}; this lenscope reads 1–{VERSION}")
    if "sha256" in document or version > 1:
        _intact(document.get("sha256") == _digest(rest, {}))
    return rest


def arranged(columns: Mapping[str, Column], order: np.ndarray) -> dict[str, Column]:
    """Columns with their rows in another order."""
    return {name: _taken(column, order) for name, column in columns.items()}


def matched(columns: Mapping[str, Column], wanted: Mapping[str, np.ndarray]) -> np.ndarray:
    """In which order the rows have these addresses, one after the other; ValueError unless each is there once."""
    have, want = (np.stack([np.asarray(one[name]) for name in wanted], 1) for one in (columns, wanted))
    if have.shape != want.shape:
        raise ValueError(f"it has {len(have)} rows, where it should have {len(want)}")
    a, b = np.lexsort(have.T[::-1]), np.lexsort(want.T[::-1])
    if not np.array_equal(have[a], want[b]):
        raise ValueError(f"its rows are not each {', '.join(wanted)} once")
    order = np.empty(len(want), dtype=np.int64)
    order[b] = a
    return order


def checked(head: dict[str, Any], columns: Mapping[str, Column]) -> dict[str, Any]:
    """The head without its digest; ValueError unless that is the digest of the head and the columns in this order."""
    rest = {name: value for name, value in head.items() if name != "sha256"}
    if "sha256" in head or rest.get("version") != 1:
        _intact(head.get("sha256") == _digest(rest, columns))
    return rest


def lists(lengths: np.ndarray, values: np.ndarray) -> pa.Array:
    """A column of lists: of row n the next lengths[n] of the values."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def numeric(values: np.ndarray) -> pa.Array:
    """A column of numbers: what is not known, NaN, is null."""
    return pa.array(values, from_pandas=True) if values.dtype.kind == "f" else pa.array(values)


def data_frame(table: pa.Table) -> Any:
    """A table as a pandas.DataFrame, whole numbers with gaps as Int64. Raises LenscopeError without pandas."""
    try:
        import pandas  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise LenscopeError("to_dataframe: needs pandas, which is not installed: pip install pandas") from error
    gaps = {f.name for f in table.schema if pa.types.is_integer(f.type) and table[f.name].null_count}
    frame = table.drop_columns(sorted(gaps)).to_pandas()
    for name in sorted(gaps):
        place = table.column_names.index(name)
        frame.insert(min(place, len(frame.columns)), name, pandas.array(table[name].to_pylist(), dtype="Int64"))
    return frame[table.column_names]


def kind(document: Mapping[str, Any]) -> Any:
    """The kind that a document or a head says it is."""
    return "grid" if document.get("kind") in ("predict", "generate") else document.get("kind")


def _intact(right: bool) -> None:
    if not right:
        raise ValueError("it is damaged or was changed: its contents are not those that were saved")


def _parquet(path: Path, wanted: Sequence[str]) -> tuple[dict[str, Any], dict[str, Column]]:
    limit = _bounded(path)
    with pq.ParquetFile(path, page_checksum_verification=True, memory_map=False) as file:
        schema = file.schema_arrow
        marks = [mark for mark in schema.metadata or {} if PARQUET.get(mark.decode("latin-1")) is not None]
        if len(marks) != 1:
            raise refused(path, wanted[0] if len(wanted) < 3 else "result", "its metadata has no mark of lenscope")
        head = json.loads(schema.metadata[marks[0]])
        if (kind(head) if "kind" in head else PARQUET[marks[0].decode()]) not in wanted:
            raise refused(path, wanted[0] if len(wanted) < 3 else "result", "its kind is another")
        version = head["version"]
        if type(version) is not int or not 1 <= version <= VERSION:
            raise ValueError(f"it has format {str(version)[:40]}; this lenscope reads 1–{VERSION}")
        # texts are read as numbers into a list of what they are, so that a long one takes its place once
        named = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_dictionary(f.type)]
    with pq.ParquetFile(path, page_checksum_verification=True, memory_map=False, read_dictionary=named) as file:
        batches, total = [], 0
        for batch in file.iter_batches(_ROWS, use_threads=False):
            batches.append(batch)
            total += batch.nbytes
            if total > 2 * limit:
                raise ValueError(f"it takes more than {limit:,} bytes of memory")
        table = pa.Table.from_batches(batches, file.schema_arrow).unify_dictionaries()
    return head, {name: _column(table[name], name) for name in table.column_names}


def _bounded(path: Path) -> int:
    """The most bytes that the table of a file may take; ValueError for one that says that it takes more."""
    size = path.stat().st_size
    limit = max(SMALL, TIMES * size)
    values, unpacked = footers.sizes(path)
    if 8 * values > limit or unpacked > limit:
        raise ValueError(f"it says that it holds {values:,} values, far more than a file of {size:,} bytes can")
    return limit


def _column(column: pa.ChunkedArray, name: str) -> Column:
    held = column.type
    if pa.types.is_list(held) or pa.types.is_large_list(held):
        if column.null_count:
            raise ValueError(f"column {name}: lacks lists")
        array = column.combine_chunks()
        array = array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)
        return array.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64), _plain(array.flatten(), name)
    if pa.types.is_string(held) or pa.types.is_large_string(held) or pa.types.is_dictionary(held):
        if column.null_count and name != HEAD:
            raise ValueError(f"column {name}: lacks texts")
        encoded = column if pa.types.is_dictionary(held) else column.dictionary_encode()
        if not pa.types.is_string(encoded.type.value_type) and not pa.types.is_large_string(encoded.type.value_type):
            raise ValueError(f"column {name}: holds {held}")
        found: list[str] = []
        for chunk in encoded.chunks:
            known = chunk.dictionary.to_pylist()
            found += ["" if n is None else known[n] for n in chunk.indices.to_pylist()]
        return found
    return _plain(column, name)


def _plain(values: Any, name: str) -> np.ndarray:
    if pa.types.is_integer(values.type):
        return np.asarray(values.fill_null(-1)).astype(np.int64)
    if pa.types.is_floating(values.type):
        return np.asarray(values.fill_null(float("nan"))).astype(np.float64)
    raise ValueError(f"column {name}: holds {values.type}")


def _taken(column: Column, order: np.ndarray) -> Column:
    if isinstance(column, tuple):
        lengths, values = column
        if len(lengths) and (lengths == lengths[0]).all():
            return lengths[order], values.reshape(len(lengths), -1)[order].reshape(-1)
        ends = np.cumsum(lengths)
        at = [np.arange(end - n, end) for end, n in zip(ends[order].tolist(), lengths[order].tolist(), strict=True)]
        return lengths[order], values[np.concatenate(at) if at else np.zeros(0, dtype=np.int64)]
    return [column[n] for n in order.tolist()] if isinstance(column, list) else column[order]


def _digest(head: Mapping[str, Any], columns: Mapping[str, Column]) -> str:
    total = hashlib.sha256(json.dumps(head, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(columns):
        column = columns[name]
        total.update(f"\n{name}\n".encode())
        for part in column if isinstance(column, tuple) else (column,):
            if isinstance(part, list):
                for one in part:
                    raw = one.encode()
                    total.update(len(raw).to_bytes(8, "little") + raw)
            else:
                # every NaN as the same one, numbers in the order of bytes that most processors have
                clean = np.where(np.isnan(part), np.nan, part) if part.dtype.kind == "f" else part
                total.update(f"{part.dtype.kind}{part.shape}".encode())
                total.update(np.ascontiguousarray(clean, dtype=part.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()
