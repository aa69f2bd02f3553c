"""A block of rows of text as the states of this process's layers, from which the tokens of steps are drawn.

Knows: which row's states lie where, which of its tokens count, in which precision states are kept.
Does not know: what is fitted to them, which rows a block has, how states get to the owners of their layers.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lenscope.distributed.layer_owners import LayerOwners
from lenscope.distributed.sharding import is_sharded
from lenscope.models.batches import Running
from lenscope.models.language_model import LM
from lenscope.models.precision import half_precision
from lenscope.text.corpus import TokenBatch


class StateBlock:
    """States of some rows: `states` (own layers, n, D), `last` (n, D), and which of the n tokens are `counted` (n,).

    `following` (n,) are the tokens that come next, -1 at the end of a row. Each process has the states of the layers
    that it owns, and the last layer's, of the rows of all processes, in the order of the rows.

    The states below the last are kept in bfloat16 where a float32 model is read with 16-bit products (`low`).
    """

    def __init__(self, lm: LM, owners: LayerOwners, rows: int, length: int, low: torch.dtype | None) -> None:
        self.lm, self.owners, self.length, self.low = lm, owners, length, low
        n, size = rows * length, lm.hidden_size
        self.slot: dict[int, int] = {}
        self.states = torch.empty(len(owners.own), n, size, dtype=low or lm.dtype, device=lm.device)
        self.last = torch.empty(n, size, dtype=lm.dtype, device=lm.device)
        self.counted = torch.zeros(n, dtype=torch.bool, device=lm.device)
        self.following = torch.full((n,), -1, device=lm.device)

    def read(self, batch: TokenBatch, rows: range) -> None:
        """Run the model on this process's rows of a batch, and keep the states of own layers in all of the `rows`.

        The `rows` are those that the batches of all processes have together.
        """
        lm, owners, length = self.lm, self.owners, self.length
        at = len(self.slot)
        self.slot.update({row: at + n for n, row in enumerate(rows)})
        here = slice(at * length, (at + len(rows)) * length)
        following = torch.full_like(batch.ids, -1)
        following[:, :-1] = batch.ids[:, 1:]
        known = (batch.counted.to(lm.device), self.counted), (following.to(lm.device), self.following)
        for own, everyone in known:
            owners.to_all(own, rows, everyone[here].view(len(rows), length))
        alone = owners.text.world == 1
        # where others own layers, too, what is read goes to them
        states = self.states[:, here] if alone else self._room(lm.n_layers, len(batch.row), self.states.dtype)
        last = self.last[here] if alone else self._room(1, len(batch.row), self.last.dtype)[0]
        wanted = owners.own if alone else range(lm.n_layers)

        def keep(layer: int, h: Tensor) -> None:
            if layer == lm.n_layers:
                last[:] = h.flatten(0, 1)
            elif layer in wanted:
                states[layer - wanted.start] = h.flatten(0, 1)

        # all processes that hold parts of a model have to run it equally often
        if len(batch.row) or is_sharded(lm):
            ids = batch.ids.tolist() or [lm.runner.anatomy.ids[0].tolist()]
            running = Running.of_prompts([lm.prompt(row) for row in ids], lm.runner.input_device)
            with half_precision(lm, self.low):
                lm.runner.capture(running, range(lm.n_layers + 1), keep if len(batch.row) else lambda _, h: None)
        if not alone:
            mine, all_of = ((n, length, lm.hidden_size) for n in (len(batch.row), len(rows)))
            owners.to_owners(states.view(lm.n_layers, *mine), rows, self.states[:, here].view(len(owners.own), *all_of))
            owners.to_all(last.view(mine), rows, self.last[here].view(all_of))

    def _room(self, layers: int, rows: int, dtype: torch.dtype) -> Tensor:
        n = rows * self.length
        return torch.empty(layers, n, self.lm.hidden_size, dtype=dtype, device=self.lm.device)

    def forget_uncounted(self) -> None:
        """Keep what is known of counted tokens alone; of which rows they are is forgotten."""
        self.states, self.last = self.states[:, self.counted], self.last[self.counted]
        self.following, self.counted = self.following[self.counted], self.counted[self.counted]
        self.slot = {}

    @staticmethod
    def joined(blocks: "Sequence[StateBlock]") -> "StateBlock":
        """Several blocks of which the rows were forgotten as one."""
        joint = StateBlock(blocks[0].lm, blocks[0].owners, 0, blocks[0].length, blocks[0].low)
        joint.states = torch.cat([b.states for b in blocks], 1)
        joint.last, joint.counted, joint.following = (
            torch.cat([getattr(b, name) for b in blocks]) for name in ("last", "counted", "following")
        )
        return joint

    def find(self, positions: Tensor) -> Tensor:
        """Which counted tokens have these positions (n,) in the whole corpus; those of other blocks are left out."""
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
