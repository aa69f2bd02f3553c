"""Runs that go on from changed states of a layer, without computing again what is below it.

Knows: how blocks below a layer are left out, and where that gives the model's own numbers.
Does not know: how states are changed, what is read above.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from lenscope.models.batches import Running, rows_per_run
from lenscope.models.deviations import deviation
from lenscope.models.exactness import is_exact
from lenscope.models.prompts import Prompt
from lenscope.models.residual_stream import with_output_state
from lenscope.models.runner import Runner


@contextmanager
def run_from(runner: Runner, layer: int, h: Tensor, outputs: Sequence[Any] | None) -> Iterator[None]:
    """Within the `with` block a run goes on from the states h (B, T, D) at a layer, whatever is below.

    The blocks below compute nothing and return `outputs`, in whatever containers they use, the last of them with h in
    it; with None the whole model runs, and h is put in at the layer.
    """
    with runner.exclusive.alone(), ExitStack() as undo:
        if outputs is None:
            undo.callback(runner.hook(layer, lambda before: h.to(before.device)).remove)
        else:
            last = with_output_state(outputs[-1], runner.anatomy.stream.unpack(h))
            undo.enter_context(_returning(runner, [*outputs[:-1], last]))
        yield


@contextmanager
def _returning(runner: Runner, outputs: Sequence[Any]) -> Iterator[None]:
    """Within the `with` block the first blocks compute nothing and return `outputs`."""
    blocks = runner.anatomy.blocks[: len(outputs)]
    before = [vars(block).get("forward") for block in blocks]
    try:
        for block, output in zip(blocks, outputs, strict=True):
            block.forward = lambda *args, output=output, **kwargs: output
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                block.forward = forward


class RunAbove:
    """The blocks above a layer of the model, on prompts of equal length: changed states → the last layer's.

    `states` (B, T, D) are the prompts' own at the layer, `last` those at the last layer. The blocks below are left out
    where the prompts' own states then give their own last states (not where blocks pass on more than the stream, such
    as keys for others to use), seen once for a layer and a range of lengths: else the whole model runs, with the states
    put in.
    """

    def __init__(self, runner: Runner, prompts: Sequence[Prompt], layer: int, states: Tensor, last: Tensor) -> None:
        self.runner, self.layer = runner, layer
        self.ids = torch.tensor([p.ids for p in prompts], device=runner.input_device)
        self.together = rows_per_run(self.ids.numel())
        key = ("above a layer", layer, runner.regimes.of(self.ids.shape[1]))
        self.short = layer > 0 and is_exact(runner, key, lambda: self._short_deviation(states[:1], last[:1]))

    def __call__(self, h: Tensor) -> Tensor:
        """Last states of G times the prompts, (G, B, T, D) → (G, B, T, D)."""
        if self.layer == self.runner.n_layers:
            return h
        return self._run(self.ids.repeat(len(h), 1), h.flatten(0, 1), self.short).view(h.shape)

    def _short_deviation(self, h: Tensor, last: Tensor) -> float:
        states = self._run(self.ids[:1], h, True)
        logits = (self.runner.own_logits(x.flatten(0, 1)) for x in (states, last))
        return deviation(*logits)

    def _run(self, ids: Tensor, h: Tensor, short: bool) -> Tensor:
        runner = self.runner
        running = Running.of_ids(ids)
        outputs = None
        if short:
            state = runner.anatomy.stream.unpack(h)
            outputs = [with_output_state(output, state) for output in runner.anatomy.outputs[: self.layer]]
        states: list[Tensor] = []
        with run_from(runner, self.layer, h, outputs):
            runner.capture(running, {runner.n_layers}, lambda _, out: states.append(out.to(runner.device, copy=True)))
        return states[0]
