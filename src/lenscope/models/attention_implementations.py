"""Which implementation of attention a model computes with, chosen anew for a while.

Knows: the configurations that say it, and that all of them are as before afterwards.
Does not know: any implementation.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn


@contextmanager
def attention_by(model: nn.Module, choose: Callable[[Any], Any]) -> Iterator[None]:
    """Within the block, each part of a model computes attention by what `choose` makes of its implementation's name.

    Names are those of transformers, such as "sdpa" and "eager"; a configuration may also hold None, or a name for each
    of its parts. They are set without a question whether the model has such an implementation: who calls this has to
    see that its numbers are the model's own.
    """
    # not by the setter of a configuration, which asks its parts too
    all_configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in all_configs if hasattr(config, "_attn_implementation_internal")}
    before = [(config, config._attn_implementation_internal) for config in configs.values()]
    try:
        for config, name in before:
            config._attn_implementation_internal = choose(name)
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name


def eager_attention(model: nn.Module) -> AbstractContextManager[None]:
    """Within the block, attention is plain products of matrices ("eager") where it was the fused one of torch."""
    return attention_by(model, lambda name: "eager" if name == "sdpa" else name)
