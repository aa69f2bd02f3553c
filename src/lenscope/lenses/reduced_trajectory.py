"""From mapped states to a trajectory: the measures of a lens's readout at every layer and position of a prompt.

Knows: which token each position is measured by, which distribution is the final one, what a trajectory holds.
Does not know: how states are read and mapped (lens.py), how logits are reduced (measures).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.lenses.trajectory import Trajectory
from lenscope.measures.streamed import reduce
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.language_model import LM
from lenscope.models.sublayer_states import Point


def reduced_trajectory(
    lm: LM,
    states: HiddenStates,
    mapped: Tensor,
    layers: tuple[int, ...],
    name: str,
    about: dict[str, Any],
    *,
    target: int | None,
    top_k: int,
    points: Point,
    unmapped: bool,
    identity_at_last: bool,
) -> Trajectory:
    """The trajectory of one prompt whose states a lens has mapped.

    Args:
        lm: the model.
        states: of one prompt, with the final ones.
        mapped: what the lens makes of them, (L, P, D).
        layers: of `mapped`.
        name: of the lens.
        about: the provenance of the trajectory.
        target: the token that is followed; None: each position's next one.
        top_k: how many of the most probable tokens are listed.
        points: where in their blocks states were read.
        unmapped: whether `mapped` are the states themselves.
        identity_at_last: whether the lens leaves the last layer's states as they are.
    """
    (prompt,), (positions,) = states.prompts, states.positions
    device = states.tensor.device
    if target is None:
        following = [prompt.ids[p + 1] if p + 1 < len(prompt) else -1 for p in positions]
    else:
        following = [target] * len(positions)
    targets = torch.tensor(following, device=device)
    known = (targets >= 0).cpu()
    final = states[lm.n_layers, list(positions)] if states.last is None else states.last[0]
    has_final = layers[-1] == lm.n_layers and points == "block"
    r = reduce(
        lm.runner.readout,
        lm.vocab_size,
        mapped,
        final,
        targets.clamp_min(0),
        top_k,
        final_is_last=unmapped and has_final,
    )
    top_ids = r.top_ids.cpu().numpy()
    # what the model itself predicts, where the last of the layers does not say it
    own = None
    if not has_final or not identity_at_last:
        last = reduce(lm.runner.readout, lm.vocab_size, final[None], final, None, 1, final_is_last=True)
        own = tuple(last.top_ids[0, :, 0].tolist())
    occurring = sorted({*prompt.ids, *np.unique(top_ids).tolist(), *([] if target is None else [target])})
    return Trajectory(
        text=prompt.text,
        ids=prompt.ids,
        model=lm.name,
        lens=name,
        n_layers=lm.n_layers,
        layers=layers,
        positions=positions,
        target=target,
        entropy=float32_array(r.entropy),
        kl=float32_array(r.kl),
        max_probability=float32_array(r.max_probability),
        cross_entropy=float32_array(r.cross_entropy.cpu().masked_fill(~known, torch.nan)),
        rank=r.rank.cpu().masked_fill(~known, -1).numpy().astype(np.int64),
        top_ids=top_ids,
        top_log_probs=float32_array(r.top_log_probs),
        vocabulary=dict(zip(occurring, lm.encoder.tokens(occurring), strict=True)),
        provenance=about,
        final=own,
        points=points,
    )


def float32_array(values: Tensor) -> np.ndarray:
    """A tensor's numbers in an array of float32."""
    return values.cpu().numpy().astype(np.float32)
