"""Hidden keys: which keys the queries of a row may not see, as attention knockout asks for, made into masks.

Knows: (block, query, key) of every row. Does not know: why keys are hidden, how attention runs (shared_attention.py).
"""

import numpy as np
import torch
from torch import Tensor

from lenscope.engine.patched_rows import PatchedRows


class HiddenKeys:
    """The keys that a chunk's rows may not see, by block."""

    def __init__(self, rows: PatchedRows, chunk: np.ndarray) -> None:
        number = np.full(len(rows), -1)
        number[chunk] = np.arange(len(chunk))
        mine = rows.hidden_keys[number[rows.hidden_keys[:, 0]] >= 0].copy()
        mine[:, 0] = number[mine[:, 0]]
        self.hidden_keys = mine

    def allowed(self, block: int, rows: np.ndarray, batch: int, queries: int, keys: int) -> Tensor | None:
        """(batch, queries, keys) of which key each query may see; None: all of them.

        Args:
            block: the block that attends, 0…n_layers-1.
            rows: the rows of the chunk that come first in the batch.
            batch: how many rows the batch has.
            queries: how many tokens are fed.
            keys: how many keys there are, those of the fed tokens at the end.
        """
        hidden = self.hidden_keys[(self.hidden_keys[:, 1] <= block) & (block < self.hidden_keys[:, 2])]
        where = np.full(max(int(rows.max(initial=0)), int(hidden[:, 0].max(initial=0))) + 1, -1)
        where[rows] = np.arange(len(rows))
        hidden = hidden[(where[hidden[:, 0]] >= 0) & (hidden[:, 5] < keys)]
        if not len(hidden):
            return None
        seen = torch.ones(batch, queries, keys, dtype=torch.bool)
        for q in range(queries):
            at = keys - queries + q
            hit = hidden[(hidden[:, 3] <= at) & ((at < hidden[:, 4]) | (hidden[:, 4] < 0))]
            seen[where[hit[:, 0]], q, hit[:, 5]] = False
        return seen
