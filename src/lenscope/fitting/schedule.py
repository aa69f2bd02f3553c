"""What a fit reads and steps on: rows of text in blocks, blocks in parts, parts in steps.

Knows: how much of a block fits into memory, how many blocks make the closed form, which parts make a step.
Does not know: states, how text is read, what a step does.
"""

from dataclasses import dataclass
from math import ceil
from typing import Protocol

import torch

# rows that all processes together read at once; those of a block are a multiple of it, so that a resumed run reads the
# same batches
ROWS_TOGETHER = 8


class ModelSizes(Protocol):
    """What of a model decides how much of a block fits: an LM has it, and the shape of one that is not there."""

    @property
    def n_layers(self) -> int:
        """The number of blocks."""
        ...

    @property
    def hidden_size(self) -> int:
        """D: the size of a state."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of states."""
        ...


@dataclass(frozen=True)
class Schedule:
    """What a run reads and steps on, whatever the number of processes: `rows` of `length` tokens, `block` at a time.

    The first `warm` blocks make the closed form; steps begin with the last of them. A block is cut into `parts`, and
    `together` parts make a step.
    """

    rows: int
    length: int
    block: int
    warm: int
    parts: int
    together: int

    @staticmethod
    def of(
        lm: ModelSizes, tokens: int, length: int, *, room: int, per_step: int, ridge: bool, low: torch.dtype | None
    ) -> "Schedule":
        """For `tokens` tokens, with `room` bytes for the states of a block, but at least 8 rows.

        Args:
            lm: the model whose states are read, or its sizes.
            tokens: how many tokens are read.
            length: tokens of a row.
            room: bytes for the states of a block.
            per_step: tokens of a step.
            ridge: whether the closed form comes first.
            low: the dtype in which states below the last are kept, None: the model's own.
        """
        rows = ceil(tokens / length)
        each = length * lm.hidden_size * (lm.n_layers * (low or lm.dtype).itemsize + lm.dtype.itemsize)
        blocks = ceil(rows / max(ROWS_TOGETHER, room // each // ROWS_TOGETHER * ROWS_TOGETHER))
        # about equal ones
        block = ceil(rows / blocks / ROWS_TOGETHER) * ROWS_TOGETHER
        blocks = ceil(rows / block)
        size = min(rows, block) * length
        warm = min(max(1, ceil(8 * lm.hidden_size / size)), max(1, blocks // 2)) if ridge else 1
        return Schedule(
            rows, length, block, warm, max(1, round(size / per_step)), 1 if per_step <= size else round(per_step / size)
        )

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return ceil(self.rows / self.block)

    def size(self, number: int) -> int:
        """The rows of a block."""
        return min(self.block, self.rows - number * self.block)

    def parts_of(self, number: int) -> int:
        """The parts of a block; a last, shorter block has fewer."""
        if number < self.warm - 1:
            return 0
        return max(1, round(self.parts * self.size(number) / min(self.block, self.rows)))

    @property
    def all_parts(self) -> int:
        """The parts of all blocks."""
        return sum(self.parts_of(n) for n in range(self.blocks))

    @property
    def steps(self) -> int:
        """How many steps there are; the last one has the parts that remain."""
        return ceil(self.all_parts / self.together)
