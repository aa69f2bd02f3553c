"""Rows of patches, run in each mode."""

import numpy as np
import pytest
import torch

import lenscope as ls
from lenscope.engine import sweep
from lenscope.engine.patched_rows import PatchedRows
from lenscope.models.edits import add, replace

PROMPT = "The capital of France is"


@pytest.mark.parametrize("mode", ["cascade", "fork", "plain"])
def test_patches_of_one_place_are_made_in_the_order_given(lm64, mode):
    """Replaced, then added to; added to, then replaced: another order gives another state."""
    u, v = torch.randn(2, 32, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    prompt = lm64.prompt(PROMPT)
    at = len(prompt) - 2
    made = PatchedRows(
        (prompt,),
        np.zeros(2, dtype=np.int64),
        torch.stack([u, v]),
        np.array([0, 0, 1, 1]),
        np.array([2, 2, 2, 2]),
        np.array([at] * 4),
        np.array([0, 1, 1, 0]),
        np.array([0, 1, 1, 0]),
        (replace, add),
    )
    found = {
        row: h for some, states in sweep.predict(lm64, made, mode=mode) for row, h in zip(some, states, strict=True)
    }
    for row, edits in enumerate(
        ((ls.Edit(2, at, u), ls.Edit(2, at, v, add)), (ls.Edit(2, at, v, add), ls.Edit(2, at, u)))
    ):
        with lm64.edit(*edits):
            assert torch.allclose(found[row][-1], lm64.read(prompt)[-1, -1], atol=1e-10)


@pytest.mark.parametrize("mode", ["cascade", "fork"])
def test_states_before_the_first_patch_are_there_when_they_are_asked_for(lm64, mode):
    """The last three positions of a row that is patched at the last of them."""
    prompt = lm64.prompt(PROMPT)
    made = PatchedRows(
        (prompt,),
        np.zeros(1, dtype=np.int64),
        torch.ones(1, 32, dtype=torch.float64),
        *(np.array([n]) for n in (0, 2, len(prompt) - 1, 0, 0)),
        (replace,),
    )
    ((_, found),) = sweep.predict(lm64, made, last=3, mode=mode)
    with lm64.edit(ls.Edit(2, -1, torch.ones(32, dtype=torch.float64))):
        expected = lm64.read(prompt)[-1, -3:]
    assert found.shape == (1, 3, 32)
    assert torch.allclose(found[0], expected, atol=1e-10)
