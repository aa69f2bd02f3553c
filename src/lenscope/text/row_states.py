"""text.row_states"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lenscope.models.batches import length_groups, pad
from lenscope.models.edits import Running
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
    found: list[tuple[Prompt, np.ndarray, np.ndarray]] = []
    for _, some in counted_rows(lm, rows, 0):
        for row in some:
            units = [known.setdefault((row.kind, unit), len(known)) for unit in row.units.tolist()]
            found.append((row.prompt, row.counted, np.array(units)))
    if not found:
        raise nothing_counts("position")
    made = []
    for group in length_groups([prompt for prompt, _, _ in found], lambda short, long: False):
        most = max(1, TOKENS // len(found[group[0]][0]))
        made += [_run(lm, [found[i] for i in group[at : at + most]], layers) for at in range(0, len(group), most)]
    return made


def _run(lm: LM, rows: list[tuple[Prompt, np.ndarray, np.ndarray]], layers: Sequence[int]) -> RowStates:
    prompts = [prompt for prompt, _, _ in rows]
    wanted = (*layers, lm.n_layers)
    kept: dict[int, Tensor] = {}
    running = Running(prompts, range(len(prompts)), len(prompts), pad(prompts, "right", lm.runner.input_device))
    lm.runner.capture(running, set(wanted), lambda layer, h: kept.update({layer: h.to(lm.device, copy=True)}))
    counts = torch.from_numpy(np.stack([c for _, c, _ in rows]))
    return RowStates(tuple(prompts), torch.stack([kept[n] for n in wanted]), counts, np.stack([u for _, _, u in rows]))


def _counts(some: list[RowStates]) -> np.ndarray:
    units = np.concatenate([run.units[run.counted.numpy()] for run in some])
    return np.bincount(units, minlength=int(max(run.units.max() for run in some)) + 1)


def _numbers(values: Tensor) -> np.ndarray:
    return values.cpu().double().numpy()
