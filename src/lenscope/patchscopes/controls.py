"""What a patched vector is compared with: no state, another prompt's state, the text itself.

Knows: how a control is made of hidden states, and of a target prompt. Does not know: what is scored.
A run of the target prompt alone, without a patch, needs nothing from here: `lm.generate(target.prompt)`.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import overload

import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.models.edits import as_vectors
from lenscope.models.hidden_states import HiddenStates
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.statistics.derangements import derange


@overload
def random_vectors(states: HiddenStates, seed: int = 0) -> HiddenStates: ...
@overload
def random_vectors(states: Tensor, seed: int = 0) -> Tensor: ...
def random_vectors(states: HiddenStates | Tensor, seed: int = 0) -> HiddenStates | Tensor:
    """Give random directions in place of states, or of vectors (..., D), each as long as the one that it stands for.

    Addresses of states stay, so that a Patchscope reads and scores them as it does the states. Vectors are a tensor or
    an array; LenscopeError for all else.
    """
    if not isinstance(states, HiddenStates):
        return random_like(as_vectors(states, "states"), seed)
    return _in_place_of(states, random_like(states.tensor, seed))


def random_like(h: Tensor, seed: int = 0) -> Tensor:
    """Random directions, each as long as the vector of h (..., D) that it stands for."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.randn(h.shape, generator=draw, dtype=torch.float64)
    directions *= h.double().norm(dim=-1, keepdim=True).cpu() / directions.norm(dim=-1, keepdim=True)
    return directions.to(h.device, h.dtype)


@overload
def shuffled_sources(
    states: HiddenStates, answers: Sequence[Hashable] | None = None, seed: int = 0
) -> HiddenStates: ...
@overload
def shuffled_sources(states: Tensor, answers: Sequence[Hashable] | None = None, seed: int = 0) -> Tensor: ...
def shuffled_sources(
    states: HiddenStates | Tensor, answers: Sequence[Hashable] | None = None, seed: int = 0
) -> HiddenStates | Tensor:
    """Give each prompt the states of another one, at all layers and positions; addresses stay. Also of vectors (N, …).

    `answers` are what the prompts' states are asked for: where given, no prompt has the states of one with the same
    answer. Raises LenscopeError where prompts have different numbers of positions, and where half or more of them have
    one answer in common, so that there is no such exchange.
    """
    if not isinstance(states, HiddenStates):
        states = as_vectors(states, "states")
    count = len(states) if isinstance(states, Tensor) else len(states.prompts)
    groups = list(range(count)) if answers is None else list(answers)
    if len(groups) != count:
        raise LenscopeError(f"answers: {len(groups)} for {count} prompts; give one for each")
    lengths = [] if isinstance(states, Tensor) else sorted({len(p) for p in states.positions})
    if len(lengths) > 1:
        raise LenscopeError(
            f"states: are of {lengths[0]} to {lengths[-1]} positions of a prompt; read the same number of each prompt"
        )
    return rearranged(states, derange(groups, seed))


def rearranged(states: HiddenStates | Tensor, order: Sequence[int]) -> HiddenStates | Tensor:
    """The states, or vectors (N, …), of other items in the place of each: item n has those of `order[n]`."""
    if isinstance(states, Tensor):
        return states[torch.tensor(order, device=states.device)]
    return _in_place_of(states, states.tensor[torch.tensor(order)])


def prompts_with_text(scope: Patchscope, texts: Sequence[str]) -> list[str]:
    """Put a text in the place of each placeholder of a target prompt: what words tell instead of a vector.

    What `scope.lm` says after such a prompt is what the words alone tell, which a hidden state has to better. Raises
    LenscopeError for several targets, and where a placeholder is no part of the text.
    """
    if len(scope.resolved) > 1:
        raise LenscopeError(f"scope: has {len(scope.resolved)} targets; give a Patchscope with one")
    ((prompt, places),) = scope.resolved
    spans: list[tuple[int, int]] = []
    for place in places:
        start, stop = prompt.spans[place]
        token = prompt.text[start:stop]
        if not token.strip():
            raise LenscopeError(
                f"position {place}: no text of the target prompt is there to be replaced; put the placeholder on a word"
            )
        start += len(token) - len(token.lstrip())
        # placeholders that stand side by side are one place for a text
        side = bool(spans) and not prompt.text[spans[-1][1] : start].strip()
        spans = [*spans[:-1], (spans[-1][0], stop)] if side else [*spans, (start, stop)]
    prompts = []
    for text in texts:
        if not text.strip():
            raise LenscopeError(f"text {text!r}: it is empty; give what the hidden state was read from")
        whole = prompt.text
        for start, stop in reversed(spans):
            whole = whole[:start] + text.strip() + whole[stop:]
        prompts.append(whole)
    return prompts


def _in_place_of(states: HiddenStates, tensor: Tensor) -> HiddenStates:
    last = states.last
    if last is None and states.n_layers in states.layers:
        last = states.tensor[:, states.layers.index(states.n_layers)]
    return dataclasses.replace(states, tensor=tensor, last=last)
