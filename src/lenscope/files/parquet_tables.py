"""Parquet tables as columns: whole numbers, numbers, texts and lists, read within limits and in any order of rows.

Knows: page checksums, the order of rows, how much memory a table may take. Does not know: what columns mean.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lenscope.errors import LenscopeError
from lenscope.files.digests import Column
from lenscope.files.parquet_footers import declared_sizes
from lenscope.files.writing import whole_file

# A table may take this many bytes in memory, or so many times its file's: repeated values take next to none in a file.
SMALL, TIMES = 1 << 28, 64
_ROWS = 1 << 16

# A column of JSON that a row may lack.
HEAD = "head"


def write_parquet(path: str | os.PathLike[str], table: pa.Table, metadata: dict[str, str]) -> None:
    """Write a .parquet file with checksums of its pages, whole or not at all."""
    with whole_file(path) as making:
        pq.write_table(table.replace_schema_metadata(metadata), making, write_page_checksum=True)


def read_metadata(path: Path) -> dict[str, bytes]:
    """What the metadata of a Parquet file says, by key. Raises ValueError for a file that says it is far too large."""
    _memory_limit(path)
    with pq.ParquetFile(path, page_checksum_verification=True, memory_map=False) as file:
        metadata = file.schema_arrow.metadata or {}
    return {key.decode("latin-1"): value for key, value in metadata.items()}


def read_columns(path: Path) -> dict[str, Column]:
    """The columns of a Parquet file by name. Raises ValueError for one that takes far more memory than it has bytes."""
    limit = _memory_limit(path)
    with pq.ParquetFile(path, page_checksum_verification=True, memory_map=False) as file:
        # texts are read as numbers into a list of what they are, so that a long one takes its place once
        named = [f.name for f in file.schema_arrow if pa.types.is_string(f.type) or pa.types.is_dictionary(f.type)]
    with pq.ParquetFile(path, page_checksum_verification=True, memory_map=False, read_dictionary=named) as file:
        batches, total = [], 0
        for batch in file.iter_batches(_ROWS, use_threads=False):
            batches.append(batch)
            total += batch.nbytes
            if total > 2 * limit:
                raise ValueError(f"it takes more than {limit:,} bytes of memory")
        return columns_of(pa.Table.from_batches(batches, file.schema_arrow).unify_dictionaries())


def columns_of(table: pa.Table) -> dict[str, Column]:
    """The columns of a table by name; ValueError for types that no result has."""
    return {name: _column_values(table[name], name) for name in table.column_names}


def reordered(columns: Mapping[str, Column], order: np.ndarray) -> dict[str, Column]:
    """Columns with their rows in another order."""
    return {name: _taken(column, order) for name, column in columns.items()}


def row_order(columns: Mapping[str, Column], wanted: Mapping[str, np.ndarray]) -> np.ndarray:
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


def list_column(lengths: np.ndarray, values: np.ndarray) -> pa.Array:
    """A column of lists: of row n the next lengths[n] of the values."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def number_column(values: np.ndarray) -> pa.Array:
    """A column of numbers: what is not known, NaN, is null."""
    return pa.array(values, from_pandas=True) if values.dtype.kind == "f" else pa.array(values)


def text_column(values: Iterable[str]) -> pa.Array:
    """A column of texts of which many are equal."""
    return pa.array(list(values), type=pa.string()).dictionary_encode()


def repeated_text(text: str, rows: int) -> pa.Array:
    """A column of one text in all rows, which takes its place once."""
    return pa.DictionaryArray.from_arrays(np.zeros(rows, dtype=np.int32), pa.array([text], type=pa.string()))


def data_frame(table: pa.Table) -> Any:
    """A table as a pandas.DataFrame, whole numbers with gaps as Int64; without pandas as a polars.DataFrame.

    Raises LenscopeError where neither is installed.
    """
    try:
        import pandas  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return _polars_frame(table)
    gaps = {f.name for f in table.schema if pa.types.is_integer(f.type) and table[f.name].null_count}
    frame = table.drop_columns(sorted(gaps)).to_pandas()
    for name in sorted(gaps):
        place = table.column_names.index(name)
        frame.insert(min(place, len(frame.columns)), name, pandas.array(table[name].to_pylist(), dtype="Int64"))
    return frame[table.column_names]


def columns_frame(columns: Mapping[str, Any]) -> Any:
    """Columns of equal length, by name, as a data frame: arrays (numbers that are NaN are null), or lists."""
    arrays = {n: number_column(v) if isinstance(v, np.ndarray) else pa.array(list(v)) for n, v in columns.items()}
    return data_frame(pa.table(arrays))


def _polars_frame(table: pa.Table) -> Any:
    try:
        import polars
    except ImportError as error:
        needs = "needs pandas or polars; run: pip install 'lenscope[pandas]', or pip install polars"
        raise LenscopeError(f"to_dataframe: {needs}") from error
    return polars.from_arrow(table)


def _memory_limit(path: Path) -> int:
    """The most bytes that the table of a file may take; ValueError for one that says that it takes more."""
    size = path.stat().st_size
    limit = max(SMALL, TIMES * size)
    values, unpacked = declared_sizes(path)
    if 8 * values > limit or unpacked > limit:
        raise ValueError(f"it says that it holds {values:,} values, far more than a file of {size:,} bytes can")
    return limit


def _column_values(column: pa.ChunkedArray, name: str) -> Column:
    held = column.type
    if pa.types.is_list(held) or pa.types.is_large_list(held):
        if column.null_count:
            raise ValueError(f"column {name}: lacks lists")
        array = column.combine_chunks()
        array = array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)
        return array.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64), _number_values(
            array.flatten(), name
        )
    if pa.types.is_string(held) or pa.types.is_large_string(held) or pa.types.is_dictionary(held):
        if column.null_count and name != HEAD:
            raise ValueError(f"column {name}: lacks texts")
        encoded = column if pa.types.is_dictionary(held) else column.dictionary_encode()
        if not pa.types.is_string(encoded.type.value_type) and not pa.types.is_large_string(encoded.type.value_type):
            raise ValueError(f"column {name}: holds {held}")
        texts: list[str] = []
        for chunk in encoded.chunks:
            known = chunk.dictionary.to_pylist()
            texts += ["" if n is None else known[n] for n in chunk.indices.to_pylist()]
        return texts
    return _number_values(column, name)


def _number_values(values: Any, name: str) -> np.ndarray:
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
