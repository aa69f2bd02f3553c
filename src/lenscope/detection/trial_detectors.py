"""The detectors that trials compare, each trained on some rows and then asked for scores of others.

Knows: probes of each view of the features, words and characters (TF-IDF), the local outlier factor of normal prompts.
Does not know: which rows are trained on and which are tested, measures.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from lenscope.contents import Brief
from lenscope.detection.calibration import SHARES, calibrate, known_thresholds
from lenscope.detection.outliers import Neighbours
from lenscope.detection.probe_features import BOTH, LAST, TRAJECTORIES
from lenscope.detection.probes import choose_probe, dealt_folds
from lenscope.detection.trial_designs import FEWEST_TO_TRAIN
from lenscope.errors import LenscopeError
from lenscope.statistics.classifier_scores import weighted_auroc

WORDS, NORMAL_ONLY = "TF-IDF", "normal only"
# C of the logistic regression on words, the first of equally good ones being taken
STRENGTHS = (0.1, 1.0, 10.0, 100.0)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Rows(Brief):
    """N prompts as trials see them: texts, features by view and key (N, F), whether attacks, whether normal, groups."""

    texts: Sequence[str]
    views: Mapping[str, Mapping[int, np.ndarray]]
    attack: np.ndarray
    normal: np.ndarray
    groups: np.ndarray

    def part(self, numbers: np.ndarray) -> "Rows":
        """The rows of these numbers."""
        views = {view: {key: x[numbers] for key, x in by_key.items()} for view, by_key in self.views.items()}
        texts = [self.texts[i] for i in numbers.tolist()]
        return Rows(texts, views, self.attack[numbers], self.normal[numbers], self.groups[numbers])


@final
@dataclass(frozen=True, eq=False, repr=False)
class Trained(Brief):
    """A detector after training: `score` gives (M,) for rows, `thresholds` by share of false positives.

    Thresholds are of scores out of fold of the normal prompts that were trained on, NaN where these are too few.
    `choice` says what was chosen, `key` the layer, `calibrated` whether scores are probabilities of an attack.
    """

    score: Callable[[Rows], np.ndarray]
    thresholds: dict[float, float]
    choice: str
    calibrated: bool = True
    key: int = -1


def detector_names(views: Mapping[str, Any]) -> tuple[str, ...]:
    """All detectors that can be compared on features with these views."""
    return (*views, WORDS, NORMAL_ONLY)


def train_detector(name: str, rows: Rows, known: Mapping[str, Trained], calibration: str, seed: int) -> Trained:
    """Train the detector of a name, from `detector_names`, on rows.

    Layer, penalty, calibration and thresholds come of cross-validation by groups within the rows, the vocabulary is
    theirs. States and trajectories side by side take the layer that was chosen for the last state, where that is among
    the detectors trained before (`known`). Raises LenscopeError for another name.
    """
    if name == WORDS:
        return _train_on_words(rows, calibration, seed)
    if name == NORMAL_ONLY:
        return _train_on_normal(rows, seed)
    if name not in rows.views:
        raise LenscopeError(f"detector {name!r}: there are {', '.join(detector_names(rows.views))}")
    candidates = dict(rows.views[name])
    if name == BOTH and LAST in known and known[LAST].key in candidates:
        candidates = {known[LAST].key: candidates[known[LAST].key]}
    key, probe, choice = choose_probe(candidates, rows.attack, rows.groups.tolist(), calibration=calibration, seed=seed)
    where = "" if key < 0 else f"layer {key}, "
    # thresholds by the normal prompts alone: harmless insertions are odd too
    thresholds = known_thresholds(choice.probabilities[rows.normal], SHARES)
    return Trained(
        lambda given: probe.probabilities(given.views[name][key]),
        thresholds,
        f"{where}penalty {probe.penalty:g}",
        key=key,
    )


def _train_on_words(rows: Rows, calibration: str, seed: int) -> Trained:
    """TF-IDF of words, pairs of words and 3–5 characters; logistic regression with classes of equal weight."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_union

    features: Any = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]"),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, min_df=2),
    )
    x = features.fit_transform(rows.texts).tocsr()
    y = rows.attack

    def fitted(numbers: np.ndarray, strength: float) -> Any:
        model: Any = LogisticRegression(C=strength, class_weight="balanced", max_iter=300)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return model.fit(x[numbers], y[numbers])

    fold = dealt_folds(y, rows.groups.tolist(), seed)
    margins = np.empty((len(STRENGTHS), len(y)))
    for f in range(int(fold.max()) + 1):
        train, test = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        for n, strength in enumerate(STRENGTHS):
            margins[n, test] = fitted(train, strength).decision_function(x[test])
    best = int(np.argmax([weighted_auroc(m, y)[0] for m in margins]))
    curve = calibrate(margins[best], y, calibration)
    model = fitted(np.arange(len(y)), STRENGTHS[best])
    return Trained(
        lambda given: curve(model.decision_function(features.transform(given.texts))),
        known_thresholds(curve(margins[best])[rows.normal], SHARES),
        f"C {STRENGTHS[best]:g}, {x.shape[1]:,} terms",
    )


def _train_on_normal(rows: Rows, seed: int) -> Trained:
    """The local outlier factor of the normal prompts' trajectories; no attack takes part, nothing is chosen."""
    view = next((v for v in rows.views if v == TRAJECTORIES), None) or next(iter(rows.views))
    key = next(iter(rows.views[view]))
    x = np.asarray(rows.views[view][key], dtype=float)[rows.normal]
    if len(x) < FEWEST_TO_TRAIN:
        raise LenscopeError(f"{len(x)} normal prompts to train on: give at least {FEWEST_TO_TRAIN}")
    method = Neighbours(scaled=True)
    held_out = np.empty(len(x))
    names = np.unique(rows.groups[rows.normal], return_inverse=True)[1]
    part = np.random.default_rng(seed).permutation(names.max() + 1)[names] % min(5, names.max() + 1)
    for f in range(int(part.max()) + 1):
        if (part != f).sum() > 1:
            held_out[part == f] = method(x[part != f])(x[part == f])
    score = method(x)
    return Trained(
        lambda given: score(np.asarray(given.views[view][key], dtype=float)),
        known_thresholds(held_out, SHARES),
        f"local outlier factor of {view}, {len(x)} normal prompts",
        calibrated=False,
    )
