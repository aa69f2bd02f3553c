"""What the report of a fitted lens says of how well it reads: KL from the model, and where it is not to be trusted.

Knows: the form of such reports, when a layer is not to be trusted, and where a provenance keeps both.
Does not know: lenses, how they are measured.
"""

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

import numpy as np

from lenscope.models.layers import layers_in_words

# the key of a provenance under which stands how well its lens read held-out text: nats for each layer
HELD_OUT = "held_out_kl"
# the key of a provenance under which stands at which of its layers the lens is not to be trusted, and why
UNTRUSTED = "untrusted_layers"
# Cosine of the readouts of two lenses, each fitted on one half of the prompts, from which on the lens is trusted. A map
# of all prompts is closer to what endless prompts would give than either half is, so that it says the same as another
# fit of the same kind. Below it the ten most probable tokens of two such fits begin to differ.
LEAST_AGREEMENT = 0.9
# Nats by which a lens may be worse than the logit lens where it is trusted: none, once the 95 % interval excludes 0.
LEAST_GAIN = 0.0

# what a reason begins with, by which layers of one reason are named together
_APART = "two halves of its prompts agree at cosine"
_WORSE = "it is worse than the logit lens on held-out text"
_UNKNOWN = "its report has no measurement"


def held_out_kl(rows: Any) -> dict[str, list[Any]] | None:
    """Give the KL on held-out text that the rows of a lens's report have, in nats; None where they have none.

    {"layers": the layers, "kl": of the lens, "logit_lens": of the logit lens there}. Reports come from files, so
    whatever has not this form says nothing.
    """
    try:
        measured = [(int(row["layer"]), float(row["kl"]), float(row["kl_logit_lens"])) for row in rows]
    except (TypeError, KeyError, ValueError):
        return None
    if not measured or not np.isfinite(measured).all():
        return None
    layers, kl, logit_lens = zip(*measured, strict=True)
    return {"layers": list(layers), "kl": list(kl), "logit_lens": list(logit_lens)}


def doubtful_layers(report: Any, layers: Iterable[int], n_layers: int) -> dict[int, str]:
    """Say at which layers a fitted lens is not to be trusted, by its own report: {layer: why, in words}.

    A Jacobian lens is not trusted where the lower end of the 95 % interval of "cosine", the agreement of the readouts
    of two halves of its prompts, is less than `LEAST_AGREEMENT`. Another lens is not trusted where it is measurably
    worse than the logit lens: where the upper end of the 95 % interval of "gain" is less than `LEAST_GAIN`. Neither is
    trusted at a layer of which its report has no measurement, though it has some of others. A report without any says
    nothing, and all layers are trusted; so is the last one, which is the model's own readout.

    Args:
        report: of a lens, whatever is in it: reports come from files, and what has not their form says nothing.
        layers: the layers that are asked about.
        n_layers: the last layer of the model.
    """
    rows = report.get("layers") if isinstance(report, Mapping) else None
    by_layer = {int(row["layer"]): row for row in rows if _is_row(row)} if isinstance(rows, list | tuple) else {}
    jacobian = isinstance(report, Mapping) and report.get("lens") == "Jacobian lens"
    judged = _agreement_doubt if jacobian else _gain_doubt
    doubts = {layer: judged(row) for layer, row in by_layer.items()}
    if all(doubt == _UNKNOWN for doubt in doubts.values()):
        return {}
    asked = {layer: doubts.get(layer, _UNKNOWN) for layer in layers if layer != n_layers}
    return {layer: doubt for layer, doubt in asked.items() if doubt is not None}


def doubts_in_words(doubts: Mapping[int, str]) -> str:
    """Say in one line at which layers a lens is not to be trusted, and why; empty where there are none.

    Layers of one kind of reason stand together, with the first layer's and the last layer's numbers where they differ.
    """
    by_kind: dict[str, list[int]] = {}
    for layer, why in sorted(doubts.items()):
        kind = next((k for k in (_APART, _WORSE, _UNKNOWN) if why.startswith(k)), why)
        by_kind.setdefault(kind, []).append(layer)
    parts = []
    for kind, layers in by_kind.items():
        several = len({doubts[n] for n in layers}) > 1
        words = f"{doubts[layers[0]]} at layer {layers[0]}" if several else f"{doubts[layers[0]]} there"
        if several and len(layers) > 1:
            words += f" … {doubts[layers[-1]].removeprefix(kind).strip()} at layer {layers[-1]}"
        parts.append(f"{layers_in_words(layers)}: {words}")
    return f"not to be trusted at {'; '.join(parts)}" if parts else ""


def doubts_of(provenance: Mapping[str, Any]) -> dict[int, str]:
    """Give what a provenance says of layers that are not to be trusted: {layer: why}; what has not this form: none."""
    try:
        entry = provenance[UNTRUSTED]
        return {int(n): str(why) for n, why in zip(entry["layers"], entry["why"], strict=True)}
    except (TypeError, KeyError, ValueError):
        return {}


def doubts_entry(doubts: Mapping[int, str]) -> dict[str, Any]:
    """Give the part of a provenance that `doubts_of` reads; empty where there are none."""
    return {UNTRUSTED: {"layers": list(doubts), "why": list(doubts.values())}} if doubts else {}


def doubts_payload(doubts: Mapping[int, str]) -> dict[str, Any] | None:
    """Give what a page is told of layers that are not to be trusted: which, why, and a line on all; None for none."""
    words = {"layers": list(doubts), "why": list(doubts.values()), "line": doubts_in_words(doubts)}
    return words if doubts else None


def _is_row(row: Any) -> bool:
    return isinstance(row, Mapping) and isinstance(row.get("layer"), int)


def _agreement_doubt(row: Mapping[str, Any]) -> str | None:
    """Why a layer of a Jacobian lens is not to be trusted; None where it is."""
    low, _ = _interval(row.get("cosine_95"))
    if low is None:
        return _UNKNOWN
    if low >= LEAST_AGREEMENT:
        return None
    value = _finite_number(row.get("cosine"))
    if value is None or value < LEAST_AGREEMENT:
        return f"{_APART} {_hundredths(low if value is None else value)}"
    return f"{_APART} {_hundredths(value)} (95 % interval from {_hundredths(low)})"


def _gain_doubt(row: Mapping[str, Any]) -> str | None:
    """Why a layer of a lens that predicts the model is not to be trusted; None where it is."""
    kl, logit_lens = _finite_number(row.get("kl")), _finite_number(row.get("kl_logit_lens"))
    if kl is None:
        return _UNKNOWN
    _, high = _interval(row.get("gain_95"))
    if high is None or high >= LEAST_GAIN:
        return None
    return _WORSE if logit_lens is None else f"{_WORSE} (KL {kl:.2f}, and {logit_lens:.2f} nats)"


def _finite_number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return float(value) if known else None


def _interval(ends: Any) -> tuple[float | None, float | None]:
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        return None, None
    low, high = map(_finite_number, ends)
    return (None, None) if low is None or high is None else (low, high)


def _hundredths(value: float) -> str:
    """A cosine as .62: cut and not rounded, so that none below the threshold is shown as it."""
    cut = int(abs(value) * 100) / 100
    return f"{'-' if value < 0 and cut else ''}{f'{cut:.2f}'.removeprefix('0')}"
