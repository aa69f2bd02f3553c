"""Tables of how well lenses read words that are not said: the published score, controls, one layer, differences.

Knows: which numbers stand side by side, what is resampled, that a layer is chosen on other prompts.
Does not know: how words are scored (thought_scores.py), what the numbers say.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import combinations
from typing import Any

import numpy as np

from lenscope.experiments.jacobian_lens_paper.thought_scores import KS, ThoughtScores
from lenscope.statistics.estimates import difference, mean
from lenscope.statistics.intervals import Estimate
from lenscope.statistics.selection import crossed

# all sets together
ALL = "all sets"
# so much of a graded score decides between layers whose share of hits is the same
TIES = 1e-6


def pooled_thoughts(several: Sequence[ThoughtScores]) -> ThoughtScores:
    """The scores of all sets as one; prompts with fewer words have -1 for the others."""
    words = max(one.rank.shape[-1] for one in several)
    parts: list[np.ndarray] = []
    for field in fields(ThoughtScores):
        arrays = [getattr(one, field.name) for one in several]
        if field.name == "rank":
            arrays = [np.pad(a, ((0, 0), (0, 0), (0, 0), (0, words - a.shape[-1])), constant_values=-1) for a in arrays]
        parts.append(np.concatenate(arrays, 1))
    return ThoughtScores(*parts)


def at_one_layer(scores: ThoughtScores, lens: int, k: int, seed: int, less_random: bool = False) -> np.ndarray:
    """pass@KS[k] (N,) at the layer that is best on other prompts, less that of random words there if asked for."""
    hits = scores.hits()[lens, :, :, k]
    choice = hits + TIES * scores.graded[lens]
    return crossed(choice, range(len(hits)), seed, hits - scores.random_hits[lens, :, :, k] * less_random)


def graded_at_one_layer(scores: ThoughtScores, lens: int, seed: int, specific: bool = False) -> np.ndarray:
    """The graded score (N,), or how specific a word is to its prompt, at the layer of the best graded score on others.

    NaN of a prompt that no other can be compared with.
    """
    graded = scores.graded[lens]
    return crossed(graded, range(len(graded)), seed, scores.specific[lens] if specific else None)


def thought_tables(
    scores: Mapping[str, ThoughtScores], lenses: Sequence[str], layers: Sequence[int], seed: int
) -> dict[str, Any]:
    """Tables of all sets and lenses, for each k: scores with controls, and paired differences of lenses.

    `scores` are by set, ALL among them.
    """
    tables: dict[str, Any] = {}
    for k, number in enumerate(KS):
        tables[f"pass@{number}"] = [
            _score_row(name, one, lens, f, k, seed) for name, one, f, lens in _sets_by_lens(scores, lenses)
        ]
    tables["graded"] = [
        _graded_row(name, one, lens, f, layers, seed) for name, one, f, lens in _sets_by_lens(scores, lenses)
    ]
    for k, number in enumerate(KS):
        tables[f"differences of pass@{number}"] = [
            _difference_row(name, one, lenses, pair, k, seed)
            for name, one in scores.items()
            for pair in combinations(range(len(lenses)), 2)
        ]
    tables["differences of graded"] = [
        _graded_difference(name, one, lenses, pair, seed)
        for name, one in scores.items()
        for pair in combinations(range(len(lenses)), 2)
    ]
    return {name: rows for name, rows in tables.items() if rows}


def _sets_by_lens(
    scores: Mapping[str, ThoughtScores], lenses: Sequence[str]
) -> Iterator[tuple[str, ThoughtScores, int, str]]:
    for name, one in scores.items():
        for f, lens in enumerate(lenses):
            yield name, one, f, lens


def known_mean(values: np.ndarray, seed: int) -> Estimate:
    """The mean of the values that are known, with its interval over prompts."""
    known = values[~np.isnan(values)]
    return mean(known, seed=seed) if len(known) else Estimate(np.nan, np.nan, np.nan)


def _score_row(name: str, one: ThoughtScores, lens: str, f: int, k: int, seed: int) -> dict[str, Any]:
    best, random, other = one.best()[f, :, k], one.random_best[f, :, k], one.other_best[f, :, k]
    return {
        "set": name,
        "lens": lens,
        "prompts": len(best),
        "published": known_mean(best, seed),
        "random words": known_mean(random, seed),
        "other prompts": known_mean(other, seed),
        "minus random words": known_mean(best - random, seed),
        "minus other prompts": known_mean(best - other, seed),
        "one layer": known_mean(at_one_layer(one, f, k, seed), seed),
        "one layer minus random words": known_mean(at_one_layer(one, f, k, seed, True), seed),
    }


def _graded_row(name: str, one: ThoughtScores, lens: str, f: int, layers: Sequence[int], seed: int) -> dict[str, Any]:
    at = int(one.graded[f].mean(0).argmax())
    rank = one.rank[f, :, at]
    return {
        "set": name,
        "lens": lens,
        "above random words": known_mean(graded_at_one_layer(one, f, seed), seed),
        "above other prompts": known_mean(graded_at_one_layer(one, f, seed, True), seed),
        "mean of layers": known_mean(one.graded[f].mean(1), seed),
        "typical rank": _typical(rank),
        "best layer": layers[at],
    }


def _typical(rank: np.ndarray) -> float:
    """The geometric mean of ranks counted from 1; -1 are none."""
    return float(np.exp(np.log(rank[rank >= 0] + 1.0).mean()))


def _difference_row(
    name: str, one: ThoughtScores, lenses: Sequence[str], pair: tuple[int, int], k: int, seed: int
) -> dict[str, Any]:
    a, b = pair
    best, net = one.best()[:, :, k], one.best()[:, :, k] - one.random_best[:, :, k]
    return {
        "set": name,
        "lenses": f"{lenses[b]} - {lenses[a]}",
        "published": difference(best[b], best[a], seed=seed),
        "minus random words": difference(net[b], net[a], seed=seed),
        "one layer": difference(at_one_layer(one, b, k, seed), at_one_layer(one, a, k, seed), seed=seed),
        "one layer minus random words": difference(
            at_one_layer(one, b, k, seed, True), at_one_layer(one, a, k, seed, True), seed=seed
        ),
    }


def _graded_difference(
    name: str, one: ThoughtScores, lenses: Sequence[str], pair: tuple[int, int], seed: int
) -> dict[str, Any]:
    a, b = pair
    apart = {
        what: graded_at_one_layer(one, b, seed, specific) - graded_at_one_layer(one, a, seed, specific)
        for what, specific in (("above random words", False), ("above other prompts", True))
    }
    return {
        "set": name,
        "lenses": f"{lenses[b]} - {lenses[a]}",
        **{what: known_mean(values, seed) for what, values in apart.items()},
        "mean of layers": difference(one.graded[b].mean(1), one.graded[a].mean(1), seed=seed),
    }


def thought_layer_rows(
    one: ThoughtScores, lenses: Sequence[str], layers: Sequence[int], kl: Sequence[Sequence[Estimate]], seed: int
) -> list[dict[str, Any]]:
    """A row for each layer: of each lens the graded score and the typical rank of all words, and KL(model ‖ lens)."""
    rows = []
    for n, layer in enumerate(layers):
        row: dict[str, Any] = {"layer": layer}
        for f, lens in enumerate(lenses):
            row[f"{lens}: above random words"] = known_mean(one.graded[f, :, n], seed)
            row[f"{lens}: typical rank"] = _typical(one.rank[f, :, n])
            row[f"{lens}: KL"] = kl[f][n]
        rows.append(row)
    return rows
