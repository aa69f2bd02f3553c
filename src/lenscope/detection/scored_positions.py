"""Where a prompt is odd: parts of it are scored as if each were a prompt, and the oddest span is chosen.

Knows: which parts stand for a position, how rows of features are made of parts, how a span is chosen.
Does not know: what a detector looks at and how it scores rows, how results look (position_results.py).
"""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from lenscope.detection.position_results import OddPositions
from lenscope.detection.probe_features import (
    BOTH,
    LAST,
    MEAN,
    ProbeReading,
    pool_positions,
    position_values,
)
from lenscope.engine.shared_prefix_states import StatesBehindPrefix
from lenscope.models.language_model import LM
from lenscope.models.prompts import Prompt
from lenscope.models.provenance import provenance

# positions of the moving mean by which the span is chosen
SMOOTHED_OVER = 9
# a span goes on as long as the moving mean is above this share of the way from the median to the peak
SPAN_LEVEL = 0.5

# positions around each one that are scored as if they were a prompt
WINDOW = 9

# positions [start, stop) of a prompt that are scored as if they were one
Part = tuple[int, int]


def parts_of_positions(length: int, window: int) -> list[Part]:
    """For each position but the first, which has seen nothing, the part of up to `window` positions around it."""
    before, after = (window - 1) // 2, window // 2
    return [(max(1, t - before), min(length, t + after + 1)) for t in range(1, length)] or [(0, 1)]


def trajectories_of_parts(
    values: np.ndarray, parts: Sequence[Part], pooled: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Features (N, F) of parts by the values (M, T) of a prompt's positions, as `pooled` makes them of a whole prompt.

    It leaves out the first position of what it is given, which is the one before the part.
    """
    return np.stack([pooled(values[:, max(0, start - 1) : stop]) for start, stop in parts])


def mean_states_of_parts(h: Tensor, parts: Sequence[Part]) -> np.ndarray:
    """The mean states (N, L, D) of parts of a prompt's states h (L, T, D)."""
    sums = np.concatenate([np.zeros((1, len(h), h.shape[-1])), h.double().cpu().numpy().swapaxes(0, 1).cumsum(0)])
    starts, stops = np.array(parts).T
    return np.asarray((sums[stops] - sums[starts]) / (stops - starts)[:, None, None])


def probe_rows_of_parts(
    reading: ProbeReading, batch: StatesBehindPrefix, view: str, layer: int, parts: Sequence[Part]
) -> np.ndarray:
    """Features (N, F) of parts of the only prompt of a batch, for a view of states or trajectories, at its layer."""
    columns: list[np.ndarray] = []
    if view in (LAST, MEAN, BOTH):
        (whole,) = batch.states()
        h = whole[[batch.layers.index(layer)]]
        if view == MEAN:
            columns.append(mean_states_of_parts(h, parts)[:, 0].astype(np.float32))
        else:
            columns.append(h[0, [stop - 1 for _, stop in parts]].float().cpu().numpy())
    if view not in (LAST, MEAN):
        of_lenses = position_values(reading.through, batch, reading.lens_layers).values()
        columns += [trajectories_of_parts(values, parts, pool_positions) for (values,) in of_lenses]
    # beside states in the precision of states, as in the rows of whole prompts
    return np.concatenate([c.astype(np.float32) for c in columns] if view == BOTH else columns, 1)


def moving_mean(values: np.ndarray, over: int = SMOOTHED_OVER) -> np.ndarray:
    """The mean of up to `over` values around each, those at the ends of fewer; NaN is left out, and stays."""
    known = np.isfinite(values)
    kernel = np.ones(over)
    sums, counts = (np.convolve(v, kernel)[over // 2 :][: len(values)] for v in (np.where(known, values, 0), known))
    return np.where(known, sums / np.maximum(counts, 1), np.nan)


def oddest_span(smoothed: np.ndarray) -> Part:
    """The positions [start, stop) around the highest value that are nearer to it than to the median of all."""
    peak = int(np.nanargmax(smoothed))
    level = smoothed[peak] - SPAN_LEVEL * (smoothed[peak] - np.nanmedian(smoothed))
    start, stop = peak, peak + 1
    while start > 0 and smoothed[start - 1] >= level:
        start -= 1
    while stop < len(smoothed) and smoothed[stop] >= level:
        stop += 1
    return start, stop


def locate(
    lm: LM,
    prompt: Prompt,
    scored: Callable[[Sequence[Part]], np.ndarray],
    *,
    window: int,
    detector: str,
    unit: str,
    threshold: float,
    score: float,
) -> OddPositions:
    """Score each position of a prompt by the part of up to `window` positions around it, and choose the oddest span.

    `scored` gives the scores (N,) of parts; the other arguments are those of `OddPositions`.
    """
    values = scored(parts_of_positions(len(prompt), window))
    scores = np.concatenate([np.full(len(prompt) - len(values), np.nan), values])
    smoothed = moving_mean(scores)
    return OddPositions(
        model=lm.name,
        detector=detector,
        unit=unit,
        text=prompt.text,
        tokens=prompt.tokens,
        places=prompt.spans,
        scores=scores.astype(np.float32),
        smoothed=smoothed.astype(np.float32),
        span=oddest_span(smoothed),
        score=score,
        threshold=threshold,
        provenance=provenance(lm),
    )
