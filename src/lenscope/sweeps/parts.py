"""A sweep's rows as parts: which spots and which configuration are run together, in one order, whoever runs them.

Knows: how many rows there are without making one, where parts end, by which digest a part is known again.
Does not know: models, files.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lenscope.contents import Brief
from lenscope.sweeps.configurations import Configuration
from lenscope.sweeps.spots import Spots


@dataclass(frozen=True)
class Part:
    """Rows that are run and written together: a configuration at the spots from `start` up to `stop`.

    Of "unpatched" rows they are numbers of answers in place of spots, the first being none.
    """

    number: int
    configuration: int
    start: int
    stop: int
    rows: int
    digest: str

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.number:06d}-{self.digest[:16]}.parquet"


@dataclass(frozen=True, eq=False, repr=False)
class SweepRows(Brief):
    """All rows of a sweep: spots, configurations and the parts that they are cut into.

    `others` (S,) are the spots whose states the control "other-source" takes, empty where it is not asked for.
    `unpatched` are the answers (numbers of `spots.answers`, -1: none) that unpatched runs are scored with.
    """

    spots: Spots
    configurations: tuple[Configuration, ...]
    others: np.ndarray
    unpatched: np.ndarray
    parts: tuple[Part, ...]
    given: int

    @property
    def total(self) -> int:
        """How many rows there are, each once; `given` counts what the spec asks for twice, too."""
        return sum(part.rows for part in self.parts)


def sweep_rows(spots: Spots, configurations: Sequence[Configuration], seed: int, rows_per_part: int) -> SweepRows:
    """Cut the rows of a sweep into parts of at least `rows_per_part` rows, as far as there are as many.

    Raises LenscopeError where the control "other-source" finds no other source.
    """
    controls = {one.control for one in configurations}
    others = spots.others(seed) if "other-source" in controls else np.zeros(0, dtype=np.int64)
    unpatched = np.unique(spots.answer)
    cuts = []
    for n, one in enumerate(configurations):
        if one.control == "unpatched":
            counts = np.ones(len(unpatched), dtype=np.int64)
        else:
            counts = np.array([len(pairs) for pairs in one.pairs], dtype=np.int64)[spots.layers]
        ends = np.cumsum(counts)
        start = 0
        while start < len(ends):
            before = int(ends[start - 1]) if start else 0
            stop = min(len(ends), int(np.searchsorted(ends, before + rows_per_part)) + 1)
            cuts.append((start, n, stop, int(ends[stop - 1]) - before))
            start = stop
    # what is read of one source is needed by all configurations in turn
    cuts.sort()
    parts = []
    for number, (start, n, stop, rows) in enumerate(cuts):
        digest = _part_digest(spots, configurations[n], others, unpatched, start, stop)
        parts.append(Part(number, n, start, stop, rows, digest))
    given = sum(
        sum(places * layers * one.given for (_, layers), places in spots.given.items())
        if one.control != "unpatched"
        else one.times * sum(spots.given.values())
        for one in configurations
    )
    return SweepRows(spots, tuple(configurations), others, unpatched, tuple(parts), given)


def _part_digest(
    spots: Spots, one: Configuration, others: np.ndarray, unpatched: np.ndarray, start: int, stop: int
) -> str:
    total = hashlib.blake2b(one.digest, digest_size=32)
    if one.control == "unpatched":
        for answer in unpatched[start:stop].tolist():
            total.update(b"\0" if answer < 0 else spots.answers[answer].encode() + b"\1")
        return total.hexdigest()
    total.update(spots.digest[start:stop].tobytes())
    if one.control == "other-source":
        total.update(spots.digest[others[start:stop]].tobytes())
    # which layers each spot is read at, by what the sets hold
    used, number = np.unique(spots.layers[start:stop], return_inverse=True)
    for n in used.tolist():
        total.update(np.ascontiguousarray(one.pairs[n].astype("<i4")).tobytes() + b"|")
    if len(used) > 1:
        total.update(number.astype("<i4").tobytes())
    return total.hexdigest()
