"""The parts of a block that relevance rules are about: norms, activations, gated products, by what they compute.

Knows: how a norm, an elementwise activation and the product behind one are told from what modules take and return.
Does not know: architectures by name, which rules are applied to the parts (relevance_rules.py).
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lenscope.models.deviations import FAILURES

# how far a module may be off from the formula of a norm, relative to its largest number
_NORM_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}


@dataclass(frozen=True, eq=False)
class NormPart:
    """A norm: y = r (x - mean(x) if `centred`) gain + bias, with one number r for each row; gain = weight + `offset`.

    Any norm of this form is one, whatever it divides by: RMSNorm, LayerNorm, with and without weight and bias.
    """

    module: nn.Module
    centred: bool
    offset: float

    def scaled(self, x: Tensor) -> Tensor:
        """(x - mean(x)) gain: what the row's r is multiplied with, in float32 or wider."""
        x = x if x.dtype == torch.float64 else x.float()
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        weight = getattr(self.module, "weight", None)
        return x if weight is None else x * (weight.to(x.dtype) + self.offset)

    def bias(self, x: Tensor) -> Tensor | float:
        """What is added to every row."""
        bias = getattr(self.module, "bias", None)
        return 0.0 if bias is None else bias.to(x.dtype)

    def linear(self, x: Tensor, y: Tensor) -> Tensor:
        """What the norm returned, y, as a function of x (..., D) whose rows' r are constants."""
        z = self.scaled(x)
        with torch.no_grad():
            shift = y.to(z.dtype) - self.bias(z)
            r = (shift * z).sum(-1, keepdim=True) / z.square().sum(-1, keepdim=True).clamp_min(1e-30)
        return r * z + self.bias(z)


@dataclass(frozen=True, eq=False)
class ActivationPart:
    """An activation that acts on each number alone with f(0) = 0; `slope` is the mean of its slopes at zero.

    `product` is the module whose input is the activation times something else; None where it stands alone.
    """

    module: nn.Module
    slope: float
    product: nn.Module | None


@dataclass(frozen=True, eq=False)
class Fired:
    """What a module took and returned in a run, in the order in which modules ended."""

    module: nn.Module
    taken: Tensor
    returned: Tensor


@torch.no_grad()
def watched(model: nn.Module, modules: Iterable[nn.Module], ids: Tensor, **how: object) -> list[Fired]:
    """Run the model on token ids; what each of the modules took first, and returned, where both are tensors."""
    fired: list[Fired] = []

    def seen(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        taken = args[0] if args else kwargs.get("hidden_states")
        returned = output[0] if isinstance(output, tuple) and output else output
        if isinstance(taken, Tensor) and isinstance(returned, Tensor):
            fired.append(Fired(module, taken.clone(), returned.clone()))

    with ExitStack() as undo:
        for module in modules:
            undo.callback(module.register_forward_hook(seen, with_kwargs=True).remove)
        model(input_ids=ids, **how)
    return fired


@torch.no_grad()
def norm_part(one: Fired) -> NormPart | None:
    """The norm that a module is, if what it returned is that of one."""
    x, y = one.taken, one.returned
    if x.shape != y.shape or not x.is_floating_point() or x.shape[-1] < 2 or torch.equal(x, y):
        return None
    known = {name for name, _ in one.module.named_parameters(recurse=False)}
    if not known <= {"weight", "bias"} or any(True for _ in one.module.children()):
        return None
    tolerance = _NORM_TOLERANCE.get(y.dtype, 1e-5) * float(y.float().abs().max())
    for centred in (False, True):
        for offset in (0.0, 1.0) if "weight" in known else (0.0,):
            part = NormPart(one.module, centred, offset)
            try:
                gap = part.linear(x, y) - y
            except FAILURES:
                continue
            if float(gap.abs().max()) <= tolerance:
                return part
    return None


@torch.no_grad()
def activation_part(one: Fired, fired: list[Fired], parent: Fired | None, inside: set[int]) -> ActivationPart | None:
    """The activation that a module is, if it is one, with the module that takes the product behind it.

    Args:
        one: the module, and what it took and returned.
        fired: every module without parts of its own, in the order in which they ended.
        parent: the module that it is a part of.
        inside: the ids of the modules in that one.
    """
    module, x, y = one.module, one.taken, one.returned
    if x.shape != y.shape or not x.is_floating_point() or torch.equal(x, y) or any(True for _ in module.children()):
        return None
    # each number alone: also in another order
    order = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(0)).to(x.device)
    small = torch.tensor([0.0, 1e-4, -1e-4], dtype=torch.float32, device=x.device).to(x.dtype)
    try:
        again = module(x.flatten()[order])
        zero, right, left = module(small).float().tolist()
    except FAILURES:
        return None
    if again.shape != order.shape or not torch.allclose(again, y.flatten()[order], rtol=1e-3, atol=1e-5) or zero != 0:
        return None
    return ActivationPart(module, (right - left) / 2e-4, _product_behind(one, fired, parent, inside))


def _product_behind(one: Fired, fired: list[Fired], parent: Fired | None, inside: set[int]) -> nn.Module | None:
    """The module that takes what an activation returned times something else."""
    at = next(n for n, other in enumerate(fired) if other is one)
    for other in fired[at + 1 :]:
        if id(other.module) not in inside or other.taken.numel() != one.returned.numel():
            continue
        taken = other.taken.reshape(one.returned.shape)
        if torch.equal(taken, one.returned):
            # such as a dropout: what it returns is taken next; a linear map ends the search
            if other.returned.shape == other.taken.shape and torch.equal(other.returned, other.taken):
                continue
            return None
        # the other side of the product reads what their parent reads
        beside = [one.taken, *([parent.taken] if parent is not None else [])]
        if any(torch.equal(other.taken.flatten(), t.flatten()) for t in beside):
            continue
        return other.module
    return None
