"""The measures of lenses, and their intervals, of sums over text.

Knows: how measures are made of sums, what is resampled for intervals, differences from the logit lens.
Does not know: how text is summed (text_sums.py), how results look.
"""

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.lenses.evaluation_results import MEASURES, Evaluation
from lenscope.lenses.lens import Lens
from lenscope.lenses.text_sums import BINS, SUMMED, SummedCell, TextSums
from lenscope.models.language_model import LM
from lenscope.models.provenance import provenance
from lenscope.statistics.intervals import RESAMPLES, jackknife, percentiles, times_drawn


def evaluation_of(
    lm: LM,
    lenses: Mapping[str, Lens],
    layers: tuple[int, ...],
    cells: list[SummedCell],
    total: TextSums,
    seed: int,
) -> Evaluation:
    """What the sums over a text say of the lenses at these layers.

    Args:
        lm: the model that predicts.
        lenses: the lenses by name.
        layers: the layers that are asked for.
        cells: which cells the sums have behind the model's own.
        total: the sums.
        seed: what resamples are drawn with.
    """
    seen = total.counts > 0
    sums, counts = total.sums[seen], total.counts[seen]
    size = np.full(len(counts), np.nan) if total.sizes is None else total.sizes[seen]
    value = _measures(sums.sum(0), counts.sum(), size.sum())
    value["bias"], without = _bias(list(total.means.values()))
    drawn = _resampled(sums, counts, size, seed)
    cell_values = {name: _with_interval(v, drawn[name], len(counts)) for name, v in value.items() if name != "bias"}
    cell_values["bias"] = np.stack([value["bias"], *jackknife(value["bias"], without).clip(min=0)], -1)
    baseline = next((name for name, lens in lenses.items() if lens.f is None), None)
    at = [(i, n) for i, n, _, _ in cells]
    differences = {}
    if baseline is not None:
        first = {n: c for c, (i, n) in enumerate(at, 1) if i == list(lenses).index(baseline)}
        base = [0, *(first[n] for _, n in at)]
        apart = {name: _with_interval(value[name] - value[name][base], v - v[:, base], len(counts))
                 for name, v in drawn.items()}  # fmt: skip
        bias = value["bias"] - value["bias"][base]
        apart["bias"] = np.stack([bias, *jackknife(bias, without - without[:, base])], -1)
        differences = {name: _spread(v, at, len(lenses), len(layers)) for name, v in apart.items()}
    names = {name: "identity" if lens.f is None else repr(lens.f) for name, lens in lenses.items()}
    about = {"lenses": names, "ids_sha256": total.sha256, "seed": seed, "bins": BINS}
    return Evaluation(
        model=lm.name,
        n_layers=lm.n_layers,
        lenses=tuple(lenses),
        layers=layers,
        baseline=baseline,
        rows=total.rows,
        units=len(counts),
        tokens=total.tokens,
        bytes=None if total.sizes is None else int(size.sum()),
        values={name: _spread(v, at, len(lenses), len(layers)) for name, v in cell_values.items()},
        differences=differences,
        own={name: v[0] for name, v in cell_values.items()},
        provenance={**provenance(lm), **about, "resamples": RESAMPLES},
    )


def _measures(sums: np.ndarray, count: Any, size: Any) -> dict[str, np.ndarray]:
    """The measures of sums (…, cells, K) over `count` predictions of tokens of `size` bytes, but for the bias."""
    means = {name: sums[..., n] / count for n, name in enumerate(SUMMED)}
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = sums[..., 0] / (np.where(size > 0, size, np.nan) * log(2))
    measures = {**means, "bits_per_byte": bits, "calibration": np.abs(sums[..., len(SUMMED) :]).sum(-1) / count}
    return {name: measures[name] for name in MEASURES if name in measures}


def _bias(means: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """KL(mean model ‖ mean lens) of every cell from each group's summed distributions (cells, V), the model's first.

    Of all groups (cells,), and without each of the groups (groups, cells); of a single one nothing is left.
    """
    each: list[Any] = [
        slice(None),
        *([m for m in range(len(means)) if m != n] for n in range(len(means)) if len(means) > 1),
    ]
    model = torch.stack([mean[0] for mean in means])
    own = [model[groups].sum(0) for groups in each]
    divergences = np.zeros((len(each), len(means[0])))
    for cell in range(len(means[0])):
        lens = torch.stack([mean[cell] for mean in means])
        # summed anew each time: a difference would leave rounding where a lens has hardly any mass
        divergences[:, cell] = [_kl_of_sums(p, lens[groups].sum(0)) for p, groups in zip(own, each, strict=True)]
    return divergences[0], divergences[1:]


def _kl_of_sums(p: Tensor, q: Tensor) -> float:
    """KL(p ‖ q) of summed distributions (V,), at least 0."""
    p, q, positive = p / p.sum(), q / q.sum(), p > 0
    q = q[positive].clamp_min(torch.finfo(torch.float64).tiny)
    return float((p[positive] * (p[positive] / q).log()).sum().clamp_min(0))


def _resampled(sums: np.ndarray, counts: np.ndarray, size: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The measures of resamples of the units, (resamples, cells) each, but for the bias."""
    units = len(counts)
    draws = times_drawn(units, RESAMPLES, np.random.default_rng(seed))
    drawn = (draws @ sums.reshape(units, -1)).reshape(RESAMPLES, *sums.shape[1:])
    return _measures(drawn, (draws @ counts)[:, None], (draws @ size)[:, None])


def _with_interval(value: np.ndarray, drawn: np.ndarray, units: int) -> np.ndarray:
    """Values (cells,) with the 95 % intervals of their resamples (resamples, cells) of so many units, (cells, 3)."""
    if units < 2:
        low = high = np.full_like(value, np.nan)
    else:
        low, high = percentiles(drawn, units)
    return np.stack([value, low, high], -1)


def _spread(values: np.ndarray, at: list[tuple[int, int]], lenses: int, layers: int) -> np.ndarray:
    """Values (1 + cells, 3) without the model's own as (lenses, layers, 3), NaN where there is no cell."""
    spread = np.full((lenses, layers, 3), np.nan)
    spread[tuple(np.array(at).T)] = values[1:]
    return spread
