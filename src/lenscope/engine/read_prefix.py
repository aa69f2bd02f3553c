"""A prefix that is read once, from which any number of rows go on: also with gradients, and at any layer.

Knows: how what a model carries is given to many rows. Does not know: what rows read behind the prefix, whether going
on from it gives what reading anew gives: whoever uses it measures that.
"""

from collections.abc import Sequence

import torch

from lenscope.models.carried_states import CacheStates, CarriedStates, nothing_read, picked_rows
from lenscope.models.language_model import LM
from lenscope.models.residual_stream import forward_kwargs


class ReadPrefix:
    """What a model carries after reading the tokens `ids`, for as many rows as are asked for."""

    def __init__(self, lm: LM, ids: Sequence[int]) -> None:
        self.lm = lm
        self.carried = nothing_read(lm.runner)
        read = torch.tensor([list(ids)], device=lm.runner.input_device)
        with lm.runner.exclusive.alone(), torch.no_grad(), self.carried.passed(read) as given:
            lm.model(input_ids=read, **forward_kwargs(lm.model, logits_to_keep=1), **given)

    def rows(self, count: int) -> CarriedStates:
        """A copy of it for so many rows, whose `passed` is given to the model's run."""
        mine, index = self.carried.twin(), torch.zeros(count, dtype=torch.long)
        for block in range(self.lm.n_layers):
            mine.arrange(block, (), lambda carried: picked_rows(carried, index))
        if isinstance(mine, CacheStates):
            mine.cache.layers = [picked_rows(layer, index) for layer in mine.cache.layers]
        return mine
