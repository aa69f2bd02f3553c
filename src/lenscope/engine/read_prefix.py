"""A prefix that is read once, from which any number of rows go on: also with gradients, and at any layer.

Knows: how what a model carries is given to many rows. Does not know: what rows read behind the prefix, whether going
on from it gives what reading anew gives: whoever uses it measures that.
"""

import copy
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from lenscope.engine.cache_layout import ATTENTION
from lenscope.errors import LenscopeError
from lenscope.models.batches import Running
from lenscope.models.carried_states import CacheStates, CarriedStates, nothing_read, picked_rows
from lenscope.models.language_model import LM
from lenscope.models.residual_stream import forward_kwargs
from lenscope.models.runner import EnoughRead


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
        return carried_by_rows(self.carried, self.lm.n_layers, count)


def carried_by_rows(carried: CarriedStates, blocks: int, count: int) -> CarriedStates:
    """A copy for `count` rows of what the first row carries; keys and values that are never written in are shared."""
    mine, index = carried.twin(), torch.zeros(count, dtype=torch.long)

    def pick(layer: Any) -> Any:
        if type(layer) not in ATTENTION or not isinstance(layer.keys, Tensor):
            return picked_rows(layer, index)
        one = copy.copy(layer)
        one.keys, one.values = (t[:1].expand(count, *t.shape[1:]) for t in (layer.keys, layer.values))
        return one

    for block in range(blocks):
        mine.arrange(block, (), pick)
    if isinstance(mine, CacheStates):
        mine.cache.layers = [pick(layer) for layer in mine.cache.layers]
    return mine


@torch.no_grad()
def read_behind(lm: LM, ids: Tensor, layers: Collection[int], carried: CarriedStates) -> dict[int, Tensor]:
    """The states (B, S, D) at `layers` of tokens `ids` (B, S) behind what was read before, which `carried` has then.

    The run ends at the highest of the layers, and no edit applies to it. Raises LenscopeError for states that are not
    finite.
    """
    runner, states = lm.runner, dict[int, Tensor]()
    highest = max(layers)

    def arrive(layer: int, h: Tensor) -> None:
        runner.require_finite(h, layer)
        states[layer] = h.to(lm.device, copy=True)
        if layer == highest:
            raise EnoughRead

    ids = ids.to(runner.input_device)
    with runner.running(Running.of_ids(ids)), ExitStack() as undo:
        for layer in sorted(set(layers)):
            undo.callback(runner.hook(layer, lambda h, layer=layer: arrive(layer, h)).remove)
        given = undo.enter_context(carried.passed(ids))
        try:
            lm.model(input_ids=ids, **given)
        except EnoughRead:
            pass
    if len(states) != len(set(layers)):
        missing = min(set(layers) - set(states))
        raise LenscopeError(f"layer {missing}: did not run; {lm.name} was changed after loading, load it again")
    return states
