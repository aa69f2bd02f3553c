"""Modules that multiply by a matrix, and modules that only scale: seen by what they do, as numbers to reckon with.

Knows: weights and biases of linear maps, norms with their denominator held where it was in a run. Does not know: which
modules a model has, logits, prompts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lenscope.models.deviations import FAILURES, TOLERANCE, deviation


@dataclass(frozen=True, eq=False)
class LinearMap:
    """x → W x + b, with weight (D', D) and bias (D'), in float64 on the CPU."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class HeldModule:
    """What a module did to one state: a linear map of parts (N, D) → (N, D') that sum to it, and what it adds (D')."""

    linear: Callable[[Tensor], Tensor]
    bias: Tensor
    description: str


def linear_map(module: nn.Module, given: Tensor, output: Tensor) -> LinearMap | None:
    """The matrix and bias by which a module made outputs (N, D') of inputs (N, D); None where it did something else.

    A matrix may lie either way, as in Linear and in GPT-2's Conv1D.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 2 or weight.is_meta or not weight.is_floating_point():
        return None
    bias = getattr(module, "bias", None)
    x, y = _in_full(given), _in_full(output)
    b = _in_full(bias) if isinstance(bias, Tensor) and bias.shape == y.shape[-1:] else y.new_zeros(y.shape[-1])
    for matrix in (_in_full(weight), _in_full(weight).T):
        if matrix.shape == (y.shape[-1], x.shape[-1]) and _equal(x @ matrix.T + b, y, output.dtype):
            return LinearMap(matrix, b)
    return None


@torch.no_grad()
def held_module(module: nn.Module, trial: Tensor, state: Tensor) -> HeldModule | None:
    """What a module does to a state (1, D), its denominator held; None where it is no norm and no linear map.

    What it is shows on the states `trial` (N, D) of other runs. A norm gives g · s(h) · (h - mean) + b or g · s(h) · h
    + b, with one number s for each state.
    """
    try:
        outputs, output, zero = module(trial), module(state), module(torch.zeros_like(state))
    except FAILURES:
        return None
    if not all(isinstance(t, Tensor) and t.shape[:-1] == trial.shape[:-1] for t in (outputs,)):
        return None
    if torch.equal(outputs, trial):
        return HeldModule(lambda parts: parts, torch.zeros(state.shape[-1], dtype=torch.float64), "identity")
    mapped = linear_map(module, trial, outputs)
    if mapped is not None:
        return HeldModule(lambda parts: parts @ mapped.weight.T, mapped.bias, "linear")
    bias = _in_full(zero)[0]
    if outputs.shape != trial.shape or not torch.isfinite(bias).all():
        return None
    scales = [(form, *_scales(form(_in_full(trial)), _in_full(outputs) - bias)) for form in (_as_it_is, _centred)]
    gaps = [deviation(s * g * form(_in_full(trial)) + bias, _in_full(outputs)) for form, s, g in scales]
    form, _, gain = scales[gaps.index(min(gaps))]
    # many norms reckon in float32, whatever the model does
    if not min(gaps) <= max(TOLERANCE.get(outputs.dtype, 1e-4), TOLERANCE[torch.float32]):
        return None
    # number by number as the module rounded it, so that parts sum to what it gave; where the state has a number that is
    # next to nothing, by the others' scale
    here, there = form(_in_full(state))[0], _in_full(output)[0] - bias
    common = float((there * gain * here).sum() / (gain * here).square().sum())
    small = here.abs() < 1e-3 * here.square().mean().sqrt()
    factor = torch.where(small, common * gain, there / torch.where(small, torch.ones_like(here), here))
    return HeldModule(lambda parts: form(parts) * factor, bias, "norm")


def _as_it_is(h: Tensor) -> Tensor:
    return h


def _centred(h: Tensor) -> Tensor:
    return h - h.mean(-1, keepdim=True)


def _scales(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers s (N, 1) and g (D) for which s · g · x is nearest to y (N, D), where there are such."""
    ratio = (y / torch.where(x == 0, torch.full_like(x, torch.inf), x)).nan_to_num(0)
    scale = ratio.abs().median(-1, keepdim=True).values.clamp_min(1e-300)
    gain = (y * x * scale).sum(0) / (x * scale).square().sum(0).clamp_min(1e-300)
    return scale, gain


def _equal(computed: Tensor, output: Tensor, dtype: torch.dtype) -> bool:
    return deviation(computed, output) <= TOLERANCE.get(dtype, 1e-4)


def _in_full(t: Tensor) -> Tensor:
    return t.detach().to("cpu", torch.float64)
