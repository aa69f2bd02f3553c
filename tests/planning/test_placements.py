"""Bytes of weights on each GPU, and what a pass moves."""

import pytest

from lenscope.errors import LenscopeError
from lenscope.planning.machines import machine
from lenscope.planning.model_shapes import model_shape
from lenscope.planning.placements import PLACEMENTS, Fleet, weight_bytes, weight_traffic

SHAPE = "layers=4,width=64,heads=4,vocab=1000"


@pytest.fixture(scope="module")
def four():
    return model_shape(SHAPE)


def test_weights_on_each_gpu(four):
    on = machine("h100")
    size, block, outside = 2, four.largest_block * 2, four.outside_blocks * 2
    assert weight_bytes(four, Fleet(on, 1, "whole")) == four.parameters * size
    # FSDP2 splits the blocks alone; two are whole while they run
    assert weight_bytes(four, Fleet(on, 2, "fsdp")) == outside + 2 * block + 2 * block
    assert weight_bytes(four, Fleet(on, 4, "tensor")) == outside + block
    assert weight_bytes(four, Fleet(on, 1, "stream")) == outside + 2 * block
    with pytest.raises(LenscopeError, match=", ".join(PLACEMENTS)):
        weight_bytes(four, Fleet(on, 1, "elsewhere"))


def test_what_does_not_fit_is_fetched_in_each_pass(four):
    blocks, outside = four.blocks * 2, four.outside_blocks * 2
    # room for two blocks beside the one that runs
    small = machine("1T,1T", memory=(outside + 3 * blocks / 4) / 0.95)
    fleet = Fleet(small, 1, "offload")
    assert weight_bytes(four, fleet) == pytest.approx(small.usable)
    assert weight_traffic(four, fleet).fetched == pytest.approx(blocks / 4)
    assert weight_traffic(four, Fleet(machine("h100"), 1, "offload")).fetched == 0
    assert weight_traffic(four, Fleet(small, 1, "stream")).read == blocks
    assert weight_traffic(four, Fleet(small, 4, "fsdp")).sent == blocks * 3 / 4
