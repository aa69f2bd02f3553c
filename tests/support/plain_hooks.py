"""The oracle of all tests: a transformers model run with hooks on its blocks, whole prompts, without caches.

Knows: torch's hooks. Does not know: lenscope, which it is what the tests compare with.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

# a change of the stream (B, T, D) behind a number of blocks
Change = Callable[[Tensor], Tensor]


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The blocks: the longest list of modules of one class that has as many as the configuration says."""
    config = model.config.get_text_config()
    count = getattr(config, "num_hidden_layers", None) or config.n_layer
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    assert lists, f"{type(model).__name__} has no list of {count} blocks"
    return lists[0]


@torch.no_grad()
def run_with_hooks(
    model: nn.Module, ids: Any, changes: Mapping[int, Change] | None = None, hidden: Iterable[tuple[int, int, int]] = ()
) -> tuple[Tensor, Tensor]:
    """States (L + 1, B, T, D) of the stream and logits (B, T, V), computed anew from rows of ids of one length (B, T).

    `changes` are made of the stream behind so many blocks, the states being those after the change. `hidden` are
    (block, query, key), blocks counted from 1: keys that queries of that block may not see.
    """
    blocks, changes, hidden = blocks_of(model), changes or {}, tuple(hidden)
    rows = torch.as_tensor(ids)
    rows = rows[None] if rows.dim() == 1 else rows
    states: dict[int, Tensor] = {}

    def at(layer: int, h: Tensor) -> Tensor:
        states[layer] = changes[layer](h) if layer in changes else h
        return states[layer]

    def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        n = list(blocks).index(block)
        if n == 0:
            if args:
                args = (at(0, args[0]), *args[1:])
            else:
                kwargs = {**kwargs, "hidden_states": at(0, kwargs["hidden_states"])}
        if hidden:
            mask = torch.full((rows.shape[1],) * 2, -torch.inf, dtype=next(model.parameters()).dtype).triu(1)
            for at_block, query, key in hidden:
                if at_block == n + 1:
                    mask[query, key] = -torch.inf
            kwargs = {**kwargs, "attention_mask": mask[None, None]}
        return args, kwargs

    def after(block: nn.Module, _: Any, output: Any) -> Any:
        layer = list(blocks).index(block) + 1
        return (at(layer, output[0]), *output[1:]) if isinstance(output, tuple) else at(layer, output)

    with ExitStack() as undo:
        for block in blocks:
            undo.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
            undo.callback(block.register_forward_hook(after).remove)
        logits = model(input_ids=rows, use_cache=False).logits
    return torch.stack([states[n] for n in range(len(blocks) + 1)]), logits


def write_greedily(
    model: nn.Module, ids: Sequence[int], count: int, changes: Mapping[int, Change] | None = None
) -> list[int]:
    """Ids after a prompt, each the most probable, every one from the whole text anew; an end token is the last."""
    written: list[int] = []
    while len(written) < count and (not written or written[-1] != model.config.eos_token_id):
        _, logits = run_with_hooks(model, [*ids, *written], changes)
        written.append(int(logits[0, -1].argmax()))
    return written


def put(position: int, vector: Tensor) -> Change:
    """The change that puts a vector in place of the state at a position."""

    def change(h: Tensor) -> Tensor:
        h = h.clone()
        h[:, position] = vector
        return h

    return change


def hooks_of(lm):
    """How many hooks each module of a model has, before it runs and after."""
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in lm.model.modules()]
