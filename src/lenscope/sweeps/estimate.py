"""How long a sweep takes and how much memory, from parts that are run for it and thrown away.

Knows: which parts stand for all others, how much was measured. Does not know: how parts are run.
"""

import resource
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch

from lenscope.models.interruption import check_interruption
from lenscope.models.progress import Progress
from lenscope.sweeps.part_files import part_content
from lenscope.sweeps.part_runs import PartRunner
from lenscope.sweeps.parts import Part, SweepRows

# seconds that parts are tried for; what one part takes more is taken
TRIED_SECONDS = 20.0


@dataclass(frozen=True)
class SweepEstimate:
    """What a sweep will take: rows as asked for and each once, parts, and what a measured sample says of the rest.

    `seconds` are of one process like this one, `memory` the most bytes that this process took for the sample, models
    included, `device_memory` those on an accelerator, `disk` the bytes of all parts. `sample_rows` of `sample_parts`
    parts were run, in `sample_seconds`.
    """

    rows_asked_for: int
    rows: int
    parts: int
    seconds: float
    memory: int
    device_memory: int
    disk: int
    sample_rows: int
    sample_parts: int
    sample_seconds: float

    def lines(self) -> list[str]:
        """All of it, in lines."""
        device = f", {self.device_memory / 1e9:.2f} GB on the device" if self.device_memory else ""
        twice = f" ({self.rows_asked_for:,} asked for)" if self.rows_asked_for != self.rows else ""
        return [
            f"rows    {self.rows:,} distinct{twice}, in {self.parts:,} parts",
            f"time    about {duration(self.seconds)} in one process like this one",
            f"memory  {self.memory / 1e9:.2f} GB{device}; {self.disk / 1e6:,.1f} MB of parts",
            f"sample  {self.sample_rows:,} rows, {self.sample_parts} of the parts, run in {self.sample_seconds:.1f} s",
        ]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return dict(vars(self))


def estimate_sweep(runner: PartRunner, rows: SweepRows, progress: Progress | None = None) -> SweepEstimate:
    """Estimate what a sweep will take: run a part of each kind, as far as 20 seconds go, and infer the rest.

    A kind is an explaining model, a method, control or not. Kinds that were not tried are taken to need as long for a
    row as those that were, of the same method where there is one.
    """
    kind_of = {
        n: (one.explainer, one.method, one.target, one.control == "unpatched")
        for n, one in enumerate(rows.configurations)
    }
    firsts: dict[Any, Part] = {}
    for part in rows.parts:
        firsts.setdefault(kind_of[part.configuration], part)
    # of every method its largest kind first
    turns = {
        kind: sum(k[1] == kind[1] and p.rows > part.rows for k, p in firsts.items()) for kind, part in firsts.items()
    }
    speeds: dict[Any, tuple[float, int]] = {}
    size = 0
    for kind in sorted(firsts, key=lambda kind: turns[kind]):
        check_interruption()
        if speeds and sum(seconds for seconds, _ in speeds.values()) > TRIED_SECONDS:
            break
        part = firsts[kind]
        # what is measured of a model once is no part of what a row costs
        runner.run(replace(part, stop=part.start + 1))
        known = _measured_once(runner)
        table, taken = _timed(runner, part)
        if _measured_once(runner) > known:
            # some of it is measured where there are many rows; this runner holds the states that the part has read
            runner = PartRunner(runner.bench, runner.rows, runner.budget)
            table, taken = _timed(runner, part)
        speeds[kind] = taken, part.rows
        size += len(part_content(part, table))
        if progress is not None:
            progress(len(speeds), len(firsts))
    total, sampled = (sum(column) for column in zip(*speeds.values(), strict=True))
    seconds = 0.0
    for part in rows.parts:
        kind = kind_of[part.configuration]
        same = [speeds[kind]] if kind in speeds else [s for k, s in speeds.items() if k[1] == kind[1]]
        taken, ran = (sum(column) for column in zip(*(same or speeds.values()), strict=True))
        seconds += part.rows * taken / ran
    return SweepEstimate(
        rows.given,
        rows.total,
        len(rows.parts),
        seconds,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        int(size / sampled * rows.total),
        int(sampled),
        len(speeds),
        total,
    )


def _timed(runner: PartRunner, part: Part) -> tuple[pa.Table, float]:
    began = time.perf_counter()
    return runner.run(part), time.perf_counter() - began


def _measured_once(runner: PartRunner) -> int:
    """How many measurements of the models are kept, each of which is made once."""
    lms = {id(lm): lm for lm in (runner.bench.source, *runner.bench.explainers)}
    return sum(len(lm.runner.measured.values) for lm in lms.values())


def duration(seconds: float) -> str:
    """A time in words, as 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours:,} h {rest} min" if hours < 48 else f"{hours / 24:,.1f} days"
