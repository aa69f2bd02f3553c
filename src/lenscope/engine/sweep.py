"""The door of the engine: rows of patches in, their last states or what they write out, the fastest exact way.

Knows: that rows run in the fastest mode that was measured to be exact for the model, at their lengths.
Does not know: how rows run (chunked_runs.py), how a mode is measured (exact_modes.py), why rows are patched.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from torch import Tensor

from lenscope.engine import exact_modes
from lenscope.engine.chunked_runs import CHUNK_BYTES, Choose, ModeOf, generate_rows, predict_rows, written_steps
from lenscope.engine.patched_rows import GeneratedRow, PatchedRows, WrittenStep
from lenscope.models.language_model import LM


def predict(
    lm: LM, rows: PatchedRows, last: int = 1, budget: int = CHUNK_BYTES, mode: str | None = None
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Run every row, and give the last layer's states at its last positions, chunk by chunk.

    Each chunk is a pair: numbers of rows (n,), and their states (n, last, D).

    Args:
        lm: the model that reads the rows.
        rows: N rows.
        last: how many positions, counted from the end of each row.
        budget: bytes that the states, keys and values of one chunk may take.
        mode: the way to run all rows in (`lenscope.engine.chunked_runs.MODES`); None: the fastest that was measured to
            be exact for this model.

    Raises LenscopeError where the vectors are not of the model's size, or inside an edit.
    """
    return predict_rows(lm, rows, _modes(lm, mode), last, budget)


def generate(
    lm: LM, rows: PatchedRows, choose: Choose, max_new_tokens: int, budget: int = CHUNK_BYTES, mode: str | None = None
) -> Iterator[tuple[np.ndarray, list[GeneratedRow]]]:
    """Let every row write on, token by token as `choose` says, and give what it wrote, chunk by chunk.

    Each chunk is a pair: numbers of rows (n,), and what they wrote. Rows that end leave the batch. Otherwise as
    `predict`.

    Args:
        lm: the model that reads the rows and writes.
        rows: N rows.
        choose: called for every token with states (n, D), the numbers of their rows (n,) and the step; gives token ids
            (n,), their log-probabilities (n,) and which rows end there (n,).
        max_new_tokens: how many tokens a row writes at most.
        budget: bytes that the states, keys and values of one chunk may take.
        mode: the way to run all rows in; None: the fastest that was measured to be exact for this model.
    """
    return generate_rows(lm, rows, choose, max_new_tokens, _modes(lm, mode), budget)


def write(
    lm: LM, rows: PatchedRows, choose: Choose, max_new_tokens: int, budget: int = CHUNK_BYTES, mode: str | None = None
) -> Iterator[WrittenStep]:
    """As `generate`, every token as soon as it is written: step by step, and chunk after chunk where there are several.

    Args:
        lm: the model that reads the rows and writes.
        rows: N rows.
        choose: as of `generate`.
        max_new_tokens: how many tokens a row writes at most.
        budget: bytes that the states, keys and values of one chunk may take.
        mode: the mode to run all rows in; None: the fastest exact one.
    """
    return written_steps(lm, rows, choose, max_new_tokens, _modes(lm, mode), budget)


def _modes(lm: LM, mode: str | None) -> ModeOf:
    return partial(_fastest, lm) if mode is None else lambda *_: mode


def _fastest(lm: LM, start: int, length: int, new: int, few: bool) -> str:
    mode = exact_modes.fastest_exact_mode(lm, start, length, new)
    # a prefix that a few rows share is not worth a chunk: rows of several targets run together
    return "fork" if mode == "cascade" and few and exact_modes.is_exact_mode(lm, "fork", start, length, new) else mode
