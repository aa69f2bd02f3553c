"""Trajectories of a run that a state of another run was written into, and which of its cells may change.

Knows: how a state, mapped where it is another model's, is put at a layer and position of the run that a lens reads.
Does not know: how states are edited, how trajectories are computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace as replaced
from typing import Any

import numpy as np
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.lenses.lens import Lens
from lenscope.lenses.trajectory import Trajectory
from lenscope.models.edits import Edit, Operation, replace
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.language_model import PromptLike
from lenscope.models.layers import check_layers
from lenscope.models.prompts import Position, Positions
from lenscope.patchscopes.sources import Vectors, gather


def patched_trajectory(
    lens: Lens,
    prompt: PromptLike,
    state: HiddenStates | Tensor,
    layer: int,
    position: Position,
    *,
    op: Operation = replace,
    f: Callable[..., Any] | None = None,
    layers: Sequence[int] | None = None,
    positions: Positions | None = None,
    target: str | int | None = None,
    top_k: int = 5,
) -> Trajectory:
    """Read the trajectory of a run with a state written into it, as `Lens.trajectory` gives it within that edit.

    Only the cells of `causal_cone` have other distributions than without the patch. KL compares with the patched run's
    own prediction, so that below the cone it moves with that. `provenance["patch"]` says what was written where. Raises
    LenscopeError for more than one state, layers and positions that do not exist, and where the state does not fit the
    model.

    Args:
        lens: what reads the run.
        prompt: a text, token ids or a Prompt.
        state: hidden states of one layer and position, or a vector (D,).
        layer: where it is written, 0…n_layers.
        position: an index, or a substring of the prompt.
        op: how it is written (`lenscope.models.edits`); by default it replaces the run's state.
        f: maps states of the other model, as of a Patchscope; None: identity.
        layers: which layers are read; by default all that the lens has.
        positions: which positions are read; by default all.
        target: the token that cross_entropy and rank are about; by default each position's next one.
        top_k: how many of the most probable tokens are listed.
    """
    lm = lens.lm
    source = gather(state, lm.name)
    if len(source.addresses) != 1 or source.vectors.shape[1] != 1:
        number_of = source.vectors.shape[0] * source.vectors.shape[1]
        raise LenscopeError(f"state: these are {number_of} states; give one, of one layer and position")
    one = lm.prompt(prompt)
    (number,) = check_layers((layer,), lm.n_layers, lm.name)
    place = one.position(position)
    table = Vectors(source, f, lm)
    vectors, _ = table.table(table.at(np.array([0]), np.array([number]), 0))
    with lm.edit(Edit(number, place, vectors[0], op)):
        trajectory = lens.trajectory(one, layers, positions, target=target, top_k=top_k)
    (address,) = source.addresses
    patch = {
        "layer": number,
        "position": place,
        "op": getattr(op, "__name__", type(op).__name__),
        "source": {"model": address.model, "text": address.text, "layer": address.layer, "position": address.position},
    }
    return replaced(trajectory, provenance={**trajectory.provenance, "patch": patch})


def causal_cone(trajectory: Trajectory, layer: int, position: int) -> np.ndarray:
    """Which cells of a trajectory a patch at one layer and position may change, (L, P).

    At the layer itself that is the position; above it all positions from there on. All other cells stay as they are.
    """
    layers, places = np.array(trajectory.layers)[:, None], np.array(trajectory.positions)[None]
    return ((layers == layer) & (places == position)) | ((layers > layer) & (places >= position))
