"""The states of rows of text, in runs of rows of equal length, for what runs again from a changed state.

Knows: which rows run together, which of their positions count, what is resampled as one.
Does not know: what is done to states, which predictions are measured (predictions.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lenscope.models.batches import Running, length_groups
from lenscope.models.language_model import LM
from lenscope.models.prompts import Prompt
from lenscope.text.predictions import TextRows, counted_rows, nothing_counts

TOKENS = 1024


@dataclass(frozen=True, eq=False)
class RowStates:
    """Rows of equal length that run together: `states` (L, B, T, D), the last of them the last layer's.

    `counted` (B, T) are the positions that count, `units` (B, T) the numbers of the documents or rows they are of.
    """

    prompts: tuple[Prompt, ...]
    states: Tensor
    counted: Tensor
    units: np.ndarray


def row_states(lm: LM, rows: TextRows, layers: Sequence[int]) -> list[RowStates]:
    """All rows of some text that have positions that count, with their states at `layers` and at the last layer."""
    known: dict[tuple[str, int], int] = {}
    counting: list[tuple[Prompt, np.ndarray, np.ndarray]] = []
    for _, item in counted_rows(lm, rows, 0):
        for row in item:
            units = [known.setdefault((row.kind, unit), len(known)) for unit in row.units.tolist()]
            counting.append((row.prompt, row.counted, np.array(units)))
    if not counting:
        raise nothing_counts("position")
    runs = []
    for group in length_groups([prompt for prompt, _, _ in counting], lambda short, long: False):
        most = max(1, TOKENS // len(counting[group[0]][0]))
        parts = (group[at : at + most] for at in range(0, len(group), most))
        runs += [read_together(lm, [counting[i] for i in part], layers) for part in parts]
    return runs


def read_together(lm: LM, rows: list[tuple[Prompt, np.ndarray, np.ndarray]], layers: Sequence[int]) -> RowStates:
    """Rows of equal length, read in one run: each a prompt, which of its positions count, and the units of these."""
    prompts = [prompt for prompt, _, _ in rows]
    wanted = (*layers, lm.n_layers)
    states: dict[int, Tensor] = {}
    running = Running.of_prompts(prompts, lm.runner.input_device)
    lm.runner.capture(running, set(wanted), lambda layer, h: states.update({layer: h.to(lm.device, copy=True)}))
    counts = torch.from_numpy(np.stack([c for _, c, _ in rows]))
    return RowStates(
        tuple(prompts), torch.stack([states[n] for n in wanted]), counts, np.stack([u for _, _, u in rows])
    )


def counts_by_unit(runs: list[RowStates]) -> np.ndarray:
    """How many positions count of each unit, (units,)."""
    units = np.concatenate([run.units[run.counted.numpy()] for run in runs])
    return np.bincount(units, minlength=int(max(run.units.max() for run in runs)) + 1)


def as_float64(values: Tensor) -> np.ndarray:
    """The numbers of a tensor in an array of float64."""
    return values.cpu().double().numpy()
