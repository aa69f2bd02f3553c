"""Stimulus-response alignment: whether lens and model respond alike when a layer's states change within a subspace.

Knows: the paper's protocol, controls, statistics and table. Does not know: how states are exchanged or compared.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from lenscope.directions.alignment import Alignment, alignment
from lenscope.directions.basis import Basis
from lenscope.directions.causal_basis import causal_basis, random_basis
from lenscope.display.figures import Figure
from lenscope.display.panels import Panel
from lenscope.experiments.definition import Experiment
from lenscope.experiments.estimates_shown import curve, surely
from lenscope.experiments.report import Report
from lenscope.experiments.setting import Setting
from lenscope.experiments.tuned_lens_paper.basis_text import BasisText, basis_text
from lenscope.statistics.estimates import difference, spearman
from lenscope.statistics.intervals import Estimate

CLAIM = (
    "Belrose et al. 2023, Fig. 9: the part of a state that lies in the causal subspace (the directions that matter "
    "most to the lens) is exchanged with that of another state. How the lens's prediction changes and how the model's "
    "does are more alike (Aitchison cosine: 1 is the same change) the deeper the layer, and at every layer more alike "
    "for the tuned than for the logit lens (Pythia-160M; a plot, without numbers)."
)
TUNED, LOGIT = "tuned lens", "logit lens"
# whose subspace states are exchanged in: the lens that it is the causal basis of, or random directions
KINDS = {"tuned": (causal_basis, TUNED), "logit": (causal_basis, LOGIT), "random": (random_basis, TUNED)}
# tokens that directions are found on
FOUND_ON = {"quick": 640, "full": 1024}
# tokens that they are measured on
MEASURED_ON = {"quick": 384, "full": 1024}
# the size of the subspace
K = {"quick": 6, "full": 12}
# layers
LAYERS = {"quick": 3, "full": 6}


def _run_alignment(setting: Setting) -> Report:
    """Exchanges states within the causal subspace of each lens, and within a random one of the same size.

    Subspaces are found on one half of the held-out text and used on the other. Per layer: the mean similarity of
    stimulus and response over documents, with intervals that resample documents, and the tuned lens's minus the logit
    lens's of the same exchanges, document by document.
    """
    tokens = setting.choose(**FOUND_ON), setting.choose(**MEASURED_ON)
    text = basis_text(setting, tokens, setting.choose(**LAYERS), setting.choose(**K))
    results: dict[str, Alignment] = {
        kind: setting.cached(f"alignment-{kind}", partial(_aligned, setting, kind, text), **text.inputs())
        for kind in KINDS
    }
    rows = [_alignment_row(results, layer) for layer in text.layers]
    return Report(
        experiment="alignment",
        model=setting.lm.name,
        claim=CLAIM,
        reading=_alignment_reading(rows, text.layers),
        tables={"alignment": rows},
        figures=(_alignment_figure(rows, text.layers),),
        settings=setting.settings(**text.settings(), documents=_documents(results)),
        provenance=setting.provenance(),
    )


def _aligned(setting: Setting, kind: str, text: BasisText) -> Alignment:
    """The alignment of both lenses within one kind of subspace."""
    lm = setting.lm
    lenses: Mapping[str, Callable[..., Any] | None] = {TUNED: setting.translators, LOGIT: None}
    find, lens = KINDS[kind]
    with setting.progress(f"layers, {kind} subspace") as advance:
        basis: Basis = find(lm, text.finding, lenses[lens], text.layers, k=text.k, seed=setting.seed, progress=advance)
    with setting.progress(f"layers exchanged, {kind} subspace") as advance:
        return alignment(lm, text.measuring, basis, lenses, seed=setting.seed, progress=advance)


def _alignment_row(results: Mapping[str, Alignment], layer: int) -> dict[str, Any]:
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


def _alignment_reading(rows: list[dict[str, Any]], layers: tuple[int, ...]) -> str:
    first, last = rows[0][TUNED], rows[-1][TUNED]
    trend = {lens: spearman(layers, [row[lens].value for row in rows]) for lens in (TUNED, LOGIT)}
    rises = last.low > first.high and trend[TUNED].value > 0
    sure = {name: surely(row[f"tuned - logit, {name}"] for row in rows) for name in ("same exchanges", "own subspaces")}
    holds = [rises, *(above == len(rows) for above, _ in sure.values())]
    opening = "Replicates" if all(holds) else "Replicates in part" if any(holds) else "Does not replicate"
    sentences = [
        f"{opening}. The tuned lens's alignment {'rises' if rises else 'does not rise'} with depth: {first} at layer "
        f"{layers[0]}, {last} at layer {layers[-1]}; over {len(layers)} layers its Spearman correlation with depth is "
        f"{trend[TUNED]}, the logit lens's {trend[LOGIT]}."
    ]
    whose = {"same exchanges": "both see the same exchanges", "own subspaces": "each has a subspace of its own"}
    for name, (above, below) in sure.items():
        gaps = [row[f"tuned - logit, {name}"] for row in rows]
        verdict = (
            "replicates" if above == len(rows) else "replicates in part" if above > below else "does not replicate"
        )
        sentences.append(
            f"Tuned above logit lens where {whose[name]}: {verdict}. Above at {above} of {len(rows)} layers, below at "
            f"{below} (by the whole interval), by {np.mean([e.value for e in gaps]):.2f} on average."
        )
    gaps = [row["causal - random subspace, tuned"] for row in rows]
    above, below = surely(gaps)
    sentences.append(
        f"Control: in its subspace the tuned lens aligns better than in a random one of the same size at {above} "
        f"of {len(rows)} layers, worse at {below}, by {np.mean([e.value for e in gaps]):.2f} on average."
    )
    return "\n".join(sentences)


def _alignment_figure(rows: list[dict[str, Any]], layers: tuple[int, ...]) -> Figure:
    names = TUNED, LOGIT, "tuned lens, random subspace", "logit lens, random subspace"
    curves = [curve(name, layers, [row[name] for row in rows], "random" in name) for name in names]
    return Figure("alignment", (Panel("Stimulus-response alignment", "layer", "Aitchison cosine", curves, level=0),))


EXPERIMENT = Experiment(data="text", run=_run_alignment)
