"""Linear probes: what a classifier reads of vectors, tested on groups that it was not trained on.

Knows: cross-validation by groups, how strong the penalty is to be, what accuracies are compared with.
Does not know: models, layers, what vectors and labels are.
"""

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.statistics import estimates as statistics
from lenscope.statistics.intervals import Estimate

# inverse strengths of the penalty on weights of standardised features, the first of equally good ones being taken
STRENGTHS = (1e-3, 1e-2, 1e-1)
INNER = 3


@final
@dataclass(frozen=True, eq=False, repr=False)
class Probed(Brief):
    """What a probe got right, item by item (N,), and in all, with intervals that resample groups.

    `majority` is a probe without features: the most frequent label of the other folds. `shuffled` is the same probe,
    with the same penalties, where the groups have exchanged their labels (a control task, Hewitt and Liang 2019).
    `heard` (N,) says whether an item's label occurs in the other folds: where it does not, no probe can be right.
    `strengths` are the inverse penalties that were chosen, a fold each.
    """

    correct: np.ndarray
    majority: np.ndarray
    shuffled: np.ndarray
    heard: np.ndarray
    strengths: tuple[float, ...]
    groups: np.ndarray
    seed: int

    @property
    def accuracy(self) -> Estimate:
        """The share of items that the probe gets right."""
        return statistics.mean(self.correct, units=self.groups.tolist(), seed=self.seed)


def probe(
    features: ArrayLike, labels: Sequence[Hashable], groups: Sequence[Hashable], folds: int = 3, seed: int = 0
) -> Probed:
    """Fit a linear probe, cross-validated over whole groups: multinomial logistic regression of labels on features.

    Groups are dealt to the folds label by label, so that a label with several groups is in several folds. In each fold
    features are standardised, and the penalty chosen by the same kind of cross-validation, on the others alone. Raises
    LenscopeError for as many features, labels and groups as are not equal, features that are not finite, and fewer
    groups than folds.

    Args:
        features: numbers (N, D), a row for each item.
        labels: what is to be read of each item (N).
        groups: what each item belongs to (N); no group is in two folds.
        folds: how many parts are tested in turn.
        seed: fixes the folds and the exchanged labels.
    """
    x = np.asarray(features, dtype=float)
    if x.ndim != 2 or not len(x) == len(labels) == len(groups) or not np.isfinite(x).all():
        raise LenscopeError(
            f"features {x.shape}, {len(labels)} labels, {len(groups)} groups: give finite (N, D), N labels, N groups"
        )
    y, unit = _as_codes(labels), _as_codes(groups)
    if not 2 <= folds <= unit.max() + 1:
        count = unit.max() + 1
        raise LenscopeError(
            f"folds {folds}: there are {count} groups, and a group is never split; give 2–{count} folds"
        )
    fold = deal(y, unit, folds, seed)
    strengths = [_strength(x[fold != f], y[fold != f], unit[fold != f], seed) for f in range(folds)]
    exchanged = _exchanged(y, unit, seed)
    majority, heard = np.empty_like(y), np.empty(len(y), dtype=bool)
    for f in range(folds):
        there = y[fold != f]
        majority[fold == f] = np.bincount(there).argmax()
        heard[fold == f] = np.isin(y[fold == f], there)
    right = _predictions(x, y, fold, strengths) == y
    control = _predictions(x, exchanged, deal(exchanged, unit, folds, seed), strengths) == exchanged
    return Probed(right, majority == y, control, heard, tuple(strengths), unit, seed)


def deal(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold (N,) of each item: whole groups, in turn, those of one label (a group's first) after each other."""
    random = np.random.default_rng(seed)
    names, first = np.unique(groups, return_index=True)
    order = random.permutation(len(names))
    order = order[np.argsort(labels[first[order]], kind="stable")]
    fold = np.empty(len(names), dtype=np.int64)
    fold[order] = np.arange(len(names)) % folds
    return np.asarray(fold[np.searchsorted(names, groups)])


def _predictions(x: np.ndarray, y: np.ndarray, fold: np.ndarray, strengths: Sequence[float]) -> np.ndarray:
    """The label of each item (N,) as a probe of the other folds says, with the penalty of its fold."""
    predictions = np.empty_like(y)
    for f, strength in enumerate(strengths):
        predictions[fold == f] = _fitted(x[fold != f], y[fold != f], x[fold == f], [strength])[0]
    return predictions


def _strength(x: np.ndarray, y: np.ndarray, unit: np.ndarray, seed: int) -> float:
    count = len(np.unique(unit))
    if count < 2:
        return STRENGTHS[0]
    fold = deal(y, unit, min(INNER, count), seed)
    right = np.zeros(len(STRENGTHS))
    for f in range(int(fold.max()) + 1):
        train, test = fold != f, fold == f
        for n, predictions in enumerate(_fitted(x[train], y[train], x[test], STRENGTHS)):
            right[n] += (predictions == y[test]).sum()
    return STRENGTHS[int(right.argmax())]


def _fitted(x: np.ndarray, y: np.ndarray, at: np.ndarray, strengths: Sequence[float]) -> list[np.ndarray]:
    """The labels of `at` (M,) by classifiers fitted on x and y, one for each strength."""
    if len(np.unique(y)) < 2:
        return [np.full(len(at), y[0])] * len(strengths)
    middle, spread = x.mean(0), x.std(0)
    spread = np.where(spread > 0, spread, 1)
    x, at = (x - middle) / spread, (at - middle) / spread
    if x.shape[1] > len(x):
        # the weights are combinations of the examples: the same classifier in as many dimensions as there are examples
        _, _, axes = np.linalg.svd(x, full_matrices=False)
        x, at = x @ axes.T, at @ axes.T
    model: Any = LogisticRegression(max_iter=300, warm_start=True)
    predictions = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in strengths:
            model.C = strength
            predictions.append(np.asarray(model.fit(x, y).predict(at)))
    return predictions


def _exchanged(y: np.ndarray, unit: np.ndarray, seed: int) -> np.ndarray:
    """Labels of groups (each group's first) in the hands of other groups, at random."""
    _, first = np.unique(unit, return_index=True)
    return np.asarray(np.random.default_rng([seed, 1]).permutation(y[first])[unit])


def _as_codes(names: Sequence[Hashable]) -> np.ndarray:
    """Names as numbers, in order of their first appearance."""
    order = {name: n for n, name in enumerate(dict.fromkeys(names))}
    return np.array([order[name] for name in names])
