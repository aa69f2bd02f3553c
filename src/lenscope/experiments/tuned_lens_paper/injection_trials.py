"""Trials of detectors: fitted on a part of normal items, tried on the rest and on odd ones, in every part by turns.

Knows: what is held out, that nothing tested was fitted on, AUROC over splits with intervals of resampled items.
Does not know: how features are measured, what the odd items are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lenscope.contents import Brief
from lenscope.detection.detector_parts import fingerprint
from lenscope.detection.outliers import NEIGHBOURS, Forest, Mahalanobis, Method, best_candidate, folds, separation
from lenscope.errors import LenscopeError
from lenscope.models.language_model import LM
from lenscope.models.progress import Progress
from lenscope.statistics.intervals import RESAMPLES, Estimate, percentiles, times_drawn

# of the normal items; one is held out
PARTS = 4


class PlainFeatures(NamedTuple):
    """What is measured of N texts beside trajectories: mean states (N, L, D), lengths (N,) and surprisals (N,)."""

    states: np.ndarray
    length: np.ndarray
    surprisal: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Items(Brief):
    """Texts with all that is looked at of them: features (N, F) by lens, mean states (N, L, D) of `layers`, controls.

    `length` (N,) in tokens, `surprisal` (N,) in nats per token.
    """

    texts: Sequence[str]
    features: dict[str, np.ndarray]
    layers: tuple[int, ...]
    states: np.ndarray
    length: np.ndarray
    surprisal: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, numbers: Sequence[int] | np.ndarray) -> "Items":
        """The items of these numbers."""
        at = np.asarray(numbers)
        features = {name: x[at] for name, x in self.features.items()}
        texts = [self.texts[i] for i in at.tolist()]
        return Items(texts, features, self.layers, self.states[at], self.length[at], self.surprisal[at])

    def view(self, name: str | int) -> np.ndarray:
        """The features of a lens, or the states of a layer."""
        return self.features[name] if isinstance(name, str) else self.states[:, self.layers.index(name)]


@dataclass(frozen=True, eq=False, repr=False)
class Split(Brief):
    """Scores of one split: `test` the normal items held out, and by detector and sort the scores of all tested."""

    test: np.ndarray
    scores: dict[str, dict[str, np.ndarray]]


def run_splits(
    lm: LM, items: dict[str, Items], *, paired: bool, repeats: int, seed: int, progress: Progress | None = None
) -> tuple[list[Split], dict[str, str]]:
    """Fit on three quarters of the items "normal", score the rest and all others; every quarter is held out by turns.

    Detectors are chosen by "disturbed", a copy of every normal item. Also gives what was chosen most often.

    Args:
        lm: the model, which tells texts apart.
        items: the items of every sort, "normal" and "disturbed" among them.
        paired: whether the other sorts too have an item for every normal one, which is scored where that is held out,
            so that no question is fitted on in any form.
        repeats: how often all items are split anew.
        seed: fixes the splits.
        progress: is called with the splits done and all there are.
    """
    count = len(items["normal"])
    splits: list[Split] = []
    picks: dict[str, list[str]] = {}
    for repeat in range(repeats):
        for test in folds(count, PARTS, seed + repeat):
            fit = np.setdiff1d(np.arange(count), test)
            odd = {k: v.part(test) if paired else v for k, v in items.items() if k not in ("normal", "disturbed")}
            held = {"normal": items["normal"].part(test), **odd}
            normal = items["normal"].part(fit)
            check_disjoint(lm, normal, list(held.values()))
            detectors, taken = fit_detectors(normal, items["disturbed"].part(fit), seed + repeat)
            scores = {d: {sort: score(part) for sort, part in held.items()} for d, score in detectors.items()}
            splits.append(Split(test, scores))
            for name, what in taken.items():
                picks.setdefault(name, []).append(what)
            if progress is not None:
                progress(len(splits), PARTS * repeats)
    return splits, {name: max(sorted({*what}), key=what.count) for name, what in picks.items()}


def check_disjoint(lm: LM, seen: Items, tested: Sequence[Items]) -> None:
    """Raise LenscopeError if anything that is tested was fitted on."""
    known = {fingerprint(lm, t) for t in seen.texts}
    if any(fingerprint(lm, t) in known for items in tested for t in items.texts):
        raise LenscopeError("texts: some that are tested are among the normal ones; remove the duplicates")


def fit_detectors(
    normal: Items, odd: Items, seed: int
) -> tuple[dict[str, Callable[[Items], np.ndarray]], dict[str, str]]:
    """Detectors fitted on normal items, and what was chosen for them by their own disturbed copies `odd`."""
    detectors: dict[str, Callable[[Items], np.ndarray]] = {}
    taken: dict[str, str] = {}
    best: list[tuple[float, str]] = []
    for lens in normal.features:
        ways: dict[str, Sequence[Method]] = {"forest": (Forest(seed=seed),), "neighbours": NEIGHBOURS}
        for kind, methods in ways.items():
            separations = [separation(m, normal.view(lens), odd.view(lens), seed) for m in methods]
            method = methods[best_candidate(separations)]
            detectors[f"{lens} {kind}"] = _scorer(method, normal, lens)
            best.append((max(separations), f"{lens} {kind}"))
            if len(methods) > 1:
                taken[f"{lens} {kind}"] = f"{method}".partition("(")[2].rstrip(")")
    separations = [separation(Mahalanobis(), normal.view(n), odd.view(n), seed) for n in normal.layers]
    taken["SRM"] = f"layer {normal.layers[best_candidate(separations)]}"
    detectors["SRM"] = _scorer(Mahalanobis(), normal, normal.layers[best_candidate(separations)])
    best.append((max(separations), "SRM"))
    for layer in normal.layers:
        detectors[f"SRM {layer}"] = _scorer(Mahalanobis(), normal, layer)
    taken["chosen"] = best[best_candidate([b[0] for b in best])][1]
    detectors["chosen"] = detectors[taken["chosen"]]
    detectors["length"] = lambda items: items.length
    detectors["perplexity"] = lambda items: items.surprisal
    return detectors, taken


def _scorer(method: Method, normal: Items, view: str | int) -> Callable[[Items], np.ndarray]:
    score = method(normal.view(view))
    return lambda items: score(items.view(view))


def split_auroc(
    splits: Sequence[Split], detector: str, low: str, high: str, paired: bool, counting: np.ndarray | None = None
) -> Estimate:
    """The mean AUROC over splits, with the interval of resampled items.

    Args:
        splits: from `run_splits`.
        detector: whose scores are taken.
        low: the sort that should score lower.
        high: the sort that should score higher.
        paired: whether `high` has one item per normal item; both are drawn together, and an item is not compared with
            its own pair, of which resamples would have too many. Else the two are drawn apart.
        counting: (N,) which items of `high` count; none: all.
    """
    wins = []
    for split in splits:
        a, b = (split.scores[detector][sort] for sort in (low, high))
        b = b if counting is None else b[counting]
        won = (b > a[:, None]) + 0.5 * (b == a[:, None])
        wins.append(won * (1 - np.eye(len(a))) if paired else won)
    count = 1 + max(int(split.test.max()) for split in splits)
    others = count if paired else wins[0].shape[1]

    def average(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Weights (R, items) of both sides → (R,)."""
        means = []
        for split, won in zip(splits, wins, strict=True):
            w, v = rows[:, split.test], columns[:, split.test] if paired else columns
            total = w.sum(1) * v.sum(1) - ((w * v).sum(1) if paired else 0)
            means.append(np.where(total > 0, ((w @ won) * v).sum(1) / np.maximum(total, 1e-12), np.nan))
        known = ~np.isnan(means)
        # a resample may leave a split without a pair, and even all of them
        return np.asarray(np.where(known, means, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan))

    value = float(average(np.ones((1, count)), np.ones((1, others)))[0])
    if min(count, others) < 2:
        return Estimate(value, np.nan, np.nan)
    random = np.random.default_rng(0)
    rows = times_drawn(count, RESAMPLES, random)
    means = average(rows, rows if paired else times_drawn(others, RESAMPLES, random))
    low_end, high_end = percentiles(means[~np.isnan(means)], min(count, others))
    return Estimate(value, float(low_end), float(high_end))
