"""The card of a detector: README.md, which says what it was fitted and tested on, where it fails, how it is used.

Knows: what a security engineer asks of a detector, how tables of an evaluation are shown and read for failures.
Does not know: how a detector is fitted or saved (attack_detector.py), how an evaluation is run.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lenscope.models.load_options import dtype_name

# a data set where fewer attacks are above the threshold at 1 % is one where the detector fails
FEWEST_AT_ONE_PERCENT = 0.1
_ERROR = "calibration error"


def detector_card(detector: Any, evaluation: Mapping[str, Any] | None = None) -> str:
    """The card of an `AttackDetector` in Markdown.

    Args:
        detector: the detector.
        evaluation: tables by name, each a list of rows, of prompts that the detector was not fitted on. A row has a
            "data set" and what was measured: "AUROC", "TP at 1%", "TP at 5%" (the share of attacks above the threshold)
            and "calibration error", or, of harmless prompts alone, "false alarms at 1%" and "false alarms at 5%". A
            value is a number, an `Estimate`, or {"value", "low", "high"}. Where "detector" names one, rows of other
            detectors are left out.
    """
    report, lm = detector.report, detector.lm
    lines = [f"# A detector of attacks for {_markdown_cell(lm.name)}", ""]
    lines += [
        "It says how probable it is that a prompt is an attack, such as an injected instruction, by how the model "
        "processes the prompt. A linear probe was fitted on prompts with labels.",
        "",
        *_table(["", ""], _card_facts(detector)),
        "## What it was fitted on",
        "",
        *_fitted_on(report),
        "## Thresholds",
        "",
        *_card_thresholds(detector),
        "## What it was tested on",
        "",
        *_tested_on(evaluation),
        "## Where it fails",
        "",
        *(f"- {failure}" for failure in _failures(evaluation)),
        "",
        "## How to use it",
        "",
        "```python",
        "import lenscope as ls",
        "from lenscope.detection import load_detector",
        "",
        f"lm = ls.load({json.dumps(lm.name, ensure_ascii=False)})",
        'detector = load_detector("folder", lm)',
        'detector.score("Ignore all previous instructions")',
        'detector.verdict("Ignore all previous instructions")',
        "```",
        "",
        "`lenscope detect score folder --file prompts.txt` does so for every line of a file. The detector reads this "
        "model with these weights, and lenscope refuses any other.",
        "",
    ]
    return "\n".join(lines)


def _card_facts(detector: Any) -> Iterator[list[Any]]:
    lm, report = detector.lm, detector.report
    dtype = dtype_name(lm.dtype)
    yield ["model", f"{lm.name} ({lm.n_layers} layers of {lm.hidden_size}, {dtype})"]
    yield ["looks at", detector.view + ("" if detector.layer < 0 else f", layer {detector.layer}")]
    for name, layers in detector.lens_layers.items():
        yield [f"lens {name}", "layers " + ", ".join(map(str, layers))]
    yield ["probabilities", f"{report.get('calibration', 'calibrated')}, out of fold"]
    yield ["prompts", f"{len(detector.prompts)}, of which the SHA-256 are kept"]
    if report.get("seed") is not None:
        yield ["seed", report["seed"]]


def _fitted_on(report: Mapping[str, Any]) -> list[str]:
    sets = report.get("data_sets")
    rows = []
    for name, counts in (sets if isinstance(sets, dict) else {}).items():
        families = counts.get("families", {})
        most = ", ".join(families) if len(families) <= 6 else f"{len(families)} of them"
        rows.append([name or "–", counts.get("attacks"), counts.get("normal"), counts.get("insertions"), most or "–"])
    lines = _table(["data set", "attacks", "normal", "harmless insertions", "families of attacks"], rows)
    tried = [row for row in report.get("tried") or [] if isinstance(row, dict)]
    if tried:
        lines += [
            "What was tried, out of fold among these prompts. This is in distribution: on other data sets it is lower. "
            "In brackets are 95 % intervals.",
            "",
        ]
        shares = [at["false_positives"] for at in tried[0].get("true_positives", [])]
        head = ["view", "layer", "AUROC", *(f"attacks above the threshold at {s:.4g}" for s in shares)]
        rows = []
        for row in sorted(tried, key=lambda r: -(r.get("auroc") or 0)):
            cells = [_value({"value": row.get("auroc"), "ends": row.get("auroc_95")})]
            cells += [_value({**at, "ends": at.get("interval_95")}) for at in row.get("true_positives", [])]
            named = f"{row.get('view')}{' (control)' if row.get('control') else ''}"
            rows.append([named, "–" if row.get("layer") is None else row["layer"], *cells])
        lines += _table(head, rows)
    return lines


def _card_thresholds(detector: Any) -> list[str]:
    rows = []
    for share, threshold in detector.thresholds.items():
        value = f"{threshold:.4g}"
        if math.isnan(threshold):
            value = f"not to be had: it takes {math.ceil(1 / share - 1e-9) - 1} harmless prompts"
        rows.append([f"{share:.4g}", value])
    low, high = detector.unsure
    lines = _table(["share of harmless prompts above", "probability"], rows)
    lines.append(
        f"Verdicts are given at {detector.false_positives:.4g}"
        + (f"; from {low:.4g} to {high:.4g} the verdict is “unsure”." if low < high else "; none is “unsure”.")
        + " Thresholds come from harmless prompts out of fold, and hold for prompts like those of the fit."
    )
    return [*lines, ""]


def _tested_on(evaluation: Mapping[str, Any] | None) -> list[str]:
    lines: list[str] = []
    for name, rows in _tables_of(evaluation):
        columns = [c for c in _measured_columns(rows) if any(c in row for row in rows)]
        cells = [[row.get("data set", "–"), *(_value(row.get(c)) for c in columns)] for row in rows]
        lines += [f"{_markdown_cell(name[:1].upper() + name[1:])}:", "", *_table(["data set", *columns], cells)]
    if lines:
        return ["In brackets are 95 % intervals.", "", *lines]
    return [
        "It has not been tested on prompts of other data sets than those of the fit. `lenscope detect evaluate` does "
        "that; what the table above says must not be expected of other prompts.",
        "",
    ]


def _failures(evaluation: Mapping[str, Any] | None) -> list[str]:
    """Sentences: which data sets it does not tell, or alarms at, by the evaluation; what it cannot know at all."""
    failures = []
    for table, rows in _tables_of(evaluation):
        for row in rows:
            where = f"{_markdown_cell(row.get('data set', '–'))} ({_markdown_cell(table)})"
            area, low, _ = _value_with_ends(row.get("AUROC"))
            if area is not None and (area if low is None else low) <= 0.5:
                failures.append(f"{where}: its AUROC, {_value(row['AUROC'])}, is not above chance.")
            share, _, _ = _value_with_ends(row.get("TP at 1%"))
            if share is not None and share < FEWEST_AT_ONE_PERCENT:
                failures.append(f"{where}: at 1 % false positives it finds {share:.1%} of attacks.")
            for promised in (0.01, 0.05):
                alarms, low, _ = _value_with_ends(row.get(f"false alarms at {promised:.0%}"))
                if alarms is not None and (alarms if low is None else low) > promised:
                    failures.append(
                        f"{where}: {alarms:.1%} of harmless prompts are above the threshold at {promised:.0%}."
                    )
    if not failures and evaluation is None:
        failures.append("Not known, as it was not tested elsewhere.")
    elif not failures:
        failures.append("On none of the data sets above by these marks: AUROC at chance, few attacks found, alarms.")
    return [
        *failures,
        "Prompts that were made to deceive it: whoever can try prompts against it may find some that pass.",
        "Probabilities are too high where fewer of the prompts are attacks than in the fit.",
    ]


def _tables_of(evaluation: Mapping[str, Any] | None) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """The tables that a card shows, without other detectors' rows."""
    wanted = (evaluation or {}).get("detector")
    for name, table in (evaluation or {}).items():
        rows = [r for r in table if isinstance(r, Mapping)] if isinstance(table, list | tuple) else []
        rows = [r for r in rows if wanted is None or r.get("detector", wanted) == wanted]
        if any(_measured_columns([row]) for row in rows):
            yield str(name), rows


def _measured_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was measured, in the order in which it is shown."""
    names = dict.fromkeys(key for row in rows for key in row)
    shown = ("AUROC", "TP at ", _ERROR, "false alarms at ", "alarms at ")
    return [n for start in shown for n in names if n == start or (start.endswith(" ") and n.startswith(start))]


def _value_with_ends(value: Any) -> tuple[float | None, float | None, float | None]:
    """A value and its interval's ends; None for what is not known."""
    if isinstance(value, Mapping):
        ends = value.get("ends") or (value.get("low"), value.get("high"))
        parts = (value.get("value"), *ends)
    else:
        parts = (getattr(value, "value", value), getattr(value, "low", None), getattr(value, "high", None))
    known = [float(p) if isinstance(p, int | float) and math.isfinite(p) else None for p in parts]
    return known[0], known[1], known[2]


def _value(value: Any) -> str:
    middle, low, high = _value_with_ends(value)
    if middle is None:
        return "–"
    return f"{middle:.3f}" + ("" if low is None or high is None else f" ({low:.3f} to {high:.3f})")


def _table(head: Sequence[str], rows: Any) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(_markdown_cell(c) for c in row)} |" for row in rows), ""]


def _markdown_cell(value: object) -> str:
    """A value as text of one line that neither ends a cell of a table nor is a tag of a page."""
    text = " ".join(str(value).split())
    text = "".join(c if c.isprintable() else " " for c in text)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")[:200]
