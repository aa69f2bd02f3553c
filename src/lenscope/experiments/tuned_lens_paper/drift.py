"""How states and translators change from layer to layer and in a fine-tune (Belrose et al. 2023, Figs 6, 7, 13).

Knows: protocol, controls, what is compared with the paper's numbers.
Does not know: how covariances and transfer are computed (directions/covariances.py, lenses/evaluate.py), the fine-tune
(drift_fine_tuned.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import Any

import numpy as np
import torch

from lenscope.directions.covariances import covariance_similarity, covariances, largest_components, pool_covariances
from lenscope.display.figures import Figure
from lenscope.display.panels import Heatmap, Panel, Series
from lenscope.experiments.definition import Experiment
from lenscope.experiments.report import Report
from lenscope.experiments.setting import Setting
from lenscope.experiments.text_groups import by_document, predicted, rows_of, thinned
from lenscope.experiments.tuned_lens_paper.drift_fine_tuned import transplant
from lenscope.lenses.evaluate import transfer
from lenscope.statistics.intervals import Estimate, draws, estimate_of_draws
from lenscope.statistics.rank_correlations import partial_rank_correlation, rank_correlation
from lenscope.text.corpus import TokenBatch

CLAIM = (
    "Belrose et al. 2023, Figs 6, 7, 13. The states of two layers are compared by the cosine of their covariance "
    "matrices (Frobenius cosine: 1 is alike). It is .999 one layer apart and .96 eight apart, but only because of two "
    "rogue dimensions: .947 and .543 with the two largest components zeroed (Pythia-12B). What a layer's translator "
    "loses on another layer's states grows with the distance, medians .009–.21 (trained 1–16 layers earlier) and "
    ".012–.39 (later), and falls with that similarity, Spearman -.78 over all pairs of layers. LLaMA-13B's lens costs "
    "at most .3 bits per byte on Vicuna-13B, a fine-tune of it."
)
# text in tokens
TEXT = {"quick": 4096, "full": 16_384}
# one in so many positions tests translators
EVERY = {"quick": 8, "full": 48}
# layers of the transfer matrix, at most
CROSSED = {"quick": 8, "full": 30}
# groups of documents
GROUPS = 10
# resamples of the groups
RESAMPLES = {"quick": 20, "full": 60}
# components of the covariances that are zeroed
TOP = 2
DISTANCES = (1, 2, 4, 8, 16)
# Pythia-12B: distance → medians of similarity (whole, trimmed), of penalties (trained earlier, later)
PAPER_SIMILARITY = {1: (0.999, 0.947), 8: (0.96, 0.543)}
PAPER_PENALTY = {1: (0.009, 0.012), 2: (0.023, 0.027), 4: (0.067, 0.076), 8: (0.20, 0.20), 16: (0.21, 0.39)}
WHOLE, TRIMMED, EARLIER, LATER = "all components", f"top {TOP} zeroed", "trained earlier", "trained later"


@dataclass(frozen=True, eq=False)
class Drift:
    """Every array begins with the draws of groups of documents, the text itself first.

    `whole`, `trimmed` (draws, L, L): similarities of layers 0…n_layers; `share` (draws, L) of variance in the largest
    components; `penalty` (draws, K, K) in `unit`, translator × layer tested, of `layers`.
    """

    layers: tuple[int, ...]
    whole: np.ndarray
    trimmed: np.ndarray
    share: np.ndarray
    penalty: np.ndarray
    unit: str
    groups: int

    def estimate(self, values: np.ndarray) -> Estimate:
        """A value of the text with its interval, from values (draws,)."""
        return estimate_of_draws(values, self.groups)

    def similar(self, distance: int) -> tuple[Estimate, Estimate]:
        """Median similarities of layers that far apart: of whole and of trimmed covariances."""
        whole, trimmed = (np.median(np.diagonal(s, distance, 1, 2), axis=1) for s in (self.whole, self.trimmed))
        return self.estimate(whole), self.estimate(trimmed)

    def penalties(self, distance: int) -> tuple[Estimate, Estimate] | None:
        """Median penalties of translators trained that much earlier and later than tested; None if there are none."""
        numbers = np.array(self.layers)
        apart = numbers[:, None] - numbers
        if not (apart == distance).any():
            return None
        earlier, later = (np.median(self.penalty[:, apart == d], axis=1) for d in (-distance, distance))
        return self.estimate(earlier), self.estimate(later)

    def correlations(self) -> list[dict[str, Any]]:
        """Rank correlations of penalties with similarity, and with distance alone."""
        numbers = np.array(self.layers)
        apart = np.abs(numbers[:, None] - numbers)
        everything, off = np.ones_like(apart, dtype=bool), apart > 0
        rows: list[dict[str, Any]] = []
        for name, similar in ((TRIMMED, self.trimmed), (WHOLE, self.whole)):
            at = similar[:, numbers[:, None], numbers]
            for cells, which in (("all cells", everything), ("off the diagonal", off)):
                rho = np.array([rank_correlation(s[which], p[which]) for s, p in zip(at, self.penalty, strict=True)])
                rows.append({"similarity": name, "cells": cells, "Spearman": self.estimate(rho)})
            rho = np.array(
                [partial_rank_correlation(s[off], p[off], apart[off]) for s, p in zip(at, self.penalty, strict=True)]
            )
            rows.append(
                {"similarity": name, "cells": "off the diagonal, given distance", "Spearman": self.estimate(rho)}
            )
        rho = np.array([rank_correlation(-apart[off], p[off]) for p in self.penalty])
        rows.append(
            {"similarity": "nearness alone (control)", "cells": "off the diagonal", "Spearman": self.estimate(rho)}
        )
        return rows


def _run_drift(setting: Setting) -> Report:
    """Compare layers by their covariances and by their translators, and models before and after a fine-tune."""
    lm = setting.lm
    changed = transplant(setting)
    text = rows_of(setting.held_out, setting.choose(**TEXT))
    parts = by_document(text, GROUPS)
    taken = draws(len(parts), setting.choose(**RESAMPLES), setting.seed)
    size = {"text": setting.choose(**TEXT), "groups": len(parts)}
    alike = setting.cached("similarity", lambda: _similarities(setting, parts, taken), top=TOP, **size)
    layers, penalty, unit, tested = _penalties(setting, parts, taken, size)
    drift = Drift(layers, *alike, penalty, unit, len(parts))
    tables: dict[str, Sequence[Mapping[str, Any]]] = {
        "similarity by distance": _by_distance(drift, lm.n_layers),
        "similarity by layer": _drift_by_layer(drift),
        f"transfer penalty in {unit}": _penalty_table(drift),
        "penalty and similarity": drift.correlations(),
        f"fine-tune, own loss in {changed.unit}": changed.losses(),
        f"fine-tune, KL in {changed.unit}": changed.lenses("kl"),
        f"fine-tune, cross-entropy in {changed.unit}": changed.lenses("cross_entropy"),
    }
    settings = setting.settings(
        covariances=f"{predicted(text)[0]:,} positions in {len(text)} rows",
        transfer=f"{tested:,} predictions, {len(layers)} layers",
        resampled=f"{len(parts)} groups of documents, {len(taken) - 1} times",
        zeroed=TOP,
    )
    return Report(
        "drift", lm.name, CLAIM, f"{_drift_reading(drift, lm.n_layers)}\n{changed.reading()}", tables,
        (*_drift_figures(drift, lm.n_layers), changed.figure()), settings, setting.provenance(),
    )  # fmt: skip


def _similarities(
    setting: Setting, parts: Sequence[Sequence[TokenBatch]], taken: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every draw of groups the similarities of all layers, whole and trimmed, and the share of the largest."""
    by_group = []
    with setting.progress("groups of documents for the covariances") as advance:
        for part in parts:
            by_group.append(covariances(setting.lm, list(part)))
            advance(len(by_group), len(parts))
    whole, trimmed, share = [], [], []
    with setting.progress("resamples of the covariances") as advance:
        for n, weights in enumerate(taken, 1):
            matrices = pool_covariances(by_group, weights.tolist()).matrices
            values, vectors = largest_components(matrices, TOP)
            share.append(values.sum(1) / matrices.diagonal(dim1=1, dim2=2).sum(1))
            whole.append(covariance_similarity(matrices))
            matrices.baddbmm_(vectors * values[:, None, :], vectors.transpose(1, 2), alpha=-1)
            trimmed.append(covariance_similarity(matrices))
            advance(n, len(taken))
    return np.stack(whole), np.stack(trimmed), torch.stack(share).numpy()


def _penalties(
    setting: Setting, parts: Sequence[Sequence[TokenBatch]], taken: np.ndarray, size: dict[str, Any]
) -> tuple[tuple[int, ...], np.ndarray, str, int]:
    """The layers, penalties (draws, K, K) of their translators on each other's states, the unit, the predictions."""
    lm, f = setting.lm, setting.translators
    numbers = [n for n in range(lm.n_layers) if n in f.layers(lm.n_layers)]
    layers = tuple(numbers[:: max(1, ceil(len(numbers) / setting.choose(**CROSSED)))])
    every = setting.choose(**EVERY)
    sums, sizes, tokens = [], [], 0
    with setting.progress("groups of documents for the transfer of translators") as advance:
        for n, part in enumerate(parts):
            rows = thinned(part, every)
            count, bytes_ = predicted(rows)

            def compute(rows: Sequence[TokenBatch] = rows, count: int = count) -> np.ndarray:
                empty = np.zeros((len(layers), len(layers)))
                return np.asarray(transfer(lm, rows, f, layers).cross_entropy * count if count else empty)

            sums.append(setting.cached(f"transfer {n}", compute, every=every, layers=layers, **size))
            sizes.append((count, bytes_))
            tokens += count
            advance(n + 1, len(parts))
    known = all(b is not None for _, b in sizes)
    weight = np.array([float((b if known else t) or 0) for t, b in sizes])
    with np.errstate(invalid="ignore"):
        bits = np.tensordot(taken, np.stack(sums), 1) / ((taken @ weight)[:, None, None] * log(2))
    penalty = bits - np.diagonal(bits, axis1=1, axis2=2)[:, None, :]
    return layers, penalty, "bits per byte" if known else "bits per token", tokens


def _by_distance(drift: Drift, n_layers: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for distance in (d for d in DISTANCES if d <= n_layers):
        whole, trimmed = drift.similar(distance)
        paper = PAPER_SIMILARITY.get(distance, (None, None))
        published = {f"paper, {name}": value for name, value in zip((WHOLE, TRIMMED), paper, strict=True)}
        rows.append({"distance": distance, WHOLE: whole, TRIMMED: trimmed, **published})
    return rows


def _drift_by_layer(drift: Drift) -> list[dict[str, Any]]:
    last = drift.whole.shape[1] - 1
    rows: list[dict[str, Any]] = []
    for n in range(last):
        near = {f"with the next, {name}": drift.estimate(s[:, n, n + 1])
                for name, s in ((WHOLE, drift.whole), (TRIMMED, drift.trimmed))}  # fmt: skip
        rows.append({"layer": n, f"variance in the top {TOP}": drift.estimate(drift.share[:, n]), **near})
    return rows


def _penalty_table(drift: Drift) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for distance in DISTANCES:
        penalties = drift.penalties(distance)
        if penalties is not None:
            paper = dict(zip((f"paper, {EARLIER}", f"paper, {LATER}"), PAPER_PENALTY[distance], strict=True))
            rows.append({"distance": distance, EARLIER: penalties[0], LATER: penalties[1], **paper})
    return rows


def _drift_figures(drift: Drift, n_layers: int) -> tuple[Figure, ...]:
    numbers = range(n_layers + 1)
    maps = [
        Heatmap(f"covariances, {name}", "layer", "layer", numbers, numbers, s[0], "Frobenius cosine")
        for name, s in ((WHOLE, drift.whole), (TRIMMED, drift.trimmed))
    ]
    tested = Heatmap("transfer penalty", "tested on layer", "trained on layer", drift.layers, drift.layers,
                     drift.penalty[0], drift.unit)  # fmt: skip
    at = np.array(drift.layers)
    cells = at[:, None] != at
    points = [
        Series(name, drift.trimmed[0][at[:, None], at][which].tolist(), drift.penalty[0][which].tolist())
        for name, which in ((EARLIER, cells & (at[:, None] < at)), (LATER, cells & (at[:, None] > at)))
    ]
    cloud = Panel("penalty and similarity", f"similarity, {TRIMMED}", f"penalty, {drift.unit}", points, kind="points")
    return (Figure("drift", [*maps, tested, cloud]),)


def _drift_reading(drift: Drift, n_layers: int) -> str:
    near, far = (drift.similar(d) for d in (1, max(d for d in DISTANCES if d <= min(8, n_layers))))
    distance = max(d for d in DISTANCES if d <= min(8, n_layers))
    falls = far[1].value < near[1].value and far[1].value < far[0].value
    share = drift.share[0]
    parts = [
        f"Drift {'replicates' if falls else 'does not replicate'}: the states of layers one apart have a median "
        f"similarity of {near[0].value:.3f}, of layers {distance} apart {far[0].value:.3f}; with the {TOP} largest "
        f"components zeroed, which carry {share.min():.2f}–{share.max():.2f} of the variance, {near[1].value:.3f} and "
        f"{far[1].value:.3f} (the paper: .999 and .96; .947 and .543)."
    ]
    by_name = {(row["similarity"], row["cells"]): row["Spearman"] for row in drift.correlations()}
    every, off = by_name[TRIMMED, "all cells"], by_name[TRIMMED, "off the diagonal"]
    given, control = (
        by_name[TRIMMED, "off the diagonal, given distance"],
        by_name["nearness alone (control)", "off the diagonal"],
    )
    below = every.high < 0 or (np.isnan(every.high) and every.value < 0)
    parts.append(
        f"That translators lose less on similar layers {'replicates' if below else 'does not replicate'}: penalty and "
        f"similarity (top {TOP} zeroed) have a Spearman correlation of {every} over all pairs of layers (the paper: "
        f"-.78) and of {off} over different layers; given the distance between the layers {given} remains, and "
        f"nearness alone, the control, has {control}."
    )
    rows = _penalty_table(drift)
    if rows:
        first, last = rows[0], rows[-1]
        parts.append(
            f"Median penalties grow from {first[EARLIER].value:.3f} and {first[LATER].value:.3f} {drift.unit} (trained "
            f"{first['distance']} layers earlier, later) to {last[EARLIER].value:.3f} and {last[LATER].value:.3f} "
            f"({last['distance']} layers)."
            if last[EARLIER].value > first[EARLIER].value and last[LATER].value > first[LATER].value
            else f"Median penalties do not grow with distance ({first[EARLIER].value:.3f} to {last[EARLIER].value:.3f} "
            f"{drift.unit} trained earlier, {first[LATER].value:.3f} to {last[LATER].value:.3f} later)."
        )
    return "\n".join(parts)


EXPERIMENT = Experiment(data="text", run=_run_drift)
