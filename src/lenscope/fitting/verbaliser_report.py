"""What a trained verbaliser is worth: labels that were not trained on, beside controls that know less.

Knows: which vectors each control has written, that whole labels are resampled. Does not know: how the map was trained.

A label says its own sounding text for any vector where the target prompt and the map's bias alone make it likely: what
the vector adds is the difference to another label's vector, and to the bias.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.fitting.verbaliser_steps import LabelledVectors, VerbaliserRun, per_token
from lenscope.mappings.vector_map import directions
from lenscope.patchscopes.controls import random_like
from lenscope.statistics.derangements import derange
from lenscope.statistics.estimates import difference, mean
from lenscope.statistics.intervals import Estimate, bootstrap

TRAINED, STATE, UNIT, BIAS = "trained", "state itself", "unit vector", "bias alone"
OTHER, RANDOM = "another label's vector", "random vector"


def measured_report(run: VerbaliserRun, rows: LabelledVectors, norm: float, seed: int) -> dict[str, Any]:
    """Log-likelihoods per label token of rows that neither trained nor selected, trained and controls, as JSON values.

    Each is [mean over labels, low, high], in nats, with the 95 % interval of resampled labels; "trained less" has the
    paired differences. "bias share" is (bias alone - untrained) / (trained - untrained), the untrained map being the
    better one of the two; null where the widths of vectors and states differ, which leaves no untrained map.

    Args:
        run: the finished run.
        rows: vectors and labels.
        norm: the norm of the target prompt's own states.
        seed: fixes exchanges, random vectors and resamples.
    """
    written = _written(run, rows, norm, seed)
    units, each = list(rows.labels), {}
    by_layer: list[float] = []
    for name, vectors in written.items():
        values = per_token(run.read, vectors, rows.tokens)
        each[name] = values.mean(1).numpy()
        if name == TRAINED:
            by_layer = [float(v) for v in values.mean(0)]
    less = {
        name: difference(each[TRAINED], values, units=units, seed=seed)
        for name, values in each.items()
        if name != TRAINED
    }
    return {
        "labels": len(set(rows.labels)),
        "rows": len(rows.labels),
        "tokens": sum(map(len, rows.tokens)),
        "log-likelihood per token": {name: list(mean(v, units=units, seed=seed)) for name, v in each.items()},
        "trained less": {name: list(gap) for name, gap in less.items()},
        "bias share": _bias_share(each, units, seed),
        "by layer": by_layer,
    }


def _written(run: VerbaliserRun, rows: LabelledVectors, norm: float, seed: int) -> dict[str, Tensor]:
    """What is written for the rows (N, L, D*), by condition."""
    best, h = run.at.best, rows.h
    numbers = list(range(h.shape[1]))

    def through(vectors: Tensor) -> Tensor:
        parts = [run.weights.written(best, vectors[:, n], [n] * len(vectors)) for n in numbers]
        return torch.stack(parts, 1)

    own = through(h)
    every = {TRAINED: own}
    if own.shape[-1] == h.shape[-1]:
        every[STATE], every[UNIT] = h, norm * directions(h)
    # what the map gives on average, whatever the vector is
    every[BIAS] = through(run.train.h).mean(0).expand_as(own)
    every[OTHER] = through(h[torch.tensor(derange(rows.labels, seed), device=h.device)])
    every[RANDOM] = through(random_like(h, seed))
    return every


def _bias_share(each: dict[str, np.ndarray], units: Sequence[str], seed: int) -> list[float | None] | None:
    if STATE not in each:
        return None
    before = max((each[STATE], each[UNIT]), key=lambda values: float(values.mean()))

    def share(trained: np.ndarray, bias: np.ndarray, untrained: np.ndarray) -> float:
        gain = float((trained - untrained).mean())
        return float((bias - untrained).mean()) / gain if gain else float("nan")

    ratio: Estimate = bootstrap(share, each[TRAINED], each[BIAS], before, units=units, seed=seed)
    return [None if value != value else float(value) for value in ratio]
