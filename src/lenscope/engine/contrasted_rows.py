"""Rows that write what a contrast chooses: beside each row one without its patch reads along what the row writes.

Knows: which row reads along with which, so that tokens are chosen from both. Does not know: how rows run
(chunked_runs.py), how a token is chosen of two states (token_choice_and_end.py), what a patch means.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lenscope.engine import sweep
from lenscope.engine.chunked_runs import CHUNK_BYTES, Choose
from lenscope.engine.patched_rows import GeneratedRow, PatchedRows, WrittenStep, in_one_batch
from lenscope.models.language_model import LM


@dataclass(frozen=True, eq=False)
class ContrastedRows:
    """N rows that write, and behind them those that read along. `read_along` makes it.

    Rows that read along are rows like any other: those of equal texts share all states below the last layer, and
    with rows that are patched the states below their first patch (staircase.py).

    Attributes:
        rows: the N rows, then the others; its `leader` says which reads along with which.
        beside: the number (N,) of the row that reads along with each; its own where none does.
    """

    rows: PatchedRows
    beside: np.ndarray

    def generate(
        self, lm: LM, choose: Choose, max_new_tokens: int, budget: int = CHUNK_BYTES, mode: str | None = None
    ) -> Iterator[tuple[np.ndarray, list[GeneratedRow]]]:
        """As `sweep.generate` of the N rows; `choose` gets states (n, 2 · D): each row's own beside the other's.

        Args:
            lm: the model that reads the rows and writes.
            choose: as of `sweep.generate`, of pairs of states.
            max_new_tokens: how many tokens a row writes at most.
            budget: bytes that the states, keys and values of one chunk may take.
            mode: the way to run all rows in; None: the fastest that was measured to be exact for this model.
        """
        for mine, wrote in sweep.generate(lm, self.rows, self._of_pairs(choose), max_new_tokens, budget, mode):
            own = np.flatnonzero(mine < len(self.beside))
            yield mine[own], [wrote[n] for n in own.tolist()]

    def write(
        self, lm: LM, choose: Choose, max_new_tokens: int, budget: int = CHUNK_BYTES, mode: str | None = None
    ) -> Iterator[WrittenStep]:
        """As `generate`, every token as soon as it is written, as `sweep.write`."""
        for step in sweep.write(lm, self.rows, self._of_pairs(choose), max_new_tokens, budget, mode):
            own = np.flatnonzero(step.rows < len(self.beside))
            yield WrittenStep(step.rows[own], step.ids[own], step.log_probs[own], step.ended[own])

    def _of_pairs(self, choose: Choose) -> Choose:
        """What chooses for the rows and for those that read along, of a `choose` of pairs."""

        def both(h: Tensor, rows: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            place = np.full(len(self.rows), -1)
            place[rows] = np.arange(len(rows))
            own = np.flatnonzero(rows < len(self.beside))
            others = place[self.beside[rows[own]]]
            pairs = [h[torch.from_numpy(at).to(h.device)] for at in (own, others)]
            chosen = choose(torch.cat(pairs, -1), rows[own], step)
            # what a row writes is what the one beside it reads, and they end together
            place[rows[own]] = np.arange(len(own))
            written = place[self.rows.leader[rows]]
            ids, log_probs, ended = (values[written] for values in chosen)
            return ids, log_probs, ended

        return both


def read_along(rows: PatchedRows, plain: PatchedRows, beside: np.ndarray) -> ContrastedRows:
    """Let rows without a patch read along with N rows.

    `beside` (N,) is the number in `plain` of the row that reads along with each, -1 where none does: such a row is
    contrasted with itself, which changes nothing. Each of `plain` reads along with one row, from the same start.
    """
    writes = np.flatnonzero(beside >= 0)
    leader = np.arange(len(rows) + len(plain))
    leader[len(rows) + beside[writes]] = writes
    together = replace(in_one_batch([rows, plain]), leader=leader)
    return ContrastedRows(together, np.where(beside >= 0, len(rows) + beside, np.arange(len(rows))))
