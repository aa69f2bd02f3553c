"""Which controls there are of a Patchscope's vectors, by name, and what each of them patches.

Knows: what stands in a vector's place in every control, which controls exist for a Patchscope, a map and its vectors.
Does not know: what is generated or scored (with_controls.py, label_likelihoods.py).
"""

import copy
import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.models.edits import as_vectors
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.prompts import Prompt
from lenscope.patchscopes.controls import prompts_with_text, random_vectors
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.sources import Layers, cells, gather
from lenscope.statistics.derangements import derange

# what is said of a vector itself, and without it
VECTOR, TEXT, NONE, RANDOM, SHUFFLED = CONDITIONS = "vector", "text", "no patch", "random vector", "shuffled source"
# one vector for all items, and what the map of a trained Patchscope adds
MEAN, UNTRAINED, UNIT, BIAS = "mean vector", "state itself", "unit vector, scaled", "bias alone"
# every control, in the order in which they are reported
CONTROLS = (TEXT, NONE, RANDOM, SHUFFLED, MEAN, UNTRAINED, UNIT, BIAS)
# those that are given the map of a Patchscope, or are made of it
OF_A_MAP = (UNTRAINED, UNIT, BIAS)


@dataclass(frozen=True, eq=False)
class ControlRun:
    """What is patched in one way of telling: the Patchscope, and its sources.

    `one` are the sources of the first item alone where all items have the same, so that one run stands for all of them;
    else None.
    """

    scope: Patchscope
    sources: HiddenStates | Tensor
    one: HiddenStates | Tensor | None = None

    @property
    def run(self) -> HiddenStates | Tensor:
        """The sources that have to be run."""
        return self.sources if self.one is None else self.one


def require_items(scope: Patchscope, states: HiddenStates | Tensor, layers: Layers) -> HiddenStates | Tensor:
    """Give the states or vectors of N items as they are patched: vectors as a tensor (N, D) or (N, K, D).

    Raises LenscopeError for several targets, for prompts of several positions, and for vectors that are not (N, D) or
    (N, K, D), or are to be patched at layers of their own, which they have none of.
    """
    if len(scope.targets) > 1:
        raise LenscopeError(f"scope: has {len(scope.targets)} targets; give a Patchscope with one target")
    if isinstance(states, HiddenStates):
        if any(len(places) != 1 for places in states.positions):
            raise LenscopeError("states: a prompt has several positions; give states of one position of each prompt")
        return states
    vectors = as_vectors(states, "states")
    if vectors.ndim not in (2, 3):
        raise LenscopeError(f"vectors of shape {tuple(vectors.shape)}: give those of N items, (N, D) or (N, K, D)")
    chosen = scope.layers if layers is None else layers
    if isinstance(chosen, str):
        raise LenscopeError(f"layers {chosen!r}: vectors have no layer of their own; give the numbers of target layers")
    return vectors


def item_count(states: HiddenStates | Tensor) -> int:
    """How many items there are."""
    return len(states.prompts) if isinstance(states, HiddenStates) else len(states)


def cell_count(scope: Patchscope, states: HiddenStates | Tensor, layers: Layers) -> int:
    """How many cells a run of states has, over all items."""
    gathered = gather(states, scope.source_lm.name)
    return len(cells(gathered, scope.layers if layers is None else layers, scope.lm)[0])


def control_runs(
    scope: Patchscope,
    states: HiddenStates | Tensor,
    layers: Layers = None,
    wanted: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, ControlRun]:
    """What is patched in every way of telling that runs a vector, by name: the vectors themselves, and their controls.

    Controls that run no vector ("text", "no patch"), and the exchanged ones, which are run as the vectors themselves,
    are not among them.

    Args:
        scope: a Patchscope with one target.
        states: states of N prompts at one position each, or vectors (N, D) or (N, K, D).
        layers: target layers, as of `Patchscope.generate`.
        wanted: names of controls; None: all that exist.
        seed: fixes the random vectors.

    Raises LenscopeError for a name of no control, and for a control that does not exist for this Patchscope.
    """
    for name in wanted or ():
        if name not in CONTROLS:
            raise LenscopeError(f"control {name!r}: there are {', '.join(CONTROLS)}")
    why_not = _missing_controls(scope, states, layers)
    asked = CONTROLS if wanted is None else wanted
    missing = [] if wanted is None else [name for name in wanted if name in why_not]
    if missing:
        raise LenscopeError(f"control {missing[0]!r}: {why_not[missing[0]]}")
    makers: dict[str, Callable[[], ControlRun]] = {
        RANDOM: lambda: ControlRun(scope, random_vectors(states, seed)),
        MEAN: lambda: _same_for_all(scope, states, _tensor_of_items(states).mean(0, keepdim=True)),
        UNTRAINED: lambda: ControlRun(_with_map(scope, None), states),
        UNIT: lambda: ControlRun(_with_map(scope, _scaled_to(_embedding_norm(scope))), states),
        BIAS: lambda: _same_for_all(scope, states, torch.zeros_like(_tensor_of_items(states)[:1])),
    }
    chosen = [name for name in asked if name in makers and name not in why_not]
    return {VECTOR: ControlRun(scope, states), **{name: makers[name]() for name in chosen}}


def exchanged_items(answers: Sequence[Hashable] | None, count: int, seed: int) -> list[int]:
    """For each of N items the number of another one, whose answer differs where `answers` (N,) are given."""
    if answers is not None and len(answers) != count:
        raise LenscopeError(f"answers: {len(answers)} for {count} items; give one for each")
    return derange(range(count) if answers is None else answers, seed)


def text_prompts(scope: Patchscope, texts: Sequence[str], count: int) -> list[Prompt]:
    """The target prompt with each of N texts in the place of its placeholders, in tokens.

    Raises LenscopeError where there are not as many texts as items, where the target has edits of its own (a soft
    prompt), whose places a text would move, and as `prompts_with_text` does.
    """
    if len(texts) != count:
        raise LenscopeError(f"{len(texts)} texts, {count} items: give one text for each")
    if scope.fixed[0]:
        raise LenscopeError(
            "texts: the target prompt has edits of its own, which a text in the placeholder's place would move; leave "
            "the texts out"
        )
    ((own, places),) = scope.resolved
    prompts = [scope.lm.prompt(text) for text in prompts_with_text(scope, texts)]
    before = _tokens_put_before(scope.lm.prompt(own.text), own, places[0])
    return [scope.lm.prompt(list(p.ids[before:])) for p in prompts] if before else prompts


def _tokens_put_before(again: Prompt, own: Prompt, first: int) -> int:
    """How many tokens a tokenizer puts before the target's text that the target, such as a chat, begins without."""
    begin = own.ids[: max(1, first)]
    return next((k for k in range(3) if again.ids[k : k + len(begin)] == begin), 0)


def _missing_controls(scope: Patchscope, states: HiddenStates | Tensor, layers: Layers) -> dict[str, str]:
    """The controls that do not exist here, and why."""
    why: dict[str, str] = {}
    if item_count(states) < 2:
        why |= dict.fromkeys((SHUFFLED, MEAN), "there is one item; give at least two")
    if scope.f is None:
        why |= dict.fromkeys(OF_A_MAP, "the Patchscope has no map f, so that the vector is the state itself")
        return why
    width = _tensor_of_items(states).shape[-1]
    if width != scope.lm.hidden_size:
        why |= dict.fromkeys(
            (UNTRAINED, UNIT),
            f"vectors have {width} numbers, and states of {scope.lm.name} {scope.lm.hidden_size}, so that they cannot "
            "be patched without the map",
        )
    zero = _same_for_all(scope, states, torch.zeros_like(_tensor_of_items(states)[:1]))
    mapped = scope.plan(zero.run, layers).rows.vectors
    if not torch.isfinite(mapped).all() or not mapped.any():
        why[BIAS] = "the map makes nothing of the zero vector, so that it has no bias"
    return why


def _tensor_of_items(states: HiddenStates | Tensor) -> Tensor:
    return states.tensor if isinstance(states, HiddenStates) else states


def _same_for_all(scope: Patchscope, states: HiddenStates | Tensor, vector: Tensor) -> ControlRun:
    """One vector in the place of all."""
    whole = vector.expand_as(_tensor_of_items(states))
    if not isinstance(states, HiddenStates):
        return ControlRun(scope, whole, whole[:1])
    last = states.last
    if last is None and states.n_layers in states.layers:
        last = states.tensor[:, states.layers.index(states.n_layers)]
    every = dataclasses.replace(states, tensor=whole, last=last)
    return ControlRun(scope, every, every.split()[0])


def _with_map(scope: Patchscope, f: Callable[..., Any] | None) -> Patchscope:
    """The same Patchscope with another map."""
    other = copy.copy(scope)
    other.f = f
    return other


def _embedding_norm(scope: Patchscope) -> float:
    """The mean norm of the states of the target prompt's tokens before the first block."""
    states = scope.lm.read(scope.resolved[0][0], 0).tensor[0, 0]
    return float(states.double().norm(dim=-1).mean())


def _scaled_to(norm: float) -> Callable[[Tensor], Tensor]:
    def unit_vector_scaled(h: Tensor) -> Tensor:
        wide = h.double() if h.dtype == torch.float64 else h.float()
        return norm * wide / wide.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(wide.dtype).tiny)

    return unit_vector_scaled


def for_every_item(table: np.ndarray, count: int) -> np.ndarray:
    """A table of one item's cells (1, C) for each of N items (N, C); a table of N items as it is."""
    return np.repeat(table, count, 0) if len(table) == 1 < count else table
