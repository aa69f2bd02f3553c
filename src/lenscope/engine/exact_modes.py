"""Which modes of running rows of patches give a model's own numbers, seen on rows like those that are to run.

Knows: how far each mode is from plain hooks over whole prompts, at which lengths.
Does not know: how rows run (chunked_runs.py), which rows are asked for.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lenscope.engine.cache_layout import cache_layout
from lenscope.engine.chunked_runs import MODES, generate_rows
from lenscope.engine.patched_rows import PatchedRows
from lenscope.models.deviations import deviation
from lenscope.models.edits import replace
from lenscope.models.exactness import measured_deviation, tolerance
from lenscope.models.language_model import LM
from lenscope.models.residual_stream import trial_text


@dataclass(frozen=True)
class TrialRows:
    """Rows to measure a mode with: of `length` tokens, patched from `start` on, that write `steps` tokens.

    What was measured for a `key` holds for all of the same key.
    """

    start: int
    length: int
    steps: int
    key: tuple[int, ...]


def fastest_exact_mode(lm: LM, start: int = 0, length: int = 0, new: int = 0) -> str:
    """The fastest of MODES that gives this model's own numbers; the arguments are those of `is_exact_mode`."""
    return next(m for m in MODES if m == "plain" or is_exact_mode(lm, m, start, length, new))


def is_exact_mode(lm: LM, mode: str, start: int = 0, length: int = 0, new: int = 0) -> bool:
    """Whether rows may run in a mode that read a prefix of `start` tokens, are `length` long and write `new` more.

    Seen on short prompts, and, where the model's configuration names a length from which on it may behave otherwise
    that any of these is beyond, on prompts of these lengths.

    Args:
        lm: the model.
        mode: one of `MODES`.
        start: tokens of the prefix that is read once.
        length: tokens of the rows' prompts.
        new: tokens that rows write.
    """
    limit, end = tolerance(lm.runner), length + max(0, new - 1)
    regimes = lm.runner.regimes
    if not mode_deviation(lm, mode) <= limit:
        return False
    if not any(regimes.key(start, length, end)):
        return True
    at = TrialRows(start, length, 3, regimes.key(start, length))
    if not mode_deviation(lm, mode, at) <= limit:
        return False
    for cut in regimes.crossed(length, end):
        before = max(length, cut - 1)
        at = TrialRows(start, before, 6, (*regimes.key(start, length), cut, cut - before))
        if not mode_deviation(lm, mode, at) <= limit:
            return False
    return True


def mode_deviation(lm: LM, mode: str, at: TrialRows | None = None) -> float:
    """How far a mode moves the logits from plain hooks over whole prompts; infinite where it fails.

    Measured once for each key, on patches at early and late layers, in the middle and at the end of prompts, with
    two more tokens written after them; as `lenscope.models.deviations.deviation`.
    """
    key = () if at is None else at.key

    def measure() -> float:
        plain = lm.runner.measured.once(("rows run plainly", *key), lambda: _trial_logits(lm, "plain", at))
        if mode == "plain":
            return 0.0
        cache_layout(lm)
        return deviation(_trial_logits(lm, mode, at), plain)

    return measured_deviation(lm.runner, ("mode of rows", mode, *key), measure)


def _trial_logits(lm: LM, mode: str, at: TrialRows | None) -> Tensor:
    """Logits of a few patched rows at some steps of writing given tokens, (steps · rows, V)."""
    n, steps = lm.n_layers, 3 if at is None else at.steps
    length = 7 if at is None else at.length
    last = length - 1
    # of the last: pairs of patches, and a row that is not patched
    single: tuple[tuple[tuple[int, int], ...], ...]
    if at is None:
        single = (((0, 6),), ((n, 6),), ((n // 2, 3),), ((1, 4), (n - 1, 6)), ((n // 2, 0),))
    else:
        start = min(at.start, last)
        single = (((0, start),), ((n, start),), ((n // 2, start),), ((1, start), (n - 1, last)), ((n // 2, last),))
    ids = [trial_text(lm.runner.anatomy, length, row) for row in (0, 2)]
    # every chunk starts where at the earliest its rows do
    starts = () if at is None else (((0, min(at.start, last)),),)
    rows: list[int] = []
    layers: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    end = (((n // 2, last),), ())
    for target, patched in ((0, single), (0, end), (1, (*starts, *end))):
        for patches in patched:
            for layer, position in patches:
                rows.append(len(targets))
                layers.append(layer)
                positions.append(position)
            targets.append(target)
    vectors = lm.runner.anatomy.states[n // 2][1, :4].flip(-1)
    trial = PatchedRows(
        tuple(map(lm.prompt, ids)),
        np.array(targets),
        vectors,
        np.array(rows),
        np.array(layers),
        np.array(positions),
        np.arange(len(rows)) % len(vectors),
        np.zeros(len(rows), dtype=np.int64),
        (replace,),
    )
    states = torch.zeros(steps, len(trial), lm.hidden_size, dtype=lm.dtype, device=lm.device)

    def choose(h: Tensor, which: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        states[step, which] = h
        # several rows write the same, some another token, and one row ends early
        tokens = np.array([ids[1][(r + step) // 3 % 2] for r in which])
        return tokens, np.zeros(len(which)), which == (4 if step == 1 else -1)

    for _ in generate_rows(lm, trial, choose, steps, lambda *_: mode):
        pass
    states[2:, 4] = 0
    return lm.runner.own_logits(states.flatten(0, 1))
