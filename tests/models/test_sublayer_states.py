"""States within blocks: of batches as of single prompts, in edited runs, at the points and layers that there are."""

import pytest
import tiny
import torch

import lenscope as ls
from lenscope.models import edits
from lenscope.models.deviations import deviation
from lenscope.models.sublayer_states import check_point, read_points


def test_a_batch_of_prompts_is_read_as_each_alone(lm):
    many = [tiny.ids(lm.model, 1, n, seed=n)[0].tolist() for n in (7, 4, 6)]
    together = read_points(lm, many, "attention", [1, 4], -1).split()
    for ids, states in zip(many, together, strict=True):
        alone = read_points(lm, ids, "attention", [1, 4], -1)
        assert deviation(states.tensor, alone.tensor) <= 1e-4
        assert deviation(states.last, alone.last) <= 1e-4
        assert states.positions == ((len(ids) - 1,),)


def test_layers_may_stand_in_any_order(lm):
    there, back = (read_points(lm, "The cat sat", "attention", layers) for layers in ([1, 3], [3, 1]))
    assert torch.equal(there[3, :], back[3, :])
    assert torch.equal(there.tensor[:, 1], back.tensor[:, 0])


def test_the_points_of_an_edited_run_are_read(lm64):
    """An edit of a layer shows in the block above it, and not within the block that makes that layer."""
    states = lm64.read("The cat sat")
    plain = read_points(lm64, "The cat sat", "attention", [2, 3])
    with lm64.edit(ls.Edit(2, -1, states[0, 0], edits.add)):
        edited = read_points(lm64, "The cat sat", "attention", [2, 3])
    assert torch.equal(plain[2, :], edited[2, :])
    assert deviation(edited[3, -1], plain[3, -1]) > 1e-2
    assert torch.equal(plain[3, 0], edited[3, 0])


def test_nothing_is_left_behind(lm):
    read_points(lm, "The cat", "mlp", [1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_what_there_is_not_is_refused(lm):
    with pytest.raises(ls.LenscopeError, match="points 'middle': give block, attention or mlp"):
        check_point("middle")
    with pytest.raises(ls.LenscopeError, match="layer 0: is made by no block"):
        read_points(lm, "The cat", "attention", [0, 1])
    with pytest.raises(ls.LenscopeError, match="layer 5"):
        read_points(lm, "The cat", "attention", [5])
