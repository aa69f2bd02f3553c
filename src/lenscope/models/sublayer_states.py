"""The residual stream within blocks: after attention, after the MLP, and what each of them added, read of prompts.

Knows: where hooks stand, that every block is checked to be the sum of what was read. Does not know: how additions are
found (sublayers.py), logits, lenses.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lenscope.errors import LenscopeError
from lenscope.models import exactness
from lenscope.models.batches import Running, length_groups, pad
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.inputs import shown
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.layers import Layers, check_layers
from lenscope.models.prompts import Positions
from lenscope.models.readout import is_stubbed
from lenscope.models.residual_stream import input_state, output_state
from lenscope.models.runner import Runner
from lenscope.models.sublayers import BlockAdditions, as_stream, find_sublayers, require_sum

# a place within the block that makes a layer
Point = Literal["block", "attention", "mlp"]


@dataclass(frozen=True)
class BlockPass:
    """One block as it ran: its input, what its modules gave that it adds, and its output, (B, T, D) each."""

    layer: int
    recipe: BlockAdditions
    given: Tensor
    outputs: dict[str, Tensor]
    output: Tensor

    def at(self, point: Point) -> Tensor:
        """The stream (B, T, D) at a point of the block."""
        if point == "block":
            return self.output
        state = self.recipe.attention_state if point == "attention" else self.recipe.mlp_state
        return state(self.given, self.outputs)


def check_point(point: str) -> Point:
    """A point of a block by name; LenscopeError for another."""
    for known in get_args(Point):
        if point == known:
            return known
    raise LenscopeError(f"points {shown(point)}: give block, attention or mlp")


@contextmanager
def watching_blocks(runner: Runner, layers: Collection[int], look: Callable[[BlockPass], None]) -> Iterator[None]:
    """Within the `with` block, `look` sees each block that makes one of `layers` as it ran; no other thread runs it.

    What it sees is before edits of the block's output. Raises LenscopeError as `find_sublayers` does.
    """
    with runner.exclusive.alone(), ExitStack() as undo:
        recipes = find_sublayers(runner)
        for layer in layers:
            block, recipe = runner.anatomy.blocks[layer - 1], recipes[layer - 1]
            watch = _BlockWatch(runner, layer, recipe, look)
            hooks = [
                partial(block.register_forward_pre_hook, watch.begin, with_kwargs=True),
                # ahead of edits
                partial(block.register_forward_hook, watch.end, prepend=True),
                *(
                    partial(block.get_submodule(one.module).register_forward_hook, partial(watch.take, one.module))
                    for one in recipe.additions
                ),
            ]
            for register in hooks:
                undo.callback(runner.exclusive.hook(register).remove)
        yield


class _BlockWatch:
    """The hooks of one block."""

    def __init__(self, runner: Runner, layer: int, recipe: BlockAdditions, look: Callable[[BlockPass], None]) -> None:
        self.runner, self.layer, self.recipe, self.look = runner, layer, recipe, look
        self.given: Tensor | None = None
        self.outputs: dict[str, Tensor] = {}

    def begin(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        """Keep the block's input."""
        self.outputs = {}
        self.given = None if is_stubbed(block) else self.runner.anatomy.stream.pack(input_state(args, kwargs)).clone()

    def take(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Keep what a module gave, before anything is added to it in place."""
        if self.given is not None:
            state = as_stream(output_state(output), self.given)
            if state is not None:
                self.outputs[name] = state.clone()

    def end(self, block: nn.Module, args: Any, output: Any) -> None:
        """Check the sum, and show it."""
        given, outputs, self.given, self.outputs = self.given, self.outputs, None, {}
        if given is None:
            return
        missing = [one.module for one in self.recipe.additions if one.module not in outputs]
        if missing:
            raise LenscopeError(
                f"{self.runner.name}: {missing[0]} of block {self.layer - 1} did not run alone on this prompt; what is "
                "added within its blocks cannot be read"
            )
        out = self.runner.anatomy.stream.pack(output_state(output)).clone()
        self.look(BlockPass(self.layer, self.recipe, given, outputs, out))


def require_real_sums(runner: Runner, run: BlockPass, mask: Tensor) -> None:
    """Raise LenscopeError where a block is not the sum of its parts at a real token; `mask` (B, T) is 0 at padding."""
    real = mask.bool().to(run.given.device)
    outputs = {name: out[real.to(out.device)] for name, out in run.outputs.items()}
    output = run.output[real.to(run.output.device)]
    require_sum(runner, run.layer - 1, run.recipe, run.given[real], outputs, output)


def read_points(
    lm: LM,
    prompts: PromptLike | Sequence[PromptLike],
    point: Point,
    layers: Layers,
    positions: Positions | None = None,
) -> HiddenStates:
    """Read the stream within the blocks that make `layers` (1…n_layers), at a point; `last` has the final states.

    At "attention" it is h_mid, after attention was added to the block's input; at "mlp" after the MLP: the block's
    output, or in a block whose attention and MLP stand in parallel its input and what the MLP adds.

    Args:
        lm: the model.
        prompts: a prompt, or a list of prompts.
        point: "attention" or "mlp".
        layers: the layers whose blocks are read, 1…n_layers.
        positions: which positions of each prompt are read; None: all.

    Raises LenscopeError as `LM.read` and `find_sublayers` do, and for layer 0, which no block makes.
    """
    batched, many = lm.encoder.prompts(prompts)
    numbers = check_layers(layers, lm.n_layers, lm.name)
    if 0 in numbers:
        raise LenscopeError(
            f"layer 0: is made by no block, so that it has no point {point!r}; give layers 1–{lm.n_layers}"
        )
    runner, places = lm.runner, [p.positions(positions) for p in many]
    shape = (len(many), len(numbers), max(map(len, places)), lm.hidden_size)
    out = torch.zeros(shape, dtype=lm.dtype, device=lm.device)
    last = torch.zeros(shape[0], *shape[2:], dtype=lm.dtype, device=lm.device)
    for group in length_groups(many, lambda short, long: exactness.reads_together(runner, short, long)):
        together = [many[i] for i in group]
        running = Running(together, group, len(many), pad(together, "right", runner.input_device))

        def look(run: BlockPass, group: Sequence[int] = group, running: Running = running) -> None:
            require_real_sums(runner, run, running.batch.mask)
            h, at = run.at(point), numbers.index(run.layer)
            for row, i in enumerate(group):
                out[i, at, : len(places[i])] = h[row, list(places[i])].to(lm.device)

        def final(_: int, h: Tensor, group: Sequence[int] = group) -> None:
            for row, i in enumerate(group):
                last[i, : len(places[i])] = h[row, list(places[i])].to(lm.device)

        with watching_blocks(runner, set(numbers), look):
            runner.capture(running, {lm.n_layers}, final)
    return HiddenStates(out, numbers, lm.n_layers, tuple(many), tuple(places), batched, lm.name, last)
