"""How well logit lens, biases alone and tuned lens predict, layer by layer (Belrose et al. 2023, Figs 3–5, 14).

Knows: protocol, the bias-only control, what is compared with the paper's numbers.
Does not know: how lenses are fitted (fitting/tuned_lens.py) and measured (lenses/evaluate.py).
"""

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.display.figures import Figure
from lenscope.display.panels import Panel, Series
from lenscope.experiments.definition import Experiment
from lenscope.experiments.report import Report, ReportTable
from lenscope.experiments.setting import FITTED, HELD_OUT, SAMPLED, Setting
from lenscope.experiments.text_groups import by_document, rows_of, thinned
from lenscope.fitting.tuned_lens import fit
from lenscope.lenses.evaluate import evaluate
from lenscope.lenses.evaluation_results import Evaluation
from lenscope.mappings.mapping import Scale
from lenscope.models.layers import numbers_in_runs
from lenscope.models.same_model import model_identity
from lenscope.statistics.intervals import Estimate
from lenscope.text.corpus import TokenBatch
from lenscope.text.predictions import predictions

CLAIM = (
    "The tuned lens has a lower perplexity than the logit lens at every layer of the models tried (Figs 4, 5, 14; "
    "GPT-2 at layers 0, 3, 6, 9, 11: 20.91 → 3.23, 3.66 → 2.19, 3.07 → 1.86, 2.37 → 1.48, 1.74 → 1.29 bits per byte). "
    "The logit lens is biased: the KL from its mean prediction to the model's mean prediction is 4–5 bits at most "
    "layers of GPT-Neo-2.7B, the tuned lens's 1.33 at the input and .03–.27 after it (Fig. 3)."
)
LOGIT, BIAS, TUNED = "logit lens", "bias only", "tuned lens"
# text in tokens
TEXT = {"quick": 4096, "full": 32_768}
# one in so many positions counts
EVERY = {"quick": 5, "full": 8}
# Fig. 3, GPT-Neo-2.7B with its last block inside the lens: (site of 31, logit lens, tuned lens), bits
PAPER_BIAS = (
    (0, 4.14, 1.33), (2, 5.26, 0.27), (12, 4.41, 0.18), (16, 3.35, 0.17), (20, 1.71, 0.13), (26, 0.45, 0.08),
    (30, 0.08, 0.03),
)  # fmt: skip
BITS = 1 / log(2)
# positions whose probabilities are held together
TOGETHER = 64


def _run_prediction(setting: Setting) -> Report:
    """Measure three lenses on text that none was fitted on, at every layer."""
    lm = setting.lm
    lenses = {LOGIT: None, BIAS: _bias_only(setting), TUNED: setting.translators}
    text = thinned(rows_of(setting.held_out, setting.choose(**TEXT)), setting.choose(**EVERY))
    with setting.progress("rows that measure the lenses") as advance:
        e = evaluate(lm, text, lenses, seed=setting.seed, progress=advance)
    noise = _halves_apart(setting, text)
    tables: dict[str, ReportTable] = {
        "cross-entropy in nats": _prediction_table(e, "cross_entropy"),
        "KL in nats": _prediction_table(e, "kl"),
        "bias in bits": _biases(e),
        "bias beside GPT-Neo-2.7B": _biases_beside_paper(e),
    }
    if e.bytes is not None:
        tables["bits per byte"] = _prediction_table(e, "bits_per_byte")
    settings = setting.settings(
        measured_on=f"{e.tokens:,} predictions in {e.rows} rows, {e.units} documents",
        every=setting.choose(**EVERY),
        bias_of_halves_in_bits=round(noise, 4),
    )
    return Report(
        "prediction", lm.name, CLAIM, _prediction_reading(e, noise), tables, (_prediction_figure(e),), settings,
        {**setting.provenance(), "ids_sha256": e.provenance["ids_sha256"]},
    )  # fmt: skip


def _bias_only(setting: Setting) -> Scale:
    """A bias per layer and no matrix (Eq. 7), fitted on as much of the same text as a lens of this run."""
    lm = setting.lm
    tokens = setting.choose(**(FITTED if setting.text else SAMPLED))

    def compute() -> Tensor:
        folder = setting.place("bias", tokens=tokens)
        with setting.progress("tokens of text for the biases") as advance:
            f = fit(
                lm, setting.corpus, tokens=tokens, recipe="bias", held_out=HELD_OUT, seed=setting.seed, folder=folder,
                progress=advance,
            )  # fmt: skip
        return torch.stack([f.weights[(n, lm.n_layers)][1].cpu() for n in range(lm.n_layers)])

    biases = setting.cached("biases", compute, tokens=tokens)
    me = model_identity(lm)
    return Scale({(n, lm.n_layers): (torch.tensor(1.0), b) for n, b in enumerate(biases)}, me, me, {"lens": BIAS})


def _halves_apart(setting: Setting, text: Sequence[TokenBatch]) -> float:
    """KL in bits between the model's own mean distributions on two halves of the documents; NaN of a single one."""
    lm = setting.lm
    means = []
    for half in by_document(text, 2):
        total = torch.zeros(lm.vocab_size, dtype=torch.float64)
        for batch in predictions(lm, half, (lm.n_layers,), None):
            for h in batch.h[:, 0].split(TOGETHER):
                total += lm.unembed(h).double().softmax(-1).sum(0).cpu()
        means.append(total / total.sum())
    if len(means) < 2:
        return float("nan")
    p, q = means
    there = p > 0
    return float((p[there] * (p[there] / q[there]).log()).sum()) * BITS


def _prediction_table(e: Evaluation, measure: str) -> list[dict[str, Any]]:
    """Layers × lenses with intervals, the paired difference, and the model's own value last."""
    tuned = e.lenses.index(TUNED)
    rows: list[dict[str, Any]] = []
    for n, layer in enumerate(e.layers):
        values = {name: Estimate(*e.values[measure][i, n].tolist()) for i, name in enumerate(e.lenses)}
        rows.append({"layer": layer, **values, "tuned - logit": Estimate(*e.differences[measure][tuned, n].tolist())})
    own = Estimate(*e.own[measure].tolist())
    return [*rows, {"layer": e.n_layers, **dict.fromkeys(e.lenses, own), "tuned - logit": 0.0}]


def _biases(e: Evaluation) -> list[dict[str, Any]]:
    return [{**row, **{k: Estimate(*(BITS * v for v in row[k])) for k in (*e.lenses, "tuned - logit")}}
            for row in _prediction_table(e, "bias")[:-1]]  # fmt: skip


def _biases_beside_paper(e: Evaluation) -> list[dict[str, Any]]:
    """Our biases at the layers of the same relative depth as the paper's."""
    bias = dict(zip(e.lenses, e.measure("bias") * BITS, strict=True))
    rows: list[dict[str, Any]] = []
    for site, logit, tuned in PAPER_BIAS:
        depth = site / 30
        n = round(depth * (len(e.layers) - 1))
        here = {"layer": e.layers[n], "logit lens": float(bias[LOGIT][n]), "tuned lens": float(bias[TUNED][n])}
        rows.append({"depth": round(depth, 2), **here, "paper, logit lens": logit, "paper, tuned lens": tuned})
    return rows


def _prediction_figure(e: Evaluation) -> Figure:
    panels = []
    units = {"cross_entropy": "nats per token", "kl": "nats per token", "bias": "bits"}
    for measure, unit in units.items():
        scale = BITS if measure == "bias" else 1.0
        series = []
        for i, name in enumerate(e.lenses):
            y, low, high = (e.values[measure][i] * scale).T.tolist()
            series.append(Series(name, e.layers, y, low, high, dashed=name == BIAS))
        level = float(e.own[measure][0]) if measure == "cross_entropy" else None
        panels.append(Panel(measure.replace("_", "-"), "layer", unit, series, log=True, level=level))
    return Figure("prediction", panels)


def _prediction_reading(e: Evaluation, noise: float) -> str:
    tuned, logit, biases = (e.lenses.index(name) for name in (TUNED, LOGIT, BIAS))
    bias = e.measure("bias") * BITS
    parts, everywhere = [], True
    for name, measure in (("cross-entropy", "cross_entropy"), ("KL", "kl")):
        high = e.differences[measure][tuned, :, 2]
        worse = e.differences[measure][tuned, :, 1] > 0
        value = e.values[measure][:, :, 0]
        bare = np.isnan(high).all()
        better = value[tuned] < value[logit] if bare else high < 0
        everywhere = everywhere and bool(better.all())
        text = f"the tuned lens is better than the logit lens at {_layer_count(better, e)} in {name}"
        text += "" if bare else ", by more than the 95 % interval of the paired difference"
        if worse.any():
            text += f", and worse at {_ranges_in_words(worse, e)}"
        gain = value[logit] - value[tuned]
        least = int(gain.argmin())
        parts.append(
            f"{text} (mean over layers {value[logit].mean():.2f} → {value[tuned].mean():.2f} nats, with biases alone "
            f"{value[biases].mean():.2f}; the smallest gain is {gain[least]:.3f}, at layer {e.layers[least]})"
        )
    better = bias[tuned] < bias[logit]
    surely = e.differences["bias"][tuned, :, 2] < 0
    after = bias[tuned, 1:] if len(e.layers) > 1 else bias[tuned]
    parts.append(
        f"the tuned lens's bias is smaller at {_layer_count(better, e)}, by more than the interval of the difference "
        f"at {_layer_count(surely, e)}: {bias[tuned, 0]:.2f} bits at the input and {after.min():.3f}–"
        f"{after.max():.2f} after it (the paper: 1.33 and .03–.27). The logit lens's is {bias[logit].min():.2f}–"
        f"{bias[logit].max():.2f} bits, 4 bits or more at {_layer_count(bias[logit] >= 4, e)} (the paper: 4–5 for most "
        "layers)"
    )
    opening = "Replicates" if everywhere and better.all() else "Replicates in part"
    lines = [f"{opening}: {parts[0]}.", *(f"{part[0].upper()}{part[1:]}." for part in parts[1:])]
    lines.append(f"Measured on {e.tokens:,} predictions in {e.units} held-out documents.")
    if not np.isnan(noise):
        lines.append(
            "With so few predictions bias comes out too large: the model's own mean predictions on two halves of the "
            f"documents are {noise:.2f} bits apart."
        )
    return "\n".join(lines)


def _layer_count(which: np.ndarray, e: Evaluation) -> str:
    """At how many of the layers something holds, and where it does not."""
    if which.all():
        return f"all {len(which)} layers"
    missing = _ranges_in_words(~which, e)
    return f"{int(which.sum())} of {len(which)} layers" + (f" (not {missing})" if which.any() else "")


def _ranges_in_words(which: np.ndarray, e: Evaluation) -> str:
    """Layers as a list of ranges."""
    return numbers_in_runs(n for n, yes in zip(e.layers, which, strict=True) if yes)


EXPERIMENT = Experiment(data="text", run=_run_prediction)
