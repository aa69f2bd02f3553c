"""Files of tensors: each is read by its ending, and holds a dictionary."""

import pytest
import safetensors.torch
import torch

from lenscope.errors import LenscopeError
from lenscope.files.tensors import read_tensors


def test_a_file_is_read_by_its_ending(tmp_path):
    tensors = {"w": torch.arange(3.0)}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        assert read_tensors(tmp_path / name)["w"].equal(tensors["w"])


def test_what_holds_no_dictionary_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "a.pt")
    with pytest.raises(LenscopeError, match="holds a list, not a dictionary of tensors"):
        read_tensors(tmp_path / "a.pt")
