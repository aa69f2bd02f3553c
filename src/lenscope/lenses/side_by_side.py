"""Several lenses read beside each other: one run of the model, every lens's trajectory, and how far lenses are apart.

Knows: which layers all lenses have, that the states are read once. Does not know: what a result holds
(side_by_side_results.py), how logits are reduced (measures).
"""

from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np

from lenscope.errors import LenscopeError
from lenscope.lenses.lens import Lens
from lenscope.lenses.reduced_trajectory import float32_array
from lenscope.lenses.side_by_side_results import SideBySide
from lenscope.mappings.mapping import StateMap
from lenscope.measures.divergences import kl_between
from lenscope.models.batches import in_order
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.inputs import count
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.layers import check_layers
from lenscope.models.prompts import Positions, Prompt
from lenscope.models.provenance import provenance
from lenscope.models.sublayer_states import Point


@overload
def read_side_by_side(
    lm: LM, lenses: Mapping[str, StateMap | None], prompts: PromptLike, layers: Sequence[int] | None = ...,
    positions: Positions | None = ..., *, target: str | int | None = ..., top_k: int = ..., points: Point = ...,
) -> SideBySide: ...  # fmt: skip
@overload
def read_side_by_side(
    lm: LM, lenses: Mapping[str, StateMap | None], prompts: list[str | Prompt] | list[str],
    layers: Sequence[int] | None = ..., positions: Positions | None = ..., *, target: str | int | None = ...,
    top_k: int = ..., points: Point = ...,
) -> list[SideBySide]: ...  # fmt: skip
def read_side_by_side(
    lm: LM,
    lenses: Mapping[str, StateMap | None],
    prompts: Any,
    layers: Sequence[int] | None = None,
    positions: Positions | None = None,
    *,
    target: str | int | None = None,
    top_k: int = 5,
    points: Point = "block",
) -> SideBySide | list[SideBySide]:
    """Read a prompt through several lenses at once, and say where they agree; a list of prompts gives a list.

    Each trajectory is what `Lens.trajectory` gives through that lens alone. The model runs once for all lenses; each
    lens then takes one unembedding per layer, and two more for the distances between lenses.

    Args:
        lm: the model that all lenses read.
        lenses: at least two mappings f by name, as `Lens` takes them; None is the logit lens.
        prompts: a text, token ids or a Prompt, or a list of them.
        layers: which layers are read; by default all that every lens has.
        positions: which positions of each prompt are read; by default all.
        target: the token that cross_entropy and rank are about; by default each position's next one.
        top_k: how many of the most probable tokens are listed.
        points: where in a block states are read, as `Lens.trajectory` takes it.

    Raises LenscopeError for less than two lenses, a lens of another model, a layer that one of them lacks, and as
    `Lens.trajectory` does.
    """
    if not isinstance(lenses, Mapping) or len(lenses) < 2:
        raise LenscopeError("lenses: give at least two by name, such as {'logit lens': None, 'tuned': f}")
    sides = [Lens(lm, f, name=name) for name, f in lenses.items()]
    if len({side.name for side in sides}) < len(sides):
        raise LenscopeError("lenses: two of them have the same name; give each a name of its own")
    top_k = count(top_k, "top_k", 1, lm.vocab_size)
    chosen = None if target is None else lm.encoder.token_id(target)
    numbers = _shared_layers(sides, layers, points)
    batched, many = lm.encoder.prompts(prompts)
    source = provenance(lm)
    results = []
    for run in in_order(many, len, lm.runner.tokens_together):
        for states in sides[0]._read(run, numbers, positions, points).split():
            trajectories = tuple(s._reduced(states, numbers, chosen, top_k, source, points) for s in sides)
            results.append(SideBySide(trajectories, _kl_of(sides, states, numbers)))
    return results if batched else results[0]


def _shared_layers(sides: Sequence[Lens], layers: Sequence[int] | None, points: Point) -> tuple[int, ...]:
    """The layers that are asked for, by default all that every lens has; LenscopeError for one that a lens lacks."""
    lm, numbers = sides[0].lm, [side._layers(layers, points) for side in sides]
    if layers is None:
        shared = tuple(n for n in numbers[0] if all(n in others for others in numbers))
        if not shared:
            raise LenscopeError(f"lenses: {', '.join(side.name for side in sides)} have no layer that all of them read")
        return shared
    for side in sides:
        missing = {*check_layers(layers, lm.n_layers, lm.name)} - {*side.layers}
        if missing:
            have = ", ".join(map(str, side.layers))
            raise LenscopeError(f"layer {min(missing)}: {side.name} has maps for the layers {have}")
    return numbers[0]


def _kl_of(sides: Sequence[Lens], states: HiddenStates, layers: tuple[int, ...]) -> np.ndarray:
    """KL of every lens from every other, (n, n, L, P)."""
    lm = sides[0].lm
    return float32_array(kl_between(lm.runner.readout, lm.vocab_size, [s._mapped_all(states, layers) for s in sides]))
