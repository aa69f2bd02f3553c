"""Stimulus-response alignment: do lens and model respond alike when a layer's states change within a subspace?

Knows: the paper's protocol, controls, statistics and table. Does not know: how states are exchanged or compared.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from lenscope.directions.alignment import Alignment, alignment
from lenscope.directions.basis import Basis
from lenscope.directions.causal_basis import causal_basis, random_basis
from lenscope.display.figures import Figure, Panel, Series
from lenscope.experiments.report import Report
from lenscope.experiments.setting import Setting
from lenscope.models.layers import evenly_spaced
from lenscope.models.likeness import model_identity
from lenscope.models.provenance import provenance
from lenscope.statistics.estimates import difference, spearman
from lenscope.statistics.intervals import Estimate

DATA = "text"
CLAIM = (
    "Belrose et al. 2023, Fig. 9: when states of Pythia-160M are exchanged within the principal causal subspace, what "
    "changes in the lens and what changes in the model align better the deeper the layer, and at every layer better "
    "for the tuned than for the logit lens (a plot, without numbers)."
)
TUNED, LOGIT = "tuned lens", "logit lens"
# whose subspace states are exchanged in: the lens that it is the causal basis of, or random directions
KINDS = {"tuned": (causal_basis, TUNED), "logit": (causal_basis, LOGIT), "random": (random_basis, TUNED)}
# tokens that directions are found on, that they are measured on, tokens a row, size of the subspace, layers
FOUND, MEASURED, LENGTH, K, LAYERS = (640, 1024), (384, 1024), 128, (6, 12), (3, 6)


def run(setting: Setting) -> Report:
    """Exchanges states within the causal subspace of each lens, and within a random one of the same size.

    Subspaces are found on one half of the held-out text and used on the other. Per layer: the mean similarity of
    stimulus and response over documents, with intervals that resample documents, and the tuned lens's minus the logit
    lens's of the same exchanges, document by document.
    """
    lm, f = setting.lm, setting.translators
    k = min(setting.sized(*K), lm.hidden_size)
    layers = evenly_spaced([n for n in f.layers(lm.n_layers) if n < lm.n_layers], setting.sized(*LAYERS))
    text = replace(setting.held_out, length=min(LENGTH, setting.corpus.length))
    sizes = setting.sized(*FOUND), setting.sized(*MEASURED)
    found, measured = (list(p.batches(n, 8)) for p, n in zip(text.split(0.5), sizes, strict=True))
    results = {}
    for kind in KINDS:
        kept = partial(_measure, setting, kind, found, measured, layers, k)
        tensors = setting.kept(f"alignment-{kind}", kept, layers=list(layers), k=k, tokens=list(sizes))
        results[kind] = _restored(setting, kind, layers, tensors)
    rows = [_row(results, layer) for layer in layers]
    return Report(
        experiment="alignment",
        model=lm.name,
        claim=CLAIM,
        reading=_reading(rows, layers),
        tables={"alignment": rows},
        figures=(_curves(rows, layers),),
        settings=setting.settings(
            tokens=list(sizes), length=text.length, directions=k, layers=list(layers), documents=_documents(results)
        ),
        provenance=setting.provenance(),
    )


def _measure(
    setting: Setting, kind: str, found: list[Any], measured: list[Any], layers: tuple[int, ...], k: int
) -> dict[str, torch.Tensor]:
    lm = setting.lm
    lenses: Mapping[str, Callable[..., Any] | None] = {TUNED: setting.translators, LOGIT: None}
    maker, lens = KINDS[kind]
    with setting.progress(f"layers, {kind} subspace") as advance:
        basis: Basis = maker(lm, found, lenses[lens], layers, k=k, seed=setting.seed, progress=advance)
    with setting.progress(f"layers exchanged, {kind} subspace") as advance:
        made = alignment(lm, measured, basis, lenses, seed=setting.seed, progress=advance)
    names = "directions", "energies", "mean", "spread"
    return {n: getattr(basis, n) for n in names} | {
        "by_unit": torch.from_numpy(made.by_unit),
        "counts": torch.from_numpy(made.counts),
    }


def _restored(setting: Setting, kind: str, layers: tuple[int, ...], t: dict[str, torch.Tensor]) -> Alignment:
    parts = t["directions"], t["energies"], t["mean"], t["spread"]
    about = provenance(setting.lm)
    basis = Basis(*parts, layers, kind, KINDS[kind][1], model_identity(setting.lm), about)
    return Alignment(basis, (TUNED, LOGIT), t["by_unit"].numpy(), t["counts"].numpy(), about)


def _row(results: Mapping[str, Alignment], layer: int) -> dict[str, Any]:
    def value(kind: str, lens: str) -> np.ndarray:
        return results[kind].units(lens, layer)

    def paired(a: np.ndarray, b: np.ndarray) -> Estimate:
        known = ~np.isnan(a) & ~np.isnan(b)
        return difference(a[known], b[known])

    return {
        "layer": layer,
        TUNED: results["tuned"].estimate(TUNED, layer),
        LOGIT: results["logit"].estimate(LOGIT, layer),
        "tuned - logit, same exchanges": paired(value("tuned", TUNED), value("tuned", LOGIT)),
        "tuned - logit, own subspaces": paired(value("tuned", TUNED), value("logit", LOGIT)),
        "tuned lens, random subspace": results["random"].estimate(TUNED, layer),
        "logit lens, random subspace": results["random"].estimate(LOGIT, layer),
        "causal - random subspace, tuned": paired(value("tuned", TUNED), value("random", TUNED)),
    }


def _documents(results: Mapping[str, Alignment]) -> int:
    return int((results["tuned"].counts[0, :, 0] > 0).sum())


def _reading(rows: list[dict[str, Any]], layers: tuple[int, ...]) -> str:
    first, last = rows[0][TUNED], rows[-1][TUNED]
    trend = {lens: spearman(layers, [row[lens].value for row in rows]) for lens in (TUNED, LOGIT)}
    rises = last.low > first.high and trend[TUNED].value > 0
    said = [
        f"The tuned lens's alignment {'rises' if rises else 'does not rise'} with depth: {first} at layer {layers[0]}, "
        f"{last} at layer {layers[-1]}; over {len(layers)} layers its Spearman correlation with depth is "
        f"{trend[TUNED]}, the logit lens's {trend[LOGIT]}."
    ]
    for name in ("same exchanges", "own subspaces"):
        apart = [row[f"tuned - logit, {name}"] for row in rows]
        above, below = sum(e.low > 0 for e in apart), sum(e.high < 0 for e in apart)
        verdict = (
            "replicates" if above == len(rows) else "replicates in part" if above > below else "does not replicate"
        )
        said.append(
            f"Tuned above logit ({name}) {verdict}: above at {above} of {len(rows)} layers, below at {below} (95 %), "
            f"by {np.mean([e.value for e in apart]):.2f} on average."
        )
    apart = [row["causal - random subspace, tuned"] for row in rows]
    above, below = sum(e.low > 0 for e in apart), sum(e.high < 0 for e in apart)
    said.append(
        f"Within the causal subspace the tuned lens aligns better than within a random one of the same size at {above} "
        f"of {len(rows)} layers, worse at {below}, by {np.mean([e.value for e in apart]):.2f} on average."
    )
    return " ".join(said)


def _curves(rows: list[dict[str, Any]], layers: tuple[int, ...]) -> Figure:
    names = TUNED, LOGIT, "tuned lens, random subspace", "logit lens, random subspace"
    series = []
    for name in names:
        y, low, high = ([row[name][i] for row in rows] for i in range(3))
        series.append(Series(name, layers, y, low, high, dashed="random" in name))
    return Figure("alignment", (Panel("Stimulus-response alignment", "layer", "Aitchison cosine", series, level=0),))
