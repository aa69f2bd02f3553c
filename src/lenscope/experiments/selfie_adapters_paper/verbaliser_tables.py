"""What the report on a verbaliser has in it: rows of its tables with intervals, and its reading in sentences.

Knows: recall, differences from controls, the bias's share of the gain, when a claim is said to replicate.
Does not know: how scores came about (verbaliser.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lenscope.patchscopes.control_runs import BIAS, NONE, RANDOM, SHUFFLED, TEXT, VECTOR
from lenscope.patchscopes.with_controls import ControlledScores, ControlledTexts
from lenscope.statistics.estimates import difference, mean
from lenscope.statistics.intervals import Estimate, bootstrap, interval
from lenscope.statistics.significance import paired_tests

KS = 1, 10
LIKELIHOOD, EXACT = "ln p per token", "exact"
CHANCE = "chance"


@dataclass(frozen=True, eq=False)
class VerbalisedLabels:
    """What was said of N vectors in every way: the texts, the ranks of their labels (0 first), 1 where it is the label.

    `searched` is among how many labels they were ranked.
    """

    texts: ControlledTexts
    ranks: ControlledScores
    exact: ControlledScores
    searched: int

    def among_nearest(self, way: str, k: int) -> np.ndarray:
        """1 where the label is among the k nearest of what was said, else 0 (N,)."""
        return np.asarray(self.ranks.scores[way][:, 0] < k, dtype=float)


class Gain(NamedTuple):
    """How much of a trained map's gain over the untrained one its bias alone has; how much the vector adds to that."""

    share: Estimate
    vector: Estimate


def likelihood_rows(scores: ControlledScores) -> list[dict[str, Any]]:
    """A row for each way of telling: ln p per token of the label, and how much more the vector has, item by item."""
    own = scores.scores[VECTOR][:, 0]
    others = [way for way in scores.scores if way != VECTOR]
    tests = paired_tests({way: (own, scores.scores[way][:, 0], scores.units) for way in others}, scores.seed)
    rows: list[dict[str, Any]] = [
        {"way": VECTOR, LIKELIHOOD: mean(own, seed=scores.seed), "vector less it": None, "p (Holm)": None}
    ]
    for way, test in zip(others, tests, strict=True):
        rows.append({
            "way": way, LIKELIHOOD: mean(scores.scores[way][:, 0], seed=scores.seed),
            "vector less it": test["difference"], "p (Holm)": test["p (Holm)"],
        })  # fmt: skip
    return rows


def word_rows(words: VerbalisedLabels) -> list[dict[str, Any]]:
    """A row for each way of telling: how often it is the label, and the label is at rank 1 or 10 at the most."""
    seed = words.ranks.seed
    rows: list[dict[str, Any]] = []
    for way in words.ranks.scores:
        row: dict[str, Any] = {"way": way, EXACT: mean(words.exact.scores[way][:, 0], seed=seed)}
        row |= {f"recall@{k}": mean(words.among_nearest(way, k), seed=seed) for k in KS}
        row |= {
            f"vector less it, @{k}": None
            if way == VECTOR
            else difference(words.among_nearest(VECTOR, k), words.among_nearest(way, k), seed=seed)
            for k in KS
        }
        rows.append(row)
    by_chance = {f"recall@{k}": Estimate(min(1.0, k / words.searched), np.nan, np.nan) for k in KS}
    return [*rows, {"way": CHANCE, EXACT: None, **by_chance, **{f"vector less it, @{k}": None for k in KS}}]


def kind_row(kind: str, scores: ControlledScores, words: VerbalisedLabels, untrained: str) -> dict[str, Any]:
    """What is said of labels of a kind that nothing was trained on."""
    own, seed = scores.scores[VECTOR][:, 0], scores.seed
    row: dict[str, Any] = {"kind": kind, "labels": len(own), LIKELIHOOD: mean(own, seed=seed)}
    for way in (untrained, SHUFFLED, BIAS):
        if way in scores.scores:
            row[f"less {way}"] = difference(own, scores.scores[way][:, 0], seed=seed)
    row[EXACT] = mean(words.exact.scores[VECTOR][:, 0], seed=seed)
    row |= {f"recall@{k}": mean(words.among_nearest(VECTOR, k), seed=seed) for k in KS}
    row[f"recall@{KS[1]}, {SHUFFLED}"] = mean(words.among_nearest(SHUFFLED, KS[1]), seed=seed)
    row[f"recall@{KS[1]}, {untrained}"] = mean(words.among_nearest(untrained, KS[1]), seed=seed)
    return row


def weight_row(
    weight: float, choice: VerbalisedLabels, words: VerbalisedLabels, plain: VerbalisedLabels
) -> dict[str, Any]:
    """What contrast of a weight gives, beside plain decoding of the same vectors."""
    seed = words.ranks.seed
    row: dict[str, Any] = {
        "weight": weight,
        "mean 1 / rank, other topics": mean(1 / (choice.ranks.scores[VECTOR][:, 0] + 1), seed=seed),
        EXACT: mean(words.exact.scores[VECTOR][:, 0], seed=seed),
    }
    for k in KS:
        row[f"recall@{k}"] = mean(words.among_nearest(VECTOR, k), seed=seed)
        row[f"less plain, @{k}"] = difference(words.among_nearest(VECTOR, k), plain.among_nearest(VECTOR, k), seed=seed)
    row[f"recall@{KS[1]}, {SHUFFLED}"] = mean(words.among_nearest(SHUFFLED, KS[1]), seed=seed)
    return row


def bias_share(scores: ControlledScores, untrained: str) -> Gain | None:
    """The bias's share of the gain in likelihood; None for a map without a bias. NaN where there is no gain."""
    if BIAS not in scores.scores:
        return None
    own, bias, before = (scores.scores[way][:, 0] for way in (VECTOR, BIAS, untrained))

    def share(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
        gain = a.mean() - c.mean()
        return float((b.mean() - c.mean()) / gain) if gain > 0 else float("nan")

    return Gain(bootstrap(share, own, bias, before, seed=scores.seed), difference(own, bias, seed=scores.seed))


def verbaliser_reading(
    scores: ControlledScores, words: VerbalisedLabels, untrained: str, share: Gain | None, tables: Mapping[str, Any]
) -> list[str]:
    """The verdict, and each control in a sentence of its own."""
    rows = {row["way"]: row for row in tables["words"]}
    likely = {row["way"]: row for row in tables["likelihood"]}
    count = len(words.ranks.scores[VECTOR])
    gain, own = likely[untrained]["vector less it"], likely[SHUFFLED]["vector less it"]
    first, apart = rows[untrained]["vector less it, @1"], rows[SHUFFLED]["vector less it, @10"]
    whole = first.low > 0 and apart.low > 0
    part = gain.low > 0 and own.low > 0
    verdict = "Replicates" if whole else "Replicates in part" if part else "Does not replicate"
    lines = [
        f"{verdict}: of {count} topics never trained on, what the trained map makes the model say is nearest to the "
        f"own label among {words.searched} for {_in_row(rows[VECTOR], 'recall@1')}, without training "
        f"({untrained}) for {_in_row(rows[untrained], 'recall@1')}; among the 10 nearest for "
        f"{_in_row(rows[VECTOR], 'recall@10')} and {_in_row(rows[untrained], 'recall@10')}. The label is "
        f"{interval(gain)} nats per token more likely than without training.",
        f"Control, another topic's vector: recall@10 {_in_row(rows[SHUFFLED], 'recall@10')}, and the label is "
        f"{interval(own)} nats per token less likely: "
        + ("what is said is of this vector." if own.low > 0 else "nothing shows that what is said is of this vector."),
        f"Control, a random vector of equal norm: recall@10 {_in_row(rows[RANDOM], 'recall@10')}; without a patch "
        f"{_in_row(rows[NONE], 'recall@10')}; by chance {words.searched and 10 / words.searched:.3f}.",
    ]
    if share is not None:
        lines.append(
            f"The bias alone has {interval(share.share)} of the gain in likelihood (the paper: .85 of the gain); the "
            f"vector adds {interval(share.vector)} nats per token to it, and recall@10 with the bias alone is "
            f"{_in_row(rows[BIAS], 'recall@10')}."
        )
    if TEXT in rows:
        lines.append(
            f"Given the label as text, the model says the label itself for {_in_row(rows[TEXT], EXACT)}, of the vector "
            f"for {_in_row(rows[VECTOR], EXACT)}; its recall@10 is {_in_row(rows[TEXT], 'recall@10')}."
        )
    return [*lines, *_choices(tables)]


def _choices(tables: Mapping[str, Any]) -> list[str]:
    """What shapes, contrast and other kinds say."""
    lines = []
    if len(tables["shapes"]) > 1:
        listed = ", ".join(f"{row['map']} {interval(row['likelihood'])}" for row in tables["shapes"])
        lines.append(f"Shapes of maps, ln p per token: {listed}; the one that is reported was chosen on other topics.")
    best = max(tables["contrast"], key=lambda row: float(row["mean 1 / rank, other topics"].value))
    if best["weight"]:
        more = best["less plain, @10"]
        effect = "raises" if more.low > 0 else "lowers" if more.high < 0 else "does not surely change"
        lines.append(
            f"Contrast of weight {best['weight']:g}, chosen on other topics, {effect} recall@10: by {interval(more)} "
            f"to {interval(best['recall@10'])}; with another topic's vector it is "
            f"{interval(best[f'recall@10, {SHUFFLED}'])}."
        )
    elif len(tables["contrast"]) > 1:
        lines.append("Contrast: on other topics no weight is better than plain decoding.")
    for row in tables.get("kinds never seen", ()):
        apart = row[f"less {SHUFFLED}"]
        lines.append(
            f"Never seen, {row['kind']} ({row['labels']}): recall@10 {interval(row['recall@10'])}, another's vector "
            f"{interval(row[f'recall@10, {SHUFFLED}'])}; the label is {interval(apart)} nats per token more likely "
            "than with another's vector."
        )
    return lines


def _in_row(row: Mapping[str, Any], column: str) -> str:
    return interval(row[column])
