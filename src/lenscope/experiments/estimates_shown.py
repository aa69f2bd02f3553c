"""Estimates as reports show them: as curves of a figure, as numbers in a sentence, and how many are surely above 0.

Knows: which parts of an estimate are shown, and how. Does not know: what is estimated.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lenscope.display.panels import Series
from lenscope.statistics.estimates import mean
from lenscope.statistics.intervals import Estimate


def curve(label: str, x: Sequence[Any], estimates: Sequence[Estimate], dashed: bool = False) -> Series:
    """Estimates over x with their intervals, to be drawn."""
    y, low, high = ([e[i] for e in estimates] for i in range(3))
    return Series(label, x, y, low, high, dashed)


def mean_curve(label: str, x: Sequence[Any], scores: np.ndarray, dashed: bool = False) -> Series:
    """The means of the columns of scores (N, X) over x with their intervals, to be drawn."""
    return curve(label, x, [mean(column) for column in scores.T], dashed)


def surely(estimates: Iterable[Estimate]) -> tuple[int, int]:
    """How many estimates are above 0 with their whole interval, and how many below."""
    listed = list(estimates)
    return sum(e.low > 0 for e in listed), sum(e.high < 0 for e in listed)
