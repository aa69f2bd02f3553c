"""Single tokens that are read from a recurrent state, where transformers reads them otherwise than whole texts.

Knows: that Mamba-2 layers hold time steps within limits for several tokens and not for one (Nemotron-H, Zamba 2), and
that RWKV's layers mix up rows and tokens where a batch is fed one token each.
Does not know: what is read, what else a model carries (carried_states.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lenscope.models.residual_stream import input_state


@contextmanager
def single_tokens_as_texts(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Within the `with` block one token from a state gives what it gives within a whole text, as far as is known."""
    with ExitStack() as undo:
        for block in blocks:
            for module in block.modules():
                limits, linear = getattr(module, "time_step_limit", None), getattr(module, "in_proj", None)
                if limits and isinstance(linear, nn.Module) and (limits[0] > 0 or limits[1] < float("inf")):
                    undo.callback(linear.register_forward_hook(_TimeStepLimit(module, limits)).remove)
                if module is not block and hasattr(module, "time_mix_key") and hasattr(module, "time_shift"):
                    undo.callback(module.register_forward_pre_hook(_with_token_axis, with_kwargs=True).remove)
                    undo.callback(module.register_forward_hook(_without_token_axis).remove)
        yield


class _TimeStepLimit:
    """A hook of the linear layer in front of a state-space layer, the last of whose outputs are time steps, raw.

    A time step is softplus(x + bias): x is held where the time step is at its limit.
    """

    def __init__(self, mixer: Any, limits: Sequence[float]) -> None:
        self.heads: int = mixer.num_heads
        bias = mixer.dt_bias.detach()
        self.low, self.high = (_raw_time_step(limit, bias) for limit in limits)

    def __call__(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        held = output.clone()
        steps = held[..., -self.heads :]
        steps.clamp_(min=self.low.to(steps), max=self.high.to(steps))
        return held


def _raw_time_step(limit: float, bias: Tensor) -> Tensor:
    """What with the bias gives a time step of this size: -inf for 0."""
    wide = torch.tensor(float(limit), dtype=torch.float64, device=bias.device)
    return torch.where(wide > 30, wide, torch.log(torch.expm1(wide.clamp(max=30)))) - bias.double()


class _StateWithTokenAxis:
    """A state (B, D, L) of which each block's part is read as (B, 1, D), as the states of one token are."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __getitem__(self, key: Any) -> Tensor:
        return self.tensor[key].unsqueeze(1)

    def __setitem__(self, key: Any, value: Tensor) -> None:
        self.tensor[key] = value


def _with_token_axis(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """RWKV's first two states are the last token's inputs of a layer, to be mixed with those of the next."""
    state = kwargs.get("state")
    if not isinstance(state, list) or input_state(args, kwargs).shape[1] != 1:
        return None
    return args, {**kwargs, "state": [*map(_StateWithTokenAxis, state[:2]), *state[2:]]}


def _without_token_axis(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    state = output[1]
    if not isinstance(state, list) or not isinstance(state[0], _StateWithTokenAxis):
        return None
    return (output[0], [*(s.tensor for s in state[:2]), *state[2:]], *output[2:])
