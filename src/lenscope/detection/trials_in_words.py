"""What trials of detectors come to, in sentences.

Knows: which rows of the tables are the headline. Does not know: how anything is measured.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lenscope.detection.probe_features import LAST, TRAJECTORIES
from lenscope.detection.trial_designs import DESIGNS
from lenscope.detection.trial_detectors import WORDS
from lenscope.statistics.intervals import Estimate, interval


def trials_verdict(tables: Mapping[str, Sequence[Mapping[str, Any]]], design: str) -> str:
    """The verdict from the tables of trials, the headline being those of one design; a line for each table."""
    rows = _headline_rows(tables.get(design, []))
    where = "leaving one data set out" if design == DESIGNS[1] else "within the one data set (none could be left out)"
    differences = {
        r["comparison"]: r for r in tables.get("differences", []) if r["attacks against"] == "normal prompts"
    }
    lines = []
    judged = [
        _gap_in_words(differences[f"{TRAJECTORIES} - {d}"], d)
        for d in (WORDS, LAST)
        if f"{TRAJECTORIES} - {d}" in differences
    ]
    best = max(rows, key=lambda d: rows[d]["AUROC"].value, default=None)
    if best is not None:
        area = interval(rows[best]["AUROC"])
        lines.append(
            f"{where[0].upper()}{where[1:]}, attacks are told best by {best}, AUROC {area}"
            + (f"; the trajectories' detector is {' and '.join(judged)}." if judged else ".")
        )
        lines.append(f"AUROC {where}: " + ", ".join(f"{d} {interval(r['AUROC'])}" for d, r in rows.items()) + ".")
        lines.append(
            "True positives at 5 % false ones of the tested normal prompts: "
            + ", ".join(f"{d} {interval(r['TP at 5%'])}" for d, r in rows.items())
            + ". At the 5 % threshold chosen in training, false positives: "
            + ", ".join(f"{d} {interval(r['FP, 5% threshold'])}" for d, r in rows.items())
            + "."
        )
    within = _headline_rows(tables.get(DESIGNS[0], []))
    if design != DESIGNS[0] and within and rows:
        lines.append(
            "In distribution the same detectors have AUROC "
            + ", ".join(f"{d} {r['AUROC'].value:.2f}" for d, r in within.items())
            + "."
        )
    lines += _control_lines(tables, design)
    return "\n".join(lines)


def _control_lines(tables: Mapping[str, Sequence[Mapping[str, Any]]], design: str) -> list[str]:
    lines = []
    harmless: dict[str, list[float]] = {}
    for row in tables.get("harmless insertions", []):
        if row["design"] == design:
            harmless.setdefault(row["detector"], []).append(row["AUROC, attack from insertion"].value)
    if harmless:
        means = ", ".join(f"{d} {np.mean(v):.2f}" for d, v in harmless.items())
        lines.append(f"Against harmless insertions of the same form and place, mean AUROC: {means}.")
    for name in dict.fromkeys(r["data set"] for r in tables.get("trigger words", [])):
        own = [r for r in tables["trigger words"] if r["data set"] == name]
        alarms = ", ".join(f"{r['detector']} {interval(r['false alarms at 5%'])}" for r in own)
        lines.append(f"False alarms on {name}, normal prompts alone, at the 5 % threshold: {alarms}.")
    return lines


def _headline_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The mean rows by detector, or those of the only data set."""
    last = rows[-1]["data set"] if rows else ""
    return {r["detector"]: r for r in rows if r["data set"] == last}


def _gap_in_words(row: Mapping[str, Any], other: str) -> str:
    gap: Estimate = row["AUROC difference"]
    if row["p (Holm)"] >= 0.05:
        return f"not told apart from {other} (difference {interval(gap)}, p {row['p (Holm)']:.2g})"
    return f"{'better' if gap.value > 0 else 'worse'} than {other} (by {interval(gap)}, p {row['p (Holm)']:.2g})"
