"""The plain way to run rows of patches: hooks over whole prompts, every token computed for every row.

Knows: nothing that could be wrong about caches; it is the oracle of the staircase, and runs the models whose cache
cannot be shared. Does not know: what is shared between rows.
"""

from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor

from lenscope.engine.patched_rows import ApplyPatches
from lenscope.models.batches import Running, rows_per_run
from lenscope.models.language_model import LM


class HookRunner:
    """Runs N rows of equal length from their first token, again for every new token."""

    def __init__(self, lm: LM, layers: list[int], change: ApplyPatches) -> None:
        self.lm = lm
        self.layers = layers
        self.change = change
        self.rows = np.arange(0)
        self.ids = torch.empty(0)

    def run(self, ids: Tensor, last: int = 1) -> Tensor:
        """Feed ids (N, S), each row's next tokens; returns the last layer's states (N, last, D) of the last ones."""
        if self.ids.ndim == 1:
            self.rows, self.ids = np.arange(len(ids)), ids
        else:
            self.ids = torch.cat([self.ids, ids], 1)
        most = rows_per_run(self.ids.shape[1])
        return torch.cat([self._states(slice(at, at + most), last) for at in range(0, len(self.ids), most)])

    def grow(self, going_on: np.ndarray, tokens: np.ndarray) -> None:
        """Go on with the rows `going_on` only; `tokens` are fed by the next run."""
        self.rows, self.ids = self.rows[going_on], self.ids[torch.from_numpy(going_on).to(self.ids.device)]

    def _states(self, part: slice, last: int) -> Tensor:
        rows, ids = self.rows[part], self.ids[part]
        states: list[Tensor] = []

        def patched(layer: int, h: Tensor) -> Tensor:
            h = h.clone()
            self.change(layer, h, rows, 0)
            return h

        with self.lm.runner.exclusive.alone(), ExitStack() as undo:
            for n in self.layers:
                undo.callback(self.lm.runner.hook(n, lambda h, n=n: patched(n, h)).remove)
            self.lm.runner.capture(
                Running.of_ids(ids), {self.lm.n_layers}, lambda _, h: states.append(h[:, -last:].clone())
            )
        return states[0]
