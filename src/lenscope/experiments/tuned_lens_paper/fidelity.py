"""Causal fidelity: do the directions that matter to the tuned lens matter to the model?

Knows: the paper's protocol, controls, statistics and table. Does not know: how directions are found or ablated.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from lenscope.directions.basis import Basis
from lenscope.directions.causal_basis import causal_basis, principal_basis, random_basis
from lenscope.directions.influence import Influence, influence
from lenscope.display.figures import Figure, Panel, Series
from lenscope.experiments.report import Report, ReportTable
from lenscope.experiments.setting import Setting
from lenscope.models.layers import evenly_spaced
from lenscope.models.likeness import model_identity
from lenscope.models.provenance import provenance
from lenscope.statistics.estimates import rank_correlation, spearman
from lenscope.statistics.intervals import RESAMPLES, Estimate, bootstrap, percentiles

DATA = "text"
CLAIM = (
    "Belrose et al. 2023, Figs 8 and 20: over the directions of the tuned lens's causal basis, influence on the lens "
    "and influence on the model have a Spearman correlation of 0.89 at layer 18 of Pythia-410M, rising from 0.25 at "
    "the input to 0.98 at the last layer; no direction influences the lens but not the model."
)
MAKERS = {"causal basis": causal_basis, "principal components": principal_basis, "random directions": random_basis}
# tokens that directions are found on, that they are measured on, tokens a row, directions, layers
FOUND, MEASURED, LENGTH, K, LAYERS = (640, 1024), (192, 256), 128, (8, 12), (3, 6)
# What influences a lens at all, in nats, and the share of it below which the model counts as not influenced.
LEAST, SHARE = 0.01, 0.1


def run(setting: Setting) -> Report:
    """Extracts on one half of the held-out text, measures on the other, with components and random directions beside.

    Per layer and kind of direction: Spearman's correlation of mean influences (nats) on lens and model, over
    directions, with intervals that resample these; energies on the text that directions were found on and on the other.
    """
    lm, f = setting.lm, setting.translators
    sizes, k = (setting.sized(*FOUND), setting.sized(*MEASURED)), min(setting.sized(*K), lm.hidden_size)
    layers = evenly_spaced([n for n in f.layers(lm.n_layers) if n < lm.n_layers], setting.sized(*LAYERS))
    text = replace(setting.held_out, length=min(LENGTH, setting.corpus.length))
    found, measured = (list(p.batches(n, 8)) for p, n in zip(text.split(0.5), sizes, strict=True))
    results: dict[str, Influence] = {}
    for kind, maker in MAKERS.items():
        kept = partial(_measure, setting, maker, kind, found, measured, layers, k)
        tensors = setting.kept(kind.replace(" ", "-"), kept, layers=list(layers), k=k, tokens=list(sizes))
        results[kind] = _restored(setting, kind, layers, tensors)
    rows = [_row(results, n) for n in range(len(layers))]
    tables: dict[str, ReportTable] = {"fidelity": rows, "influence": [_sums(results, n) for n in range(len(layers))]}
    return Report(
        experiment="fidelity",
        model=lm.name,
        claim=CLAIM,
        reading=_reading(results, rows, setting.seed),
        tables=tables,
        figures=(_curves(rows, layers), _scatter(results, layers)),
        settings=setting.settings(tokens=list(sizes), length=text.length, directions=k, layers=list(layers)),
        provenance=setting.provenance(),
    )


def _measure(
    setting: Setting, maker: Any, kind: str, found: list[Any], measured: list[Any], layers: tuple[int, ...], k: int
) -> dict[str, torch.Tensor]:
    lm, f = setting.lm, setting.translators
    with setting.progress(f"layers, {kind}") as advance:
        basis: Basis = maker(lm, found, f, layers, k=k, seed=setting.seed, progress=advance)
    with setting.progress(f"rows ablated, {kind}") as advance:
        made = influence(lm, measured, basis, f, progress=advance)
    names = "directions", "energies", "mean", "spread"
    return {n: getattr(basis, n) for n in names} | {
        "by_unit": torch.from_numpy(made.by_unit),
        "counts": torch.from_numpy(made.counts),
    }


def _restored(setting: Setting, kind: str, layers: tuple[int, ...], t: dict[str, torch.Tensor]) -> Influence:
    parts = t["directions"], t["energies"], t["mean"], t["spread"]
    basis = Basis(*parts, layers, kind.split()[0], "tuned lens", model_identity(setting.lm), provenance(setting.lm))
    return Influence(basis, t["by_unit"].numpy(), t["counts"].numpy(), basis.provenance)


def _row(results: dict[str, Influence], n: int) -> dict[str, Any]:
    causal = results["causal basis"]
    row: dict[str, Any] = {"layer": causal.layers[n]}
    for kind, made in results.items():
        row[kind] = spearman(made.lens[n], made.model[n])
    for kind in list(results)[1:]:
        row[f"minus {kind}"] = _apart(causal, results[kind], n)
    return row


def _sums(results: dict[str, Influence], n: int) -> dict[str, Any]:
    """Influences of all directions of a layer in nats, summed, per kind; and where the lens alone is influenced."""
    causal = results["causal basis"]
    row: dict[str, Any] = {"layer": causal.layers[n], "lens, as found": float(causal.basis.energies[n].sum())}
    for kind, made in results.items():
        short = kind.split()[0]
        row |= {f"{short}, lens": float(made.lens[n].sum()), f"{short}, model": float(made.model[n].sum())}
    row["lens only"] = f"{_lens_only(causal, n)} of {int((causal.lens[n] >= LEAST).sum())}"
    return row


def _apart(first: Influence, second: Influence, n: int) -> Estimate:
    """The difference of two kinds' fidelity at a layer; directions of both are resampled."""
    samples = first.lens[n], first.model[n], second.lens[n], second.model[n]
    return bootstrap(lambda a, b, c, d: rank_correlation(a, b) - rank_correlation(c, d), *samples)


def _pooled(first: Influence, second: Influence, seed: int) -> Estimate:
    """The difference of two kinds' fidelity, the mean over layers; each layer's directions of both are resampled."""
    random = np.random.default_rng(seed)

    def apart(resampled: bool) -> float:
        found = []
        for n in range(len(first.layers)):
            rho = []
            for made in (first, second):
                k = made.basis.k
                some = random.integers(k, size=k) if resampled else np.arange(k)
                rho.append(rank_correlation(made.lens[n][some], made.model[n][some]))
            found.append(rho[0] - rho[1])
        return float(np.nanmean(found)) if not np.isnan(found).all() else float("nan")

    low, high = percentiles(np.array([apart(True) for _ in range(RESAMPLES)]), first.basis.k)
    return Estimate(apart(False), float(low), float(high))


def _lens_only(made: Influence, n: int) -> int:
    """Directions that influence the lens, but the model less than a tenth as much."""
    return int(((made.lens[n] >= LEAST) & (made.model[n] < SHARE * made.lens[n])).sum())


def _reading(results: dict[str, Influence], rows: list[dict[str, Any]], seed: int) -> str:
    causal = results["causal basis"]
    layers, rho = causal.layers, [row["causal basis"] for row in rows]
    trend = spearman(layers, [r.value for r in rho]) if len(layers) > 2 else Estimate(np.nan, np.nan, np.nan)
    rises = rho[-1].value > rho[0].value and (np.isnan(trend.value) or trend.value > 0)
    middle = rho[len(rho) // 2]
    said = [
        f"Fidelity {'rises' if rises else 'does not rise'} with depth: {rho[0]} at layer {layers[0]}, {middle} at "
        f"layer {layers[len(layers) // 2]}, {rho[-1]} at layer {layers[-1]}; over {len(layers)} layers its Spearman "
        f"correlation with depth is {trend}."
    ]
    for kind in list(results)[1:]:
        other = results[kind]
        apart = [row[f"minus {kind}"] for row in rows]
        above, below = sum(e.low > 0 for e in apart), sum(e.high < 0 for e in apart)
        mean = _pooled(causal, other, seed)
        verdict = "beats" if mean.low > 0 else "does not beat" if mean.high < 0 else "is not shown to beat"
        said.append(
            f"The causal basis {verdict} {kind} in rank correlation: by {mean} on average over layers, and layer by "
            f"layer surely higher at {above} of {len(layers)}, surely lower at {below}; its directions influence the "
            f"model {causal.model.sum() / max(other.model.sum(), 1e-12):.3g} times as much."
        )
    alone = sum(_lens_only(causal, n) for n in range(len(layers)))
    strong = int((causal.lens >= LEAST).sum())
    holds = "As in the paper, no" if not alone else f"{alone} of the {strong}"
    said.append(
        f"{holds} direction{'' if not alone else 's'} with an influence of {LEAST} nats or more on the lens "
        f"{'has' if not alone else 'have'} less than a tenth of it on the model."
    )
    return " ".join(said)


def _curves(rows: list[dict[str, Any]], layers: tuple[int, ...]) -> Figure:
    series = []
    for kind in MAKERS:
        y, low, high = ([row[kind][i] for row in rows] for i in range(3))
        series.append(Series(kind, layers, y, low, high, dashed=kind != "causal basis"))
    return Figure("fidelity", (Panel("Causal fidelity", "layer", "Spearman correlation", series, level=0),))


def _scatter(results: dict[str, Influence], layers: tuple[int, ...]) -> Figure:
    panels = []
    for n in sorted({0, len(layers) // 2, len(layers) - 1}):
        series = [Series(kind, np.log10(r.lens[n] + 1e-9), np.log10(r.model[n] + 1e-9)) for kind, r in results.items()]
        panels.append(Panel(f"Layer {layers[n]}", "log₁₀ nats, lens", "log₁₀ nats, model", series, kind="points"))
    return Figure("influence", tuple(panels))
