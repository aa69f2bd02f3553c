"""engine.resume"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lenscope.models.batches import TOKENS_PER_RUN, Batch
from lenscope.models.deviations import FAILURES, deviation
from lenscope.models.edits import Running
from lenscope.models.exactness import tolerance
from lenscope.models.language_model import LM
from lenscope.models.prompts import Prompt
from lenscope.models.readout import stubbed
from lenscope.models.residual_stream import with_output_state
from lenscope.text.row_states import RowStates


class _Above:
    """The blocks above a layer of the model, on the rows of a run: changed states → the last layer's.

    The blocks below are left out where the rows' own states then give the rows' own last states (not where blocks
    pass on more than the stream, such as keys for others to use): else the whole model runs, with the states put in.
    """

    def __init__(self, lm: LM, run: RowStates, layer: int, index: int) -> None:
        self.lm, self.layer = lm, layer
        self.ids = torch.tensor([p.ids for p in run.prompts], device=lm.runner.input_device)
        self.together = max(1, TOKENS_PER_RUN // self.ids.numel())
        self.short = layer > 0 and self._agrees(run.states[index, :1], run.states[-1, :1])

    def __call__(self, h: Tensor) -> Tensor:
        """Last states of G times the run's rows, (G, B, T, D) → (G, B, T, D)."""
        if self.layer == self.lm.n_layers:
            return h
        return self._run(self.ids.repeat(len(h), 1), h.flatten(0, 1)).view(h.shape)

    def _agrees(self, h: Tensor, last: Tensor) -> bool:
        self.short = True
        try:
            found = self._run(self.ids[:1], h)
        except FAILURES:
            return False
        logits = (self.lm.runner.own_logits(x.flatten(0, 1)) for x in (found, last))
        return deviation(*logits) <= tolerance(self.lm.runner)

    def _run(self, ids: Tensor, h: Tensor) -> Tensor:
        lm, kept = self.lm, list[Tensor]()
        prompts = [Prompt("", tuple(row), (), ()) for row in ids.tolist()]
        batch = Batch(ids, torch.ones_like(ids), (0,) * len(ids), (ids.shape[1],) * len(ids))
        running = Running(prompts, range(len(ids)), len(ids), batch, without_edits=True)
        with lm.runner.exclusive.alone(), ExitStack() as undo:
            if self.short:
                known = lm.runner.anatomy
                below = replace(known, blocks=known.blocks[: self.layer], outputs=known.outputs[: self.layer])
                undo.enter_context(stubbed(below, known.stream.unpack(h)))
            else:
                undo.callback(lm.runner.hook(self.layer, lambda _: h).remove)
            lm.runner.capture(running, {lm.n_layers}, lambda _, out: kept.append(out.to(lm.device, copy=True)))
        return kept[0]


@contextmanager
def _returning(
    blocks: Sequence[nn.Module], outputs: Sequence[Any], last: Tensor, templates: Sequence[Any]
) -> Iterator[None]:
    """Within the `with` block these blocks compute nothing and return `outputs`, the last of them the state `last`."""
    kept = [vars(block).get("forward") for block in blocks]
    made = [*outputs[:-1], with_output_state(templates[len(blocks) - 1], last)]
    try:
        for block, output in zip(blocks, made, strict=True):
            block.forward = lambda *args, output=output, **kwargs: output
        yield
    finally:
        for block, forward in zip(blocks, kept, strict=True):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                block.forward = forward
