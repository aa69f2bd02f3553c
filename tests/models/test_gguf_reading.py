"""GGUF files read in less time give what they gave, and the gguf package is left as it was."""

import gguf
import ggufs
import numpy as np
from transformers import modeling_gguf_pytorch_utils as transformers_gguf

import lenscope as ls
from lenscope.models import gguf_reading


def test_a_header_is_read_once_and_as_before(tmp_path, monkeypatch, capsys):
    path = tmp_path / "whole.gguf"
    ggufs.write(path)
    read = []
    monkeypatch.setattr(
        gguf_reading._ArrayReader, "_build_fields", lambda self, *given: read.append(1) or fields(self, *given)
    )
    fields = gguf.GGUFReader._build_fields
    ls.load(path)
    assert read == [1]
    assert capsys.readouterr() == ("", "")
    with gguf_reading.headers_read_once():
        here, again = gguf.GGUFReader(path), gguf.GGUFReader(path)
    there = gguf.GGUFReader(path)
    assert here is again
    assert here.fields.keys() == there.fields.keys()
    for name, field in here.fields.items():
        assert all(np.array_equal(a, b) for a, b in zip(field.parts, there.fields[name].parts, strict=True))
        assert (field.types, field.data) == (there.fields[name].types, there.fields[name].data)
    for mine, theirs in zip(here.tensors, there.tensors, strict=True):
        assert mine.name == theirs.name
        assert np.array_equal(mine.data, theirs.data)


def test_the_gguf_package_is_left_as_it_was():
    def steps():
        return gguf.GGUFReader, gguf.get_tensor_name_map, getattr(transformers_gguf, "tqdm", None)

    before = steps()
    with gguf_reading.headers_read_once(), gguf_reading.headers_read_once():
        assert all(a is not b for a, b in zip(steps(), before, strict=True))
    assert steps() == before
