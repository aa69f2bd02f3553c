"""One protocol for all detectors of attacks: trained on some prompts, tried on others that share nothing with them.

Knows: that all that is chosen is chosen on the rows trained on; saved detectors, which stand beside the others.
Does not know: which rows those are (trial_designs.py), how a detector is trained (trial_detectors.py), tables
(detector_trials_results.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from lenscope.contents import Brief
from lenscope.detection.detector_trials_results import DetectorTrials, Trial
from lenscope.detection.labelled_prompts import LabelledPrompt
from lenscope.detection.probe_features import ProbeFeatures
from lenscope.detection.trial_designs import (
    FOLDS,
    TrialPlan,
    check_apart,
    data_set_kinds,
    plan_trials,
    prompt_groups,
    trials_without_training,
)
from lenscope.detection.trial_detectors import NORMAL_ONLY, Rows, Trained, detector_names, train_detector
from lenscope.errors import LenscopeError
from lenscope.models.progress import Progress

# gives what `compute` gives, or what it gave before under the same name
Cached = Callable[[str, Callable[[], Trial]], Trial]


@final
@dataclass(frozen=True, eq=False, repr=False)
class SavedScores(Brief):
    """What a detector that was fitted elsewhere says of N prompts: it is trained in no trial.

    `scores` (N,), `seen` (N,) which prompts it was fitted on, `thresholds` by share of false positives, `calibrated`
    whether scores are probabilities of an attack.
    """

    scores: np.ndarray
    seen: np.ndarray
    thresholds: dict[float, float]
    calibrated: bool


def try_detectors(
    prompts: Sequence[LabelledPrompt],
    features: ProbeFeatures,
    *,
    detectors: Sequence[str] | None = None,
    saved: Mapping[str, SavedScores] | None = None,
    folds: int = FOLDS,
    calibration: str = "platt",
    seed: int = 0,
    cached: Cached | None = None,
    progress: Progress | None = None,
) -> DetectorTrials:
    """Train and try detectors on prompts with labels: within, with data sets left out, with attack families left out.

    Compared are a linear probe of each view of the features, TF-IDF of words and characters with logistic regression
    ("TF-IDF"), and the local outlier factor of normal prompts ("normal only"), which sees no attack. Layer, penalty,
    calibration, thresholds and vocabulary are chosen on the rows trained on. Prompts with one host or one text never
    stand on both sides (checked). Data sets of normal prompts alone are tested in every trial and trained on in none.

    Args:
        prompts: the N prompts; a data set needs 5 attacks and 5 normal prompts to be tested.
        features: what `measure_probe_features` gave of their texts, in this order.
        detectors: the names of those that are compared; None: all, in the order of the views.
        saved: detectors fitted elsewhere, by name; prompts that they were fitted on, and what shares a host or a text
            with these, are not counted for them.
        folds: how many parts the in-distribution line has.
        calibration: "platt" or "isotonic", of probes and TF-IDF.
        seed: fixes folds and groups of families.
        cached: gives a trial that was made before under a name, or makes it; None: all are made.
        progress: is called with the detectors trained and all there are.

    Raises LenscopeError for features of other prompts, unknown detectors, and prompts of which nothing can be tested.
    """
    many = tuple(prompts)
    texts = [str(t) for t in features.texts]
    if texts != [p.text for p in many]:
        raise LenscopeError(f"features of {len(texts)} texts: give those of the {len(many)} prompts, in their order")
    names = detector_names(features.views) if detectors is None else tuple(detectors)
    unknown = [n for n in names if n not in detector_names(features.views)]
    if unknown:
        raise LenscopeError(f"detector {unknown[0]!r}: there are {', '.join(detector_names(features.views))}")
    saved = dict(saved or {})
    clash = [n for n in saved if n in names]
    if clash:
        raise LenscopeError(f"detector {clash[0]!r}: is the name of a detector that is trained; give another")
    groups = prompt_groups(many)
    rows = Rows(texts, features.views, np.array([p.attack for p in many]), np.array([p.normal for p in many]), groups)
    plans = plan_trials(many, folds=folds, seed=seed)
    done, total = 0, len(plans) * len(names)
    trials = []
    for plan in plans:
        check_apart(plan, many, groups)

        def advance(count: int, before: int = done) -> None:
            if progress is not None:
                progress(before + count, total)

        def make(plan: TrialPlan = plan, advance: Callable[[int], None] = advance) -> Trial:
            return _trial(plan, rows, names, calibration, seed, advance)

        trials.append(make() if cached is None else cached(f"{plan.design}, {plan.name}", make))
        done += len(names)
        advance(0, done)
    if saved:
        trials = [_with_saved(trial, saved, groups) for trial in trials]
    calibrated = {name: name != NORMAL_ONLY for name in names} | {name: s.calibrated for name, s in saved.items()}
    not_tested = data_set_kinds(many)[2] | trials_without_training(many, folds=folds, seed=seed)
    return DetectorTrials(many, tuple(trials), calibrated, not_tested, groups, seed)


def _trial(
    plan: TrialPlan, rows: Rows, names: Sequence[str], calibration: str, seed: int, advance: Callable[[int], None]
) -> Trial:
    train, test = rows.part(plan.train), rows.part(plan.test)
    trained: dict[str, Trained] = {}
    for n, name in enumerate(names):
        trained[name] = train_detector(name, train, trained, calibration, seed)
        advance(n + 1)
    return Trial(
        plan.design,
        plan.name,
        plan.train,
        plan.test,
        {name: one.score(test) for name, one in trained.items()},
        {name: one.thresholds for name, one in trained.items()},
        {name: one.choice for name, one in trained.items()},
    )


def _with_saved(trial: Trial, saved: Mapping[str, SavedScores], groups: np.ndarray) -> Trial:
    """A trial with the scores of detectors that were fitted elsewhere, NaN of what they have seen."""
    scores, thresholds, choices = dict(trial.scores), dict(trial.thresholds), dict(trial.choices)
    for name, one in saved.items():
        known = np.isin(groups, groups[one.seen])
        scores[name] = np.where(known, np.nan, one.scores)[trial.test]
        thresholds[name], choices[name] = one.thresholds, "fitted before"
    return replace(trial, scores=scores, thresholds=thresholds, choices=choices)
