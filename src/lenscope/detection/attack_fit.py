"""Detectors of attacks are fitted on prompts with labels: the views that are tried, and what came of each.

Knows: which prompts stand together, which view is taken, what of prompts and labels is refused.
Does not know: how features are measured (probe_features.py), how a probe is chosen (probes.py), what is saved.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lenscope.detection.attack_detector import AttackDetector
from lenscope.detection.calibration import check_calibration, require_enough_normals, unsure_band
from lenscope.detection.detector_parts import text_fingerprint
from lenscope.detection.labelled_prompts import LabelledPrompt, different_prompts
from lenscope.detection.probe_features import (
    ALL_LAYERS,
    BOTH,
    LENGTH,
    PERPLEXITY,
    TRAJECTORIES,
    measure_probe_features,
    probe_reading,
)
from lenscope.detection.probes import Probe, ProbeChoice, choose_probe, dealt_folds
from lenscope.detection.trial_designs import prompt_groups
from lenscope.errors import LenscopeError
from lenscope.lenses.lens import Lens
from lenscope.models.progress import Progress
from lenscope.statistics import estimates as statistics

# attacks, and harmless prompts, that a detector is fitted on, at least
FEWEST_OF_A_KIND = 20
# what says whether length or likelihood alone would do: reported, and taken only where it is asked for
CONTROLS = (LENGTH, PERPLEXITY)


def enough_labelled_prompts(prompts: Sequence[LabelledPrompt], false_positives: float) -> list[LabelledPrompt]:
    """The prompts as `different_prompts` gives them; LenscopeError as there, and where a kind has too few."""
    several = different_prompts(prompts)
    attacks = sum(p.attack for p in several)
    harmless = len(several) - attacks
    if min(attacks, harmless) < FEWEST_OF_A_KIND:
        raise LenscopeError(
            f"{attacks} different attacks, {harmless} harmless prompts: a detector is fitted on at least "
            f"{FEWEST_OF_A_KIND} of each"
        )
    require_enough_normals(harmless, false_positives, "harmless prompts")
    return several


def fit_attack_detector(
    lenses: Mapping[str, Lens],
    prompts: Sequence[LabelledPrompt],
    *,
    view: str | None = None,
    layers: Sequence[int] | None = None,
    calibration: str = "platt",
    false_positives: float = 0.05,
    abstain: float = 0.1,
    seed: int = 0,
    progress: Progress | None = None,
) -> AttackDetector:
    """Fit a detector on attacks and harmless prompts: a linear probe of how the model processes a prompt.

    View, layer and penalty are chosen by cross-validation among these prompts (`choose_probe`), in which prompts with
    one host, or that are equal but for letter case, digits and blanks, are never on both sides. `report["tried"]` has
    each view's AUROC out of fold and the share of attacks above the thresholds, with intervals; "length" and
    "perplexity" are controls. These numbers are of prompts like those of the fit. On other data sets they are lower,
    and have to be measured there: for linear probes of Llama-3.1-8B, arXiv 2602.14161 reports .996 in distribution, and
    .912 with one of 18 data sets left out.

    Args:
        lenses: what trajectories are read through, by name.
        prompts: attacks and harmless prompts; a text that occurs twice counts once.
        view: what is looked at, one of `all_views(lenses)`; none: the best of all but the controls.
        layers: where states and lenses are read; none: ten, evenly spaced.
        calibration: "platt" or "isotonic".
        false_positives: the share of harmless prompts that are to score above the threshold of verdicts.
        abstain: the share of the prompts, those nearest to the threshold, in whose band the verdict is "unsure".
        seed: fixes the folds.
        progress: is called with the prompts done and all there are.

    Raises LenscopeError for fewer than 20 different attacks or 20 harmless prompts, too few harmless ones for the share
    of `false_positives`, a text that is both an attack and harmless, and kinds that are each in one group only.
    """
    reading = probe_reading(lenses, layers, None if view is None else (view,))
    check_calibration(calibration)
    unsure_band(np.empty(0), 0.0, abstain)
    several = enough_labelled_prompts(prompts, false_positives)
    attacks = np.array([p.attack for p in several], dtype=bool)
    harmless = int((~attacks).sum())
    groups = prompt_groups(several, _without_case_and_digits).tolist()
    # what no folds can be made of is refused before anything is measured
    dealt_folds(attacks, groups, seed)
    wanted = None if view is None else tuple(dict.fromkeys((view, *CONTROLS)))
    features = measure_probe_features(lenses, [p.text for p in several], layers, views=wanted, progress=progress)
    chosen: dict[str, tuple[Probe, ProbeChoice]] = {}
    for name, candidates in features.views.items():
        if name == TRAJECTORIES and len(lenses) == 1:
            # the same as the one lens's
            continue
        _, probe, choice = choose_probe(
            candidates, attacks, groups, calibration=calibration, false_positives=false_positives, abstain=abstain,
            seed=seed,
        )  # fmt: skip
        chosen[name] = probe, choice
    eligible = [n for n in chosen if n not in CONTROLS] if view is None else [view]
    best = max(eligible, key=lambda n: chosen[n][1].scores[chosen[n][1].layer])
    probe, choice = chosen[best]
    through = {n: lens for n, lens in lenses.items() if best in (BOTH, TRAJECTORIES, f"trajectory {n}")}
    return AttackDetector(
        lm=reading.lm,
        view=best,
        layer=choice.layer,
        lenses=through,
        lens_layers={n: reading.lens_layers[n] for n in through},
        probe=probe,
        thresholds=choice.thresholds,
        unsure=choice.unsure,
        false_positives=false_positives,
        prompts=tuple(text_fingerprint(reading.lm, p.text) for p in several),
        report={
            "tried": [_tried(name, c, attacks, groups, seed) for name, (_, c) in chosen.items()],
            "data_sets": _counts_by_data_set(several),
            "attacks": int(attacks.sum()),
            "harmless": harmless,
            "groups": len({*groups}),
            "calibration": calibration,
            "abstain": abstain,
            "seed": seed,
        },
    )


def _without_case_and_digits(text: str) -> str:
    """What is left of a text without letter case, digits and blanks."""
    return "".join(c for c in text.casefold() if not c.isdigit() and not c.isspace())


def _tried(
    name: str, choice: ProbeChoice, attacks: np.ndarray, groups: Sequence[int], seed: int
) -> dict[str, Any]:  # fmt: skip
    """What came of a view, as JSON values."""
    area = statistics.auroc(choice.margins[~attacks], choice.margins[attacks], seed=seed)
    row: dict[str, Any] = {
        "view": name,
        "layer": None if choice.layer == ALL_LAYERS else choice.layer,
        "penalty": choice.penalties[choice.layer],
        "auroc": _rounded_or_none(area.value),
        "auroc_95": [_rounded_or_none(area.low), _rounded_or_none(area.high)],
        "true_positives": [],
        "control": name in CONTROLS,
    }
    units = [g for g, a in zip(groups, attacks, strict=True) if a]
    for share, threshold in choice.thresholds.items():
        above = statistics.mean(choice.probabilities[attacks] > threshold, units=units, seed=seed)
        known = not math.isnan(threshold)
        row["true_positives"].append(
            {
                "false_positives": share,
                "value": _rounded_or_none(above.value) if known else None,
                "interval_95": [_rounded_or_none(above.low), _rounded_or_none(above.high)] if known else None,
            }
        )
    return row


def _counts_by_data_set(prompts: Sequence[LabelledPrompt]) -> dict[str, dict[str, Any]]:
    """How many prompts of each kind a data set gave, and of which families its attacks are."""
    counts: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(p.data_set for p in prompts):
        own = [p for p in prompts if p.data_set == name]
        counts[name] = {
            "attacks": sum(p.attack for p in own),
            "normal": sum(p.normal for p in own),
            "insertions": sum(not p.attack and not p.normal for p in own),
            "families": dict(Counter(p.family for p in own if p.family)),
        }
    return counts


def _rounded_or_none(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)
