"""Jacobians of a model by central differences of its own runs, beside those that a fit takes from backward passes."""

import torch
from torch.overrides import TorchFunctionMode

STEP = 1e-5


def last_states(lm, ids, layer, moved, target_layer):
    """The states (T, D) of the target layer where `moved` (T, D) is added to those of a layer."""
    last = []
    hooks = [
        lm.runner.hook(layer, lambda h: h + moved),
        lm.runner.hook(target_layer, lambda h: last.append(h[0].clone())),
    ]
    try:
        with torch.no_grad():
            lm.model(input_ids=torch.tensor([ids]))
    finally:
        for hook in hooks:
            hook.remove()
    return last[0]


def by_differences(lm, ids, places, layer, directions, target_layer=None):
    """The mean over positions t of Σ over positions t' ≥ t of ∂h_last[t'] / ∂h_layer[t] · v, for v (D, K): (D, K).

    The positions are those of `places` (T,) bool.
    """
    end = lm.n_layers if target_layer is None else target_layer
    columns = []
    for v in directions.T:
        moved = torch.zeros(len(ids), lm.hidden_size, dtype=lm.dtype)
        # to first order, all source positions at once are the sum over them
        moved[places] = STEP * v
        ends = [last_states(lm, ids, layer, sign * moved, end)[places].sum(0) for sign in (1, -1)]
        columns.append((ends[0] - ends[1]) / (2 * STEP))
    return torch.stack(columns, 1) / places.sum()


def alone_by_differences(lm, ids, places, layer, directions):
    """Mean over the positions `places` of ∂h_last[t] / ∂h_layer[t] · v, for v (D, K): (D, K)."""
    total = torch.zeros_like(directions)
    for place in places:
        for number, v in enumerate(directions.T):
            moved = torch.zeros(len(ids), lm.hidden_size, dtype=lm.dtype)
            moved[place] = STEP * v
            ends = [last_states(lm, ids, layer, sign * moved, lm.n_layers)[place] for sign in (1, -1)]
            total[:, number] += (ends[0] - ends[1]) / (2 * STEP) / len(places)
    return total


class InFloat64(TorchFunctionMode):
    """Within the block whatever a float64 model computes in float32, such as norms and softmax, is float64, too."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        given = [torch.float64 if a is torch.float32 else a for a in args]
        named = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return (torch.Tensor.double if func is torch.Tensor.float else func)(*given, **named)
