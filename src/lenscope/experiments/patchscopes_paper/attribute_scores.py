"""What is generated in the cells of a grid, scored: the paper's score and fairer ones, by subject, compared in pairs.

Knows: which of a grid's scores are shown, what is paired, how relations are pooled, which tests are corrected together.
Does not know: models, how cells are run, what stands for a subject.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lenscope.statistics.estimates import mean
from lenscope.statistics.selection import Selection, select
from lenscope.statistics.significance import holm, sign_flips
from lenscope.tasks.relations import Fact
from lenscope.tasks.text_match import mentions

FOLDS = 3
ALL = "all relations"
# name of a score → what it is; cells are pairs of a source and a target layer
SCORES = {
    "paper": "any target layer, mean over source layers",
    "oracle": "any cell",
    "selected": "cell selected on other subjects",
    "mean": "mean cell",
}


@dataclass(frozen=True, eq=False)
class SourceScores:
    """What one kind of source scored, (items, source layers, target layers), and the subject of each item.

    What has no layers has one of each.
    """

    scores: np.ndarray
    subjects: Sequence[str]
    seed: int = 0

    @cached_property
    def selection(self) -> Selection:
        """The best, selected and mean cell of the subjects."""
        cells = self.scores.reshape(len(self.scores), -1)
        return select(cells, units=self.subjects, folds=min(FOLDS, len(set(self.subjects))), seed=self.seed)

    def layers(self) -> np.ndarray:
        """(subjects, source layers) of how often any target layer is right."""
        right = self.scores.max(2)
        return np.stack([right[rows].mean(0) for rows in self._rows.values()])

    def of(self, score: str) -> dict[str, float]:
        """One of SCORES by subject, the mean over its items."""
        values = self.scores.max(2).mean(1) if score == "paper" else getattr(self.selection, f"items_{score}")
        return {subject: float(values[rows].mean()) for subject, rows in self._rows.items()}

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for n, subject in enumerate(self.subjects):
            rows.setdefault(subject, []).append(n)
        return rows


def hits(texts: np.ndarray, facts: Sequence[Fact]) -> np.ndarray:
    """Whether each text mentions each fact's object: (…) of texts → (…, facts) of bool."""
    different, where = np.unique(texts.astype(str), return_inverse=True)
    table = np.array([[mentions(text, fact.answers) for fact in facts] for text in different.tolist()])
    return np.asarray(table[where.reshape(-1)].reshape(*texts.shape, len(facts)))


def other_subjects_hits(own: np.ndarray, owner: Sequence[int], facts: Sequence[Fact]) -> tuple[np.ndarray, list[int]]:
    """Each fact's object looked for in what is said of every other subject whose object is another one.

    `own` (items, …, facts) is from `hits`, `owner` says which fact each item is of. Gives the scores of all pairs,
    (pairs, …), and the fact whose object is looked for.
    """
    names = [{answer.casefold() for answer in fact.answers} for fact in facts]
    pairs = [(i, n) for i, whose in enumerate(owner) for n in range(len(facts)) if not names[n] & names[whose]]
    item, n = [i for i, _ in pairs], [n for _, n in pairs]
    return own[item, ..., n], n


def rows_of_relation(relation: str, sources: Mapping[str, SourceScores]) -> list[dict[str, Any]]:
    """A row for every kind of source, with all scores."""
    return [_scores_row(relation, {relation: scored}, source) for source, scored in sources.items()]


def rows_over_relations(relations: Mapping[str, Mapping[str, SourceScores]]) -> list[dict[str, Any]]:
    """A row for every kind of source over the subjects of all relations, which are resampled by name."""
    kinds = next(iter(relations.values()))
    return [_scores_row(ALL, {name: sources[kind] for name, sources in relations.items()}, kind) for kind in kinds]


def _scores_row(relation: str, scored: Mapping[str, SourceScores], source: str) -> dict[str, Any]:
    row: dict[str, Any] = {"relation": relation, "source": source}
    for score, title in SCORES.items():
        values = [(subject, v) for one in scored.values() for subject, v in one.of(score).items()]
        row[title] = mean([v for _, v in values], units=[s for s, _ in values])
    return row


def comparisons(
    relations: Mapping[str, Mapping[str, SourceScores]], compared: Sequence[tuple[str, str, str]], seed: int
) -> list[dict[str, Any]]:
    """Differences of two kinds of sources subject by subject, (first, second, score) each, in every relation and all.

    p-values are of random sign flips of subjects, corrected (Holm 1979) over the relations of a comparison; over all
    relations a subject that occurs in several counts once, with its mean.
    """
    rows = []
    for first, second, score in compared:
        paired = {
            name: _paired(sources[first].of(score), sources[second].of(score)) for name, sources in relations.items()
        }
        p = holm([sign_flips(list(values.values()), seed=seed) for values in paired.values()])
        for (name, values), corrected in zip(paired.items(), p, strict=True):
            rows.append(_test(first, second, score, name, list(values.values()), corrected))
        if len(paired) > 1:
            together: dict[str, list[float]] = {}
            for values in paired.values():
                for subject, value in values.items():
                    together.setdefault(subject, []).append(value)
            means = [float(np.mean(values)) for values in together.values()]
            rows.append(_test(first, second, score, ALL, means, sign_flips(means, seed=seed)))
    return rows


def _paired(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {subject: value - second[subject] for subject, value in first.items() if subject in second}


def _test(first: str, second: str, score: str, relation: str, values: Sequence[float], p: float) -> dict[str, Any]:
    return {
        "comparison": f"{first} - {second}",
        "score": SCORES[score],
        "relation": relation,
        "subjects": len(values),
        "difference": mean(values),
        "p (Holm)": p,
    }
