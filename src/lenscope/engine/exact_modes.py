"""Which ways of running rows of patches give a model's own numbers, seen on rows like those that are to run.

Knows: the ways, fastest first, and how far each is from plain hooks over whole prompts, at which lengths.
Does not know: how rows run: it is given what runs them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.engine.patched_rows import PatchedRows
from lenscope.engine.prefix_cache import Prefixes, size
from lenscope.engine.staircase import Batched, batched_arguments
from lenscope.models.deviations import FAILURES, deviation
from lenscope.models.edits import replace
from lenscope.models.exactness import tolerance
from lenscope.models.language_model import LM
from lenscope.models.residual_stream import probe_text

# ways to run rows, fastest first
MODES = ("cascade", "fork", "plain")

# run(model, rows, choose, tokens to write, mode): as `rows.write` with a mode forced
Run = Callable[..., Iterator[Any]]


@dataclass(frozen=True)
class ProbeRows:
    """Rows to measure a mode with: of `length` tokens, patched from `start` on, that write `steps` tokens.

    What was measured for a `key` holds for all of the same key.
    """

    start: int
    length: int
    steps: int
    key: tuple[int, ...]


class ExactModes:
    """What was measured of a model: how far each mode is from the plain way, by the same probe, for each range.

    `batched` and `bytes_per_token` are what the modes need to know of the model's blocks and of its cache.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.batched: Batched = {}
        self.bytes_per_token = 0
        self.states: dict[tuple[int, ...], Tensor] = {}
        self.gaps: dict[tuple[str, tuple[int, ...]], float] = {}
        self.failures: dict[str, str] = {}

    def fastest(self, lm: LM, start: int = 0, length: int = 0, new: int = 0) -> str:
        """The fastest of MODES that gives this model's own numbers; the arguments are those of `exact`."""
        return next(m for m in MODES if m == "plain" or self.exact(lm, m, start, length, new))

    def exact(self, lm: LM, mode: str, start: int = 0, length: int = 0, new: int = 0) -> bool:
        """Whether rows may run in a mode that read a prefix of `start` tokens, are `length` long and write `new` more.

        Seen on short prompts, and, where the model's configuration names a length from which on it may behave otherwise
        that any of these is beyond, on prompts of these lengths.
        """
        limit, end = tolerance(lm.runner), length + max(0, new - 1)
        if not self.gap(lm, mode) <= limit:
            return False
        if not any(lm.runner.regimes.key(start, length, end)):
            return True
        at = ProbeRows(start, length, 3, lm.runner.regimes.key(start, length))
        if not self.gap(lm, mode, at) <= limit:
            return False
        for cut in lm.runner.regimes.crossed(length, end):
            before = max(length, cut - 1)
            at = ProbeRows(start, before, 6, (*lm.runner.regimes.key(start, length), cut, cut - before))
            if not self.gap(lm, mode, at) <= limit:
                return False
        return True

    def gap(self, lm: LM, mode: str, at: ProbeRows | None = None) -> float:
        """How far a way of running moves the logits from plain hooks over whole prompts; infinite where it fails.

        Measured once for each key, on patches at early and late layers, in the middle and at the end of prompts, with
        two more tokens written after them; as `lenscope.models.deviations.deviation`.
        """
        key = () if at is None else at.key
        with lm.lock:
            if (mode, key) not in self.gaps:
                try:
                    if key not in self.states:
                        self.gaps["plain", key] = 0.0
                        self.states[key] = self._probe(lm, "plain", at)
                    if mode != "plain" and not self.bytes_per_token:
                        prefix = Prefixes(lm).own([tuple(row) for row in lm.runner.anatomy.ids.tolist()])
                        self.bytes_per_token = 1 + size(prefix) // lm.runner.anatomy.ids.numel()
                        self.batched = batched_arguments(lm)
                    if mode != "plain":
                        self.gaps[mode, key] = deviation(self._probe(lm, mode, at), self.states[key])
                except FAILURES as error:
                    if isinstance(error, torch.OutOfMemoryError):
                        raise
                    self.gaps[mode, key] = float("inf")
                    self.failures[mode] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            return self.gaps[mode, key]

    def _probe(self, lm: LM, mode: str, at: ProbeRows | None) -> Tensor:
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
        ids = [probe_text(lm.runner.anatomy, length, row) for row in (0, 2)]
        # every chunk starts where at the earliest its rows do
        starts = () if at is None else (((0, min(at.start, last)),),)
        rows: list[int] = []
        layers: list[int] = []
        positions: list[int] = []
        targets: list[int] = []
        end = (((n // 2, last),), ())
        for target, some in ((0, single), (0, end), (1, (*starts, *end))):
            for patches in some:
                for layer, position in patches:
                    rows.append(len(targets))
                    layers.append(layer)
                    positions.append(position)
                targets.append(target)
        vectors = lm.runner.anatomy.states[n // 2][1, :4].flip(-1)
        made = PatchedRows(
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
        found = torch.zeros(steps, len(made), lm.hidden_size, dtype=lm.dtype, device=lm.device)

        def choose(h: Tensor, some: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            found[step, some] = h
            # several rows write the same, some another token, and one row ends early
            tokens = np.array([ids[1][(r + step) // 3 % 2] for r in some])
            return tokens, np.zeros(len(some)), some == (4 if step == 1 else -1)

        for _ in self.run(lm, made, choose, steps, mode=mode):
            pass
        found[2:, 4] = 0
        return lm.runner.own_logits(found.flatten(0, 1))
