"""Causal fidelity: whether the directions that matter to the tuned lens matter to the model.

Knows: the paper's protocol, controls, statistics and table. Does not know: how directions are found or ablated.
"""

from functools import partial
from typing import Any

import numpy as np

from lenscope.directions.basis import Basis
from lenscope.directions.causal_basis import causal_basis, principal_basis, random_basis
from lenscope.directions.influence import Influence, influence
from lenscope.display.figures import Figure
from lenscope.display.panels import Panel, Series
from lenscope.experiments.definition import Experiment
from lenscope.experiments.estimates_shown import curve, surely
from lenscope.experiments.report import Report, ReportTable
from lenscope.experiments.setting import Setting
from lenscope.experiments.tuned_lens_paper.basis_text import BasisText, basis_text
from lenscope.statistics.estimates import spearman
from lenscope.statistics.intervals import RESAMPLES, Estimate, bootstrap, percentiles, resample
from lenscope.statistics.rank_correlations import rank_correlation

CLAIM = (
    "Belrose et al. 2023, Figs 8 and 20. The causal basis of a lens are the directions whose removal from a state "
    "changes the lens's prediction most. Over these directions, influence on the lens and influence on the model have "
    "a Spearman correlation of 0.89 at layer 18 of Pythia-410M, rising from 0.25 at the input to 0.98 at the last "
    "layer; no direction influences the lens but not the model."
)
MAKERS = {"causal basis": causal_basis, "principal components": principal_basis, "random directions": random_basis}
# tokens that directions are found on
FOUND_ON = {"quick": 640, "full": 1024}
# tokens that they are measured on
MEASURED_ON = {"quick": 192, "full": 256}
# directions of a layer
K = {"quick": 8, "full": 12}
# layers
LAYERS = {"quick": 3, "full": 6}
# What influences a lens at all, in nats, and the share of it below which the model counts as not influenced.
LEAST_NATS, SHARE = 0.01, 0.1


def _run_fidelity(setting: Setting) -> Report:
    """Extracts on one half of the held-out text, measures on the other, with components and random directions beside.

    Per layer and kind of direction: Spearman's correlation of mean influences (nats) on lens and model, over
    directions, with intervals that resample these; energies on the text that directions were found on and on the other.
    """
    tokens = setting.choose(**FOUND_ON), setting.choose(**MEASURED_ON)
    text = basis_text(setting, tokens, setting.choose(**LAYERS), setting.choose(**K))
    results: dict[str, Influence] = {
        kind: setting.cached(kind.replace(" ", "-"), partial(_influence, setting, kind, text), **text.inputs())
        for kind in MAKERS
    }
    layers = text.layers
    rows = [_fidelity_row(results, n) for n in range(len(layers))]
    tables: dict[str, ReportTable] = {"fidelity": rows, "influence": [_sums(results, n) for n in range(len(layers))]}
    return Report(
        experiment="fidelity",
        model=setting.lm.name,
        claim=CLAIM,
        reading=_fidelity_reading(results, rows, setting.seed),
        tables=tables,
        figures=(_fidelity_figure(rows, layers), _scatter(results, layers)),
        settings=setting.settings(**text.settings()),
        provenance=setting.provenance(),
    )


def _influence(setting: Setting, kind: str, text: BasisText) -> Influence:
    """What ablating one kind of direction does to the tuned lens and to the model."""
    lm, f = setting.lm, setting.translators
    with setting.progress(f"layers, {kind}") as advance:
        basis: Basis = MAKERS[kind](lm, text.finding, f, text.layers, k=text.k, seed=setting.seed, progress=advance)
    with setting.progress(f"rows ablated, {kind}") as advance:
        return influence(lm, text.measuring, basis, f, progress=advance)


def _fidelity_row(results: dict[str, Influence], n: int) -> dict[str, Any]:
    causal = results["causal basis"]
    row: dict[str, Any] = {"layer": causal.layers[n]}
    for kind, one in results.items():
        row[kind] = spearman(one.lens[n], one.model[n])
    for kind in list(results)[1:]:
        row[f"minus {kind}"] = _layer_difference(causal, results[kind], n)
    return row


def _sums(results: dict[str, Influence], n: int) -> dict[str, Any]:
    """Influences of all directions of a layer in nats, summed, per kind; and where the lens alone is influenced."""
    causal = results["causal basis"]
    row: dict[str, Any] = {"layer": causal.layers[n], "lens, as found": float(causal.basis.energies[n].sum())}
    for kind, one in results.items():
        short = kind.split()[0]
        row |= {f"{short}, lens": float(one.lens[n].sum()), f"{short}, model": float(one.model[n].sum())}
    row["lens only"] = f"{_lens_only(causal, n)} of {int((causal.lens[n] >= LEAST_NATS).sum())}"
    return row


def _layer_difference(first: Influence, second: Influence, n: int) -> Estimate:
    """The difference of two kinds' fidelity at a layer; directions of both are resampled."""
    samples = first.lens[n], first.model[n], second.lens[n], second.model[n]
    return bootstrap(lambda a, b, c, d: rank_correlation(a, b) - rank_correlation(c, d), *samples)


def _mean_difference(first: Influence, second: Influence, seed: int) -> Estimate:
    """The difference of two kinds' fidelity, the mean over layers; each layer's directions of both are resampled."""
    random = np.random.default_rng(seed)

    def difference(resampled: bool) -> float:
        by_layer = []
        for n in range(len(first.layers)):
            rho = []
            for one in (first, second):
                k = one.basis.k
                rows = resample(k, random) if resampled else np.arange(k)
                rho.append(rank_correlation(one.lens[n][rows], one.model[n][rows]))
            by_layer.append(rho[0] - rho[1])
        return float(np.nanmean(by_layer)) if not np.isnan(by_layer).all() else float("nan")

    low, high = percentiles(np.array([difference(True) for _ in range(RESAMPLES)]), first.basis.k)
    return Estimate(difference(False), float(low), float(high))


def _lens_only(causal: Influence, n: int) -> int:
    """Directions that influence the lens, but the model less than a tenth as much."""
    return int(((causal.lens[n] >= LEAST_NATS) & (causal.model[n] < SHARE * causal.lens[n])).sum())


def _fidelity_reading(results: dict[str, Influence], rows: list[dict[str, Any]], seed: int) -> str:
    causal = results["causal basis"]
    layers, rho = causal.layers, [row["causal basis"] for row in rows]
    trend = spearman(layers, [r.value for r in rho]) if len(layers) > 2 else Estimate(np.nan, np.nan, np.nan)
    rises = rho[-1].value > rho[0].value and (np.isnan(trend.value) or trend.value > 0)
    middle = rho[len(rho) // 2]
    alone = sum(_lens_only(causal, n) for n in range(len(layers)))
    opening = "Replicates" if rises and not alone else "Replicates in part" if rises or not alone else (
        "Does not replicate"
    )  # fmt: skip
    sentences = [
        f"{opening}. Fidelity (the rank correlation of what directions do to the lens and to the model) "
        f"{'rises' if rises else 'does not rise'} with depth: {rho[0]} at layer {layers[0]}, {middle} at layer "
        f"{layers[len(layers) // 2]}, {rho[-1]} at layer {layers[-1]}; over {len(layers)} layers its Spearman "
        f"correlation with depth is {trend}."
    ]
    for kind in list(results)[1:]:
        other = results[kind]
        above, below = surely(row[f"minus {kind}"] for row in rows)
        mean = _mean_difference(causal, other, seed)
        verdict = "beats" if mean.low > 0 else "does not beat" if mean.high < 0 else "is not shown to beat"
        sentences.append(
            f"Control: the causal basis {verdict} {kind} in fidelity. The difference is {mean} on average over layers; "
            f"of {len(layers)} single layers it is higher at {above} and lower at {below} by the whole interval. Its "
            f"directions influence the model {causal.model.sum() / max(other.model.sum(), 1e-12):.3g} times as much."
        )
    strong = int((causal.lens >= LEAST_NATS).sum())
    holds = "As in the paper, no" if not alone else f"Unlike in the paper, {alone} of the {strong}"
    sentences.append(
        f"{holds} direction{'' if not alone else 's'} with an influence of {LEAST_NATS} nats or more on the lens "
        f"{'has' if not alone else 'have'} less than a tenth of it on the model."
    )
    return "\n".join(sentences)


def _fidelity_figure(rows: list[dict[str, Any]], layers: tuple[int, ...]) -> Figure:
    curves = [curve(kind, layers, [row[kind] for row in rows], kind != "causal basis") for kind in MAKERS]
    return Figure("fidelity", (Panel("Causal fidelity", "layer", "Spearman correlation", curves, level=0),))


def _scatter(results: dict[str, Influence], layers: tuple[int, ...]) -> Figure:
    panels = []
    for n in sorted({0, len(layers) // 2, len(layers) - 1}):
        series = [Series(kind, np.log10(r.lens[n] + 1e-9), np.log10(r.model[n] + 1e-9)) for kind, r in results.items()]
        panels.append(Panel(f"Layer {layers[n]}", "log₁₀ nats, lens", "log₁₀ nats, model", series, kind="points"))
    return Figure("influence", tuple(panels))


EXPERIMENT = Experiment(data="text", run=_run_fidelity)
