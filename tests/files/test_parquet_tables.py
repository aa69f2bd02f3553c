"""Parquet tables: bombs are not read, long texts take their place once, data frames say what they need."""

import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from every_result import KINDS, every_result

import lenscope as ls
from lenscope.files.parquet_tables import columns_frame


@pytest.fixture
def made():
    return every_result()


def test_a_small_table_that_says_it_is_large_is_not_read(made, tmp_path):
    """Equal values take no room in a file: 40 million rows in some kilobytes."""
    made["trajectory"].save(tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    rows = 40_000_000
    one = pa.table({name: pa.array([0], table[name].type).take(pa.array(np.zeros(rows, dtype=np.int8)))
                    for name in ("layer", "position")})  # fmt: skip
    path = tmp_path / "large.parquet"
    pq.write_table(one.replace_schema_metadata(table.schema.metadata), path)
    del one
    assert path.stat().st_size < 500_000
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(ls.LenscopeError, match="far more than a file of"):
        ls.load_results(path)
    assert pa.default_memory_pool().max_memory() == before


def test_a_long_text_that_every_row_repeats_takes_its_place_once(made, tmp_path):
    made["predicted"].save(tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    rows = 20_000
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array(["x" * 1_000_000]))
    path = tmp_path / "long.parquet"
    pq.write_table(pa.table({"text": text}).replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(ls.LenscopeError):
        ls.load_grid(path)
    assert pa.default_memory_pool().max_memory() < 1 << 30


@pytest.mark.parametrize(("kind", "column"), [("trajectory", "prompt"), ("comparison", "prompt_second")])
def test_a_long_prompt_takes_its_place_once_in_the_rows_of_all_cells(made, kind, column):
    """Rows of 3,000 tokens at 31 layers would take gigabytes."""
    result = made[kind]
    long = {"text": "x" * 1_000_000}
    result = replace(result, second=replace(result.second, **long)) if kind == "comparison" else replace(result, **long)
    rows = result._rows()
    assert len(rows) >= 4
    assert rows.nbytes < 1_100_000
    assert set(rows[column].to_pylist()) == {long["text"]}


def test_data_frames(made, monkeypatch):
    pandas = pytest.importorskip("pandas")
    for kind in KINDS:
        frame = made[kind].to_dataframe()
        assert isinstance(frame, pandas.DataFrame)
        assert len(frame)
    frame = made["trajectory"].to_dataframe()
    assert str(frame["rank"].dtype) == "Int64"
    assert frame["rank"].isna().sum() == len(made["trajectory"].layers)


@pytest.mark.parametrize("kind", KINDS)
def test_data_frames_are_of_polars_where_only_that_is_installed(made, monkeypatch, kind):
    polars = pytest.importorskip("polars")
    columns = list(made[kind].to_dataframe())
    monkeypatch.setitem(sys.modules, "pandas", None)
    frame = made[kind].to_dataframe()
    assert isinstance(frame, polars.DataFrame)
    assert frame.columns == columns
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ls.LenscopeError, match=r"run: pip install 'lenscope\[pandas\]', or pip install polars"):
        made[kind].to_dataframe()


def test_columns_as_a_data_frame():
    pytest.importorskip("pandas")
    frame = columns_frame({"a": [1, None], "b": np.array([0.5, np.nan]), "c": ("x", "y")})
    assert [str(t) for t in frame.dtypes[:2]] == ["Int64", "float64"]
    assert frame["a"].isna().tolist() == [False, True]
    assert frame["c"].tolist() == ["x", "y"]
