"""Checkpoints are read as they were written, in files that no code can hide in, or refused in one line."""

import pickle

import pytest
import torch

from lenscope.distributed.checkpoints import read_tensors_into, write_tensors
from lenscope.distributed.processes import Group
from lenscope.errors import LenscopeError

TENSORS = {"a.0": torch.arange(6.0).view(2, 3), "a.1": torch.arange(3).bfloat16(), "size": torch.tensor([0.5])}
FILES = {"a.0": 1, "a.1": 2, "size": 1}


def empty(names=TENSORS):
    return {name: torch.empty_like(TENSORS[name]) for name in names}


def test_what_is_written_is_read_in_any_parts(tmp_path):
    digests = write_tensors(tmp_path / "new", TENSORS, FILES, Group())
    assert sorted(digests) == sorted(p.name for p in (tmp_path / "new").iterdir())
    assert len(digests) == 2
    for names in (TENSORS, ["a.1"], ["size"], []):
        read = empty(names)
        read_tensors_into(tmp_path / "new", read, digests, Group())
        assert all(read[name].equal(TENSORS[name]) for name in names)


def test_files_that_are_not_those_that_were_written_are_refused(tmp_path):
    digests = write_tensors(tmp_path, TENSORS, FILES, Group())
    path = tmp_path / sorted(digests)[0]
    content = path.read_bytes()
    for changed in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        path.write_bytes(changed)
        with pytest.raises(LenscopeError, match="damaged, or not those that were written") as error:
            read_tensors_into(tmp_path, empty(), digests, Group())
        assert len(str(error.value).splitlines()) == 1
    path.write_bytes(content)
    (tmp_path / "more.safetensors").write_bytes(content)
    with pytest.raises(LenscopeError, match="not those that were written"):
        read_tensors_into(tmp_path, empty(), digests, Group())


@pytest.mark.parametrize("wanted", [{"b": torch.zeros(1)}, {"a.0": torch.zeros(3, 3)}])
def test_what_was_not_written_is_refused_in_one_line(tmp_path, wanted):
    digests = write_tensors(tmp_path, TENSORS, FILES, Group())
    with pytest.raises(LenscopeError, match="cannot be read") as error:
        read_tensors_into(tmp_path, wanted, digests, Group())
    assert len(str(error.value).splitlines()) == 1


class Harmful:
    def __reduce__(self):
        return open, ("harm.txt", "w")


def test_no_pickle_is_written_or_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digests = write_tensors(tmp_path / "new", TENSORS, FILES, Group())
    assert all(name.endswith(".safetensors") for name in digests)
    (tmp_path / "new" / ".metadata").write_bytes(pickle.dumps(Harmful()))
    read_tensors_into(tmp_path / "new", empty(), digests, Group())
    assert not (tmp_path / "harm.txt").exists()


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LenscopeError, match="cannot be written") as error:
        write_tensors(tmp_path / "file" / "new", TENSORS, FILES, Group())
    assert len(str(error.value).splitlines()) == 1
