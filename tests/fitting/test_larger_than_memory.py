"""Tensors are made one at a time; what a fit of streamed weights lacks is said in one line."""

from types import SimpleNamespace

import pytest
import torch

import lenscope as ls
from lenscope.fitting import larger_than_memory
from lenscope.fitting.larger_than_memory import TensorsOnDemand, require_streamed_fit


def test_each_tensor_is_made_when_it_is_asked_for():
    asked = []
    tensors = TensorsOnDemand(lambda n: asked.append(n) or torch.full((2,), float(n)), 4)
    assert (len(tensors), asked) == (4, [])
    assert tensors[-1].tolist() == [3, 3]
    assert [t[0].item() for t in tensors[1:3]] == [1, 2]
    assert asked == [3, 1, 2]
    assert [t[0].item() for t in tensors] == [0, 1, 2, 3]
    with pytest.raises(IndexError):
        tensors[4]


def test_what_a_streamed_fit_lacks_is_one_line(monkeypatch):
    lm, text = SimpleNamespace(name="big"), SimpleNamespace(documents=[1])
    require_streamed_fit(lm, text, "folder", "states")
    for corpus, folder, why in (
        (SimpleNamespace(documents=None), "folder", "give text to fit on"),
        (text, None, "states go to disk; give a folder"),
    ):
        with pytest.raises(ls.LenscopeError, match=f"^big: its weights are streamed from disk, and .*{why}"):
            require_streamed_fit(lm, corpus, folder, "states")
    monkeypatch.setattr(larger_than_memory, "started_together", lambda: 2)
    with pytest.raises(ls.LenscopeError, match="without torchrun"):
        require_streamed_fit(lm, text, "folder", "states")
