"""The heads of attention: which columns of which projection each has, found by structure and verified.

Knows: that heads are equal shares of the projection's input, each with its own pattern of attention, which shows in two
small runs. Does not know: how sublayers are found (sublayers.py), prompts, logits.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lenscope.errors import LenscopeError
from lenscope.models.affine_modules import LinearMap, linear_map
from lenscope.models.residual_stream import input_state, output_state, with_input_state
from lenscope.models.runner import Runner
from lenscope.models.sublayers import find_sublayers, run_trial

# What attention adds, among what modules gave by their names.
ADDED = "added by attention"
# How many copies of one token stand before the other in the rows of the run that shows patterns of attention.
COPIES = 1, 2, 4
# The share of its size by which a head's output may leave the plane that one pattern of attention allows.
OFF_PLANE = {torch.float64: 1e-6, torch.float32: 1e-3}


@dataclass(frozen=True, eq=False)
class HeadProjection:
    """The projection of one block's attention: the module's name in its block, and what it multiplies with.

    The input z (H · D_h) has the heads one after the other. Attention adds factor · (Σ over heads W_head z_head + b).
    """

    module: str
    heads: int
    factor: float
    map: LinearMap

    def parts(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What each head adds (H, D), and the bias (D), of a projection's input z (H · D_h), in float64."""
        wide = z.detach().to("cpu", torch.float64).reshape(self.heads, -1)
        columns = self.map.weight.reshape(self.map.weight.shape[0], self.heads, -1)
        return torch.einsum("dhc,hc->hd", columns, wide) * self.factor, self.map.bias * self.factor


def find_heads(runner: Runner) -> tuple[HeadProjection, ...]:
    """The projection of every block's attention, which gives what the block adds; looked for once, in two small runs.

    Its input must fall into as many equal shares as the configuration has heads, and each share must attend with one
    pattern: of texts that repeat one token before another one, outputs lie in a plane. Raises LenscopeError as
    `find_sublayers` does, and where heads are none of this: attention that goes through a norm before it is added, or
    recurrent mixers.
    """
    return runner.measured.once(("heads",), lambda: _find_projections(runner))


def _find_projections(runner: Runner) -> tuple[HeadProjection, ...]:
    recipes = find_sublayers(runner)
    heads = getattr(runner.model.config.get_text_config(), "num_attention_heads", None)
    if type(heads) is not int or heads < 1:
        raise LenscopeError(f"{runner.name}: its configuration names no number of heads; they cannot be read apart")
    calls: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in recipes]

    def look(number: int, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        if given is not None and isinstance(output, Tensor) and given.ndim > 1:
            calls[number][name] = given.clone(), output.clone()

    with ExitStack() as undo:
        for number, (block, recipe) in enumerate(zip(runner.anatomy.blocks, recipes, strict=True)):
            if len(recipe.attention) > 1:
                raise LenscopeError(
                    f"{runner.name}: block {number} adds several things that look at other positions; heads cannot be "
                    "read apart"
                )
            for name, module in block.named_modules():
                hook = partial(look, number, name)
                undo.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
            added = block.get_submodule(recipe.attention[0].module)
            undo.callback(added.register_forward_hook(partial(_keep_output, calls[number])).remove)
        run_trial(runner)
    projections = tuple(
        _projection(runner, number, recipe.attention[0].factor, calls[number], heads)
        for number, recipe in enumerate(recipes)
    )
    _require_patterns(runner, projections)
    return projections


def _keep_output(calls: dict[str, tuple[Tensor, Tensor]], module: nn.Module, args: Any, output: Any) -> None:
    state = output_state(output).clone()
    calls[ADDED] = state, state


def _projection(
    runner: Runner, number: int, factor: float, calls: dict[str, tuple[Tensor, Tensor]], heads: int
) -> HeadProjection:
    added = calls.pop(ADDED)[1]
    for name, (given, output) in calls.items():
        if output.numel() != added.numel() or not torch.equal(output.reshape(-1), added.reshape(-1)):
            continue
        module = runner.anatomy.blocks[number].get_submodule(name)
        mapped = linear_map(module, given.flatten(0, -2), output.flatten(0, -2))
        if mapped is not None and mapped.weight.shape[1] % heads == 0:
            return HeadProjection(name, heads, factor, mapped)
    raise LenscopeError(
        f"{runner.name}: what the attention of block {number} adds is no projection of {heads} heads (a norm is behind "
        "it, or it is another mixer); heads cannot be read apart, attention and MLP can"
    )


def _require_patterns(runner: Runner, projections: tuple[HeadProjection, ...]) -> None:
    """Raise LenscopeError where a share of a projection's input has more than one pattern of attention.

    After k copies of a token x, what a head gives at y is P_k · g v(x) + Q_k · g v(y): for all k in one plane.
    """
    stream, ids = runner.anatomy.stream, runner.anatomy.ids
    given: list[Tensor] = [torch.empty(0)] * len(projections)

    with ExitStack() as undo:
        for number, (block, one) in enumerate(zip(runner.anatomy.blocks, projections, strict=True)):
            states = runner.anatomy.states[number]
            repeated = torch.stack([states[0, [0] * k + [3] * (ids.shape[1] - k)] for k in COPIES])

            def begin(_: nn.Module, args: Any, kwargs: Any, repeated: Tensor = repeated) -> Any:
                like = input_state(args, kwargs)
                return with_input_state(args, kwargs, stream.unpack(repeated).to(like))

            def take(_: nn.Module, args: Any, kwargs: Any, number: int = number) -> None:
                z = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
                z = z.reshape(len(COPIES), ids.shape[1], -1)
                given[number] = torch.stack([z[row, k] for row, k in enumerate(COPIES)]).detach()

            undo.callback(block.register_forward_pre_hook(begin, with_kwargs=True).remove)
            module = block.get_submodule(one.module)
            undo.callback(module.register_forward_pre_hook(take, with_kwargs=True).remove)
        run_trial(runner)
    for number, (z, one) in enumerate(zip(given, projections, strict=True)):
        shares = z.to("cpu", torch.float64).reshape(len(COPIES), one.heads, -1).transpose(0, 1)
        sizes = torch.linalg.svdvals(shares)
        if sizes.shape[-1] == len(COPIES) and (sizes[:, 2] > OFF_PLANE.get(z.dtype, 3e-2) * sizes[:, 0]).any():
            raise LenscopeError(
                f"{runner.name}: the {one.heads} shares of what block {number} projects have no pattern of attention "
                "each, as heads have; heads cannot be read apart, attention and MLP can"
            )
