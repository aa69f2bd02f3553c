"""Blocks of states know which token each state is of."""

from small_fits import LENGTH, documents

from lenscope.distributed.layer_owners import LayerOwners
from lenscope.distributed.processes import Group
from lenscope.fitting import state_block
from lenscope.text.corpus import Corpus


def test_states_know_what_comes_next(lm):
    (batch,) = Corpus.open(lm, documents(), length=LENGTH).batches(2 * LENGTH, 2)
    block = state_block.StateBlock(lm, LayerOwners(lm.n_layers, Group(), Group()), 2, LENGTH, None)
    block.read(batch, range(2))
    assert block.following.tolist() == [*batch.ids[0, 1:].tolist(), -1, *batch.ids[1, 1:].tolist(), -1]
