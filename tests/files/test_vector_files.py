"""Files of vectors and labels: every kind read alike, nothing run, and one line for what is none."""

import gzip
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

import lenscope as ls
from lenscope.files.vector_files import read_labels, read_token_rows, read_vectors

VECTORS = torch.randn(5, 3)


def written(path, value=VECTORS):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({"anything": value}, path)
    elif path.suffix == ".npy":
        np.save(path, value.numpy())
    else:
        pq.write_table(pa.table({"vectors": value.tolist(), "name": ["x"] * len(value)}), path)
    return path


@pytest.mark.parametrize("ending", [".safetensors", ".npy", ".parquet"])
def test_every_kind_of_file_is_read(tmp_path, ending):
    got = read_vectors(written(tmp_path / f"v{ending}"))
    assert torch.allclose(got.float(), VECTORS)
    (tmp_path / f"v{ending}").write_bytes(b"\x93NUMPY no file")
    with pytest.raises(ls.LenscopeError) as error:
        read_vectors(tmp_path / f"v{ending}")
    assert "\n" not in str(error.value)


def test_one_of_several_tensors_is_named(tmp_path):
    path = tmp_path / "v.safetensors"
    safetensors.torch.save_file({"vectors": VECTORS, "other": torch.ones(1)}, path)
    assert read_vectors(path).equal(VECTORS)
    safetensors.torch.save_file({"a": VECTORS, "b": torch.ones(1)}, path)
    with pytest.raises(ls.LenscopeError, match=re.escape("holds a, b; name the vectors 'vectors'")):
        read_vectors(path)


def test_three_axes_are_layers(tmp_path):
    assert read_vectors(written(tmp_path / "v.npy", torch.ones(2, 3, 4))).shape == (2, 3, 4)


def test_what_holds_no_vectors_is_refused(tmp_path):
    cases = {
        "objects.npy": np.array([{"a": 1}, None], dtype=object),
        "flat.npy": np.ones(3),
        "text.npy": np.array(["a", "b"]),
        "nan.npy": np.full((2, 2), np.nan),
        "empty.npy": np.ones((0, 3)),
    }
    for name, value in cases.items():
        np.save(tmp_path / name, value, allow_pickle=True)
        with pytest.raises(ls.LenscopeError) as error:
            read_vectors(tmp_path / name)
        assert name in str(error.value), name
        assert "\n" not in str(error.value)
    with pytest.raises(ls.LenscopeError, match=r"give vectors in a \.safetensors, \.npy, \.parquet file"):
        read_vectors(tmp_path / "v.pt")
    with pytest.raises(ls.LenscopeError, match=r"missing\.npy"):
        read_vectors(tmp_path / "missing.npy")


def test_a_header_that_promises_more_than_there_is_allocates_nothing(tmp_path):
    path = written(tmp_path / "v.npy")
    raw = path.read_bytes()
    big = raw.replace(b"'shape': (5, 3), }        ", b"'shape': (50000000, 3), } ")
    assert len(big) == len(raw)
    path.write_bytes(big)
    with pytest.raises(ls.LenscopeError, match="is no file of vectors"):
        read_vectors(path)


def test_labels_are_lines_or_json(tmp_path):
    (tmp_path / "l.txt").write_text("Paris\nThe Moon\n")
    (tmp_path / "l.jsonl").write_text('"Paris"\n{"label": "The Moon", "more": 1}\n')
    with gzip.open(tmp_path / "l.txt.gz", "wt") as file:
        file.write("Paris\nThe Moon\n")
    for name in ("l.txt", "l.jsonl", "l.txt.gz"):
        assert read_labels(tmp_path / name) == ["Paris", "The Moon"]
    (tmp_path / "l.txt").write_text("Paris\n\nThe Moon\n")
    with pytest.raises(ls.LenscopeError, match="line 2: is empty"):
        read_labels(tmp_path / "l.txt")
    (tmp_path / "l.jsonl").write_text('{"name": "x"}\n')
    with pytest.raises(ls.LenscopeError, match='line 1: give a text, or an object with a text as "label"'):
        read_labels(tmp_path / "l.jsonl")


def test_rows_of_tokens(tmp_path):
    path = tmp_path / "r.jsonl"
    rows = [{"prompt": "the cat", "token": "cat", "label": "animal"}, {"prompt": "Paris", "label": "city"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_token_rows(path) == [("the cat", "cat", "animal"), ("Paris", -1, "city")]
    for bad in ("[]", '{"prompt": "x"}', '{"prompt": "x", "label": 3}', '{"prompt": "x", "label": "y", "token": 1.5}'):
        path.write_text(bad)
        with pytest.raises(ls.LenscopeError, match="line 1: give an object"):
            read_token_rows(path)
    path.write_text("")
    with pytest.raises(ls.LenscopeError, match="has no rows"):
        read_token_rows(path)
