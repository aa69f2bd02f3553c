"""A readout whose norm's denominator is held where one state has it: then it is linear, and parts have logits.

Knows: readouts that are chains of norms and linear maps before a head, scale and soft cap. Does not know: what the
parts of a state are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.models.affine_modules import HeldModule, held_module
from lenscope.models.readout import Traced, wide
from lenscope.models.runner import Runner


@dataclass(frozen=True, eq=False)
class HeldReadout:
    """The readout of some tokens at one state, in float64 on the CPU: logit = Σ over parts of `parts` + bias.

    Attributes:
        steps: what comes before the head, in order.
        head: the head's rows (k, D') of the tokens, times the readout's scale.
        bias: (k,) what is added whatever the state is: biases of norms and head.
        logits: (k,) of the state, before the soft cap.
        capped: (k,) the model's own logits, behind the soft cap where it has one.
        soft_cap: the cap, None where there is none.
    """

    steps: tuple[HeldModule, ...]
    head: Tensor
    bias: Tensor
    logits: Tensor
    capped: Tensor
    soft_cap: float | None

    def parts(self, vectors: Tensor) -> Tensor:
        """The logits (N, k) that parts (N, D) of the state have, before the soft cap and without biases."""
        x = vectors.detach().to("cpu", torch.float64)
        for step in self.steps:
            x = step.linear(x)
        return x @ self.head.T


@torch.no_grad()
def hold_readout(runner: Runner, state: Tensor, ids: Tensor) -> HeldReadout:
    """The readout of the tokens `ids` (k,) with every denominator as the last layer's `state` (D,) has it.

    Raises LenscopeError for a readout that is no chain of norms and linear maps before a linear head.
    """
    readout = runner.readout
    with runner.exclusive.alone():
        if not isinstance(readout, Traced):
            raise LenscopeError(f"{runner.name}: {_unsuited(readout.description)}")
        rows = readout.head(ids.to(state.device))
        if rows is None:
            raise LenscopeError(f"{runner.name}: {_unsuited('its head is no plain matrix')}")
        trial, x = runner.anatomy.states[-1].flatten(0, 1).to(state.device), state[None]
        steps: list[HeldModule] = []
        biases = torch.zeros(state.shape[-1], dtype=torch.float64)
        for name, module in readout.chain[:-1]:
            step = held_module(module, trial, x)
            if step is None:
                raise LenscopeError(f"{runner.name}: {_unsuited(f'{name} is neither a norm nor a matrix')}")
            trial, x = module(trial), module(x)
            biases = step.linear(biases[None])[0] + step.bias
            steps.append(step)
        scale = 1.0 if readout.scale is None else readout.scale
        head = rows[0].to("cpu", torch.float64) * scale
        own = 0.0 if rows[1] is None else rows[1].to("cpu", torch.float64) * scale
        capped = wide(readout.tokens(readout.prepare(state[None]).expand(len(ids), -1), ids.to(state.device)))
    return HeldReadout(
        tuple(steps),
        head,
        head @ biases + own,
        head @ x[0].to("cpu", torch.float64) + own,
        capped.to("cpu", torch.float64),
        readout.softcap,
    )


def _unsuited(reason: str) -> str:
    return (
        f"its readout is no chain of norm and linear head ({reason}); logits cannot be attributed to parts of a state"
    )
