"""Rows of a file become trajectories whatever their order, and only where they are all there."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lenscope as ls
from lenscope.lenses.trajectory import save


def shuffled(path, rows, keep=None):
    table = pq.read_table(path)
    order = np.random.default_rng(0).permutation(table.num_rows)[:keep]
    pq.write_table(table.take(pa.array(order)), rows)


def test_rows_in_any_order_are_the_same_trajectories(lm, tmp_path):
    every = ls.Lens(lm).trajectory(["The cat", "a dog sat"])
    save(every, tmp_path / "a.parquet")
    shuffled(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert ls.load_results(tmp_path / "b.parquet") == every


def test_a_file_without_some_of_its_rows_is_refused(lm, tmp_path):
    save(ls.Lens(lm).trajectory(["The cat", "a dog sat"]), tmp_path / "a.parquet")
    shuffled(tmp_path / "a.parquet", tmp_path / "b.parquet", 12)
    with pytest.raises(ls.LenscopeError, match="is no"):
        ls.load_results(tmp_path / "b.parquet")
