"""A block of rows of text as the states of all layers, from which the tokens of steps are drawn.

Knows: which row's states lie where, which of its tokens count, in which precision states are kept.
Does not know: what is fitted to them, which rows a block has.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lenscope.distributed.sharding import is_sharded
from lenscope.models.batches import Running
from lenscope.models.language_model import LM
from lenscope.models.precision import half_precision
from lenscope.text.corpus import TokenBatch


class StateBlock:
    """States of some rows: `states` (n_layers, n, D), `last` (n, D), and which of the n tokens are `counted` (n,).

    `following` (n,) are the tokens that come next, -1 at the end of a row.

    The states below the last are kept in bfloat16 where a float32 model is read with 16-bit products (`low`).
    """

    def __init__(self, lm: LM, rows: int, length: int, low: torch.dtype | None) -> None:
        self.lm, self.length, self.low = lm, length, low
        n, size = rows * length, lm.hidden_size
        self.slot: dict[int, int] = {}
        self.states = torch.empty(lm.n_layers, n, size, dtype=low or lm.dtype, device=lm.device)
        self.last = torch.empty(n, size, dtype=lm.dtype, device=lm.device)
        self.counted = torch.zeros(n, dtype=torch.bool, device=lm.device)
        self.following = torch.full((n,), -1, device=lm.device)

    def read(self, batch: TokenBatch) -> None:
        """Run the model on the rows of a batch and keep their states."""
        lm = self.lm
        rows = batch.ids.tolist()
        if not rows and not is_sharded(lm):
            return
        # all processes that hold parts of a model have to run it equally often
        prompts = [lm.prompt(row) for row in rows or [lm.runner.anatomy.ids[0].tolist()]]
        at = len(self.slot) * self.length
        here = slice(at, at + batch.ids.numel())
        self.slot.update({row: len(self.slot) + n for n, row in enumerate(batch.row.tolist())})
        self.counted[here] = batch.counted.flatten().to(lm.device)
        self.following[here].view(batch.ids.shape)[:, :-1] = batch.ids[:, 1:].to(lm.device)

        def keep(layer: int, h: Tensor) -> None:
            if rows:
                (self.last[here] if layer == lm.n_layers else self.states[layer, here])[:] = h.flatten(0, 1)

        running = Running.of_prompts(prompts, lm.runner.input_device)
        with half_precision(lm, self.low):
            lm.runner.capture(running, range(lm.n_layers + 1), keep)

    def forget_uncounted(self) -> None:
        """Keep what is known of counted tokens alone; of which rows they are is forgotten."""
        self.states, self.last = self.states[:, self.counted], self.last[self.counted]
        self.following, self.counted = self.following[self.counted], self.counted[self.counted]
        self.slot = {}

    @staticmethod
    def joined(blocks: "Sequence[StateBlock]") -> "StateBlock":
        """Several blocks of which the rows were forgotten as one."""
        joint = StateBlock(blocks[0].lm, 0, blocks[0].length, blocks[0].low)
        joint.states = torch.cat([b.states for b in blocks], 1)
        joint.last, joint.counted, joint.following = (
            torch.cat([getattr(b, name) for b in blocks]) for name in ("last", "counted", "following")
        )
        return joint

    def find(self, positions: Tensor) -> Tensor:
        """Which counted tokens have these positions (n,) in the whole corpus; those of other processes are left out."""
        slots = torch.tensor([self.slot.get(row, -1) for row in (positions // self.length).tolist()], dtype=torch.long)
        places = (slots * self.length + positions % self.length)[slots >= 0].to(self.counted.device)
        return places[self.counted[places]]


def relative_sizes(sizes: Tensor) -> Tensor:
    """Sizes as multiples of their root mean square; what is next to nothing counts as a ten-thousandth of it."""
    return (sizes / sizes.square().mean().sqrt().clamp_min(1e-30)).clamp_min(1e-4)


def masked_rows(batch: TokenBatch, which: Tensor) -> TokenBatch:
    """Of a batch the rows that a mask (B,) names, as far as reading needs them."""
    row, ids, document, counted = (t[which] for t in (batch.row, batch.ids, batch.document, batch.counted))
    return replace(batch, row=row, ids=ids, document=document, counted=counted)
