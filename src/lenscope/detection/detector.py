"""Detectors of odd prompts: fitted on normal prompts alone, kept in a folder, used one prompt at a time.

Knows: how features, a method and a threshold make a detector; what is saved of it, and refused.
Does not know: how features are measured (prompt_features.py), how outliers are recognised (outliers.py).
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, final, overload

import numpy as np
import sklearn
import torch

from lenscope._version import __version__
from lenscope.detection.attack_detector import KIND as ATTACK_DETECTOR
from lenscope.detection.attack_detector import AttackDetector, attack_detector_of
from lenscope.detection.calibration import require_enough_normals
from lenscope.detection.detector_parts import (
    check_fingerprints,
    check_fitted_model,
    is_fitted_prompt,
    lens_beside,
    save_lens_beside,
    text_fingerprint,
)
from lenscope.detection.outliers import (
    METHODS,
    NEIGHBOURS,
    Forest,
    Mahalanobis,
    Method,
    best_candidate,
    name_of,
    separation,
    threshold,
)
from lenscope.detection.position_results import OddPositions
from lenscope.detection.prompt_features import (
    answer_features,
    disturb_prompts,
    mean_states,
    measure_prompts,
    pooled_measures,
    position_measures,
    spaced_layers,
    trajectory_columns,
)
from lenscope.detection.scored_positions import WINDOW, Part, locate, mean_states_of_parts, trajectories_of_parts
from lenscope.engine.shared_prefix_states import ReadPrefixes, read_sharing_prefix
from lenscope.errors import LenscopeError
from lenscope.files import weights_folder as artifacts
from lenscope.files.untrusted import checked_reading
from lenscope.lenses.lens import Lens
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.layers import check_layers
from lenscope.models.progress import Progress
from lenscope.models.same_model import model_identity
from lenscope.tasks.answer_likelihoods import answer_log_likelihoods

FORMAT = 1
STEM = "detector"
# normal prompts that a detector is fitted on, at least
FEWEST_PROMPTS = 20
# scores of the reference itself that are kept, to see that another version of scikit-learn gives the same
KEPT_SCORES = 32

View = Literal["trajectory", "answers", "states"]


@final
@dataclass(frozen=True, eq=False)
class Detector:
    """Scores prompts by how unlike normal ones a model processes them: the higher, the odder. From `fit_detector`.

    `view` says what of a prompt is looked at: "trajectory", a free-form prompt's measures at `layers`; "answers", the
    trajectories of the log-probabilities of `choices`; "states", its mean state at one layer. `reference` (N, F) are
    the features of the normal prompts, whose SHA-256 are `prompts`. Above `threshold` are `false_positives` of normal
    prompts, estimated by cross-validation. `report` has what was tried, and how well it told disturbed prompts.
    """

    lens: Lens
    view: View
    layers: tuple[int, ...]
    choices: tuple[str, ...]
    method: Method
    reference: np.ndarray
    threshold: float
    false_positives: float
    prompts: tuple[str, ...]
    report: dict[str, Any] = field(default_factory=dict)
    _outliers: Callable[[np.ndarray], np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_layers(self.layers, self.lens.lm.n_layers, self.lens.lm.name)
        widths = {
            "trajectory": len(trajectory_columns(self.layers, self.lens.lm.n_layers)),
            "answers": len(self.layers) * (1 if len(self.choices) == 2 else len(self.choices)),
            "states": self.lens.lm.hidden_size * len(self.layers),
        }
        if self.view not in widths:
            raise LenscopeError(f"detector: view {self.view!r}; give one of {', '.join(map(repr, widths))}")
        if self.reference.shape[1:] != (widths[self.view],):
            raise LenscopeError(
                f"detector: its reference has shape {self.reference.shape}, but view {self.view!r} of these layers "
                f"needs (prompts, {widths[self.view]}); fit the detector anew"
            )
        if len(self.reference) < 2 or not np.isfinite(self.reference).all() or not np.isfinite(self.threshold):
            raise LenscopeError("detector: its reference and threshold must be finite, of at least two prompts")
        check_fingerprints(self.prompts)
        object.__setattr__(self, "_outliers", self.method(self.reference))

    def __repr__(self) -> str:
        return f"Detector({name_of(self.method)} of {self.view}, {len(self.prompts)} normal prompts, {self.lens.name})"

    @overload
    def score(self, prompts: PromptLike) -> float: ...
    @overload
    def score(self, prompts: list[str]) -> np.ndarray: ...
    def score(self, prompts: Any) -> float | np.ndarray:
        """How odd one prompt is, or each of a list (N,)."""
        batched, many = self.lens.lm.encoder.prompts(prompts)
        scores = self.scores_of_features(self.features(many))
        return scores if batched else float(scores[0])

    def features(self, prompts: Sequence[PromptLike], known: ReadPrefixes | None = None) -> np.ndarray:
        """What is looked at of prompts, (N, F); what they begin with is read once, or `known` from earlier calls."""
        return _features_of_prompts(self.lens, prompts, self.view, self.layers, self.choices, known)

    def scores_of_features(self, features: np.ndarray) -> np.ndarray:
        """The scores (N,) of prompts with these features (N, F)."""
        return self._outliers(features)

    def where(self, prompt: PromptLike) -> OddPositions:
        """Where a prompt is odd: each position is scored by the part around it, as if that were a prompt.

        Raises LenscopeError for a detector that watches answers, which no position but the last one has.
        """
        lm = self.lens.lm
        if self.view == "answers":
            raise LenscopeError("detector: watches answers, which only a prompt's end has; fit one without choices")
        one = lm.prompt(prompt)
        (batch,) = read_sharing_prefix(lm, [one], (*self.layers, lm.n_layers) if self.view != "states" else self.layers)
        (h,) = batch.states()

        def scored(parts: Sequence[Part]) -> np.ndarray:
            if self.view == "states":
                return self.scores_of_features(mean_states_of_parts(h, parts).reshape(len(parts), -1))
            (values,) = position_measures(self.lens, batch, self.layers)
            return self.scores_of_features(trajectories_of_parts(values, parts, pooled_measures))

        return locate(
            lm,
            one,
            scored,
            window=WINDOW,
            detector=f"{name_of(self.method)} of {self.view}, {len(self.prompts)} normal prompts",
            unit=f"how unlike normal prompts the {WINDOW} positions around it are, by the detector's own measure",
            threshold=self.threshold,
            score=float(scored([(min(1, len(one) - 1), len(one))])[0]),
        )

    def saw(self, prompt: PromptLike) -> bool:
        """Whether the detector was fitted on a prompt, or on one that differs in letter case and blanks alone."""
        return is_fitted_prompt(self.lens.lm, prompt, self.prompts)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the detector, and its lens if it has one, to a folder: JSON and safetensors, nothing that runs.

        What is fitted of it is made again from the reference when it is loaded. Raises LenscopeError for a lens that
        is a function, which cannot be kept.
        """
        folder = Path(folder)
        lens = None if self.view == "states" else save_lens_beside(self.lens, self.layers, folder / "lens")
        config = {
            "kind": "detector",
            "format": FORMAT,
            "lenscope": __version__,
            "scikit-learn": sklearn.__version__,
            **model_identity(self.lens.lm),
            "lens": lens,
            "lens_name": self.lens.name,
            "view": self.view,
            "layers": list(self.layers),
            "choices": list(self.choices),
            "method": {"name": name_of(self.method), **asdict(self.method)},
            "threshold": self.threshold,
            "false_positives": self.false_positives,
            "prompts": list(self.prompts),
            "report": self.report,
        }
        own = self._outliers(self.reference[:KEPT_SCORES])
        arrays = {"reference": self.reference, "own": own}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(a, dtype=np.float64)) for name, a in arrays.items()}
        artifacts.write_folder(folder, STEM, config, tensors)


def enough_normal_prompts(prompts: Sequence[str], false_positives: float) -> list[str]:
    """The prompts, each once; LenscopeError where they are too few for a detector, or for this share."""
    several = list(dict.fromkeys(prompts))
    if isinstance(prompts, str) or len(several) < FEWEST_PROMPTS:
        raise LenscopeError(
            f"{len(several)} different prompts: a detector is fitted on at least {FEWEST_PROMPTS} normal ones"
        )
    require_enough_normals(len(several), false_positives, "normal prompts")
    return several


def fit_detector(
    lens: Lens,
    prompts: Sequence[str],
    *,
    choices: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    methods: Sequence[str] = tuple(METHODS),
    false_positives: float = 0.05,
    seed: int = 0,
    progress: Progress | None = None,
) -> Detector:
    """Fit a detector on normal prompts: it scores how unlike them another prompt is (Belrose et al. 2023, §5.2).

    It never sees an odd prompt. Which method is taken, metric and layer with it, is decided on normal prompts alone:
    the one that best tells held-out normal prompts from the same prompts with words shuffled or inserted
    (`prompt_features.disturb_prompts`). Raises LenscopeError for fewer than 20 different prompts, or too few for the
    share of `false_positives`.

    Args:
        lens: what trajectories are read through.
        prompts: normal prompts.
        choices: answers that each prompt may go on with (" " + choice follows), whose trajectories are looked at, as in
            the paper; none: the measures of free-form prompts.
        layers: what is read; none: ten layers, of answers all.
        methods: what is tried: "forest" (isolation forest), "neighbours" (local outlier factors of several settings),
            "mahalanobis" (mean states, at each of the layers).
        false_positives: the share of normal prompts that are to score above the threshold.
        seed: fixes forests, folds and disturbed prompts.
        progress: is called with the prompts done and all there are.
    """
    lm = lens.lm
    unknown = [m for m in methods if m not in METHODS]
    if unknown or not methods:
        raise LenscopeError(f"method {', '.join(unknown) or 'none'}: there are {', '.join(METHODS)}")
    texts = enough_normal_prompts(prompts, false_positives)
    numbers = _chosen_layers(lens, layers, bool(choices))
    both = [*texts, *(_within(lm, t, choices) for t in disturb_prompts(texts, seed))]
    n = len(texts)
    tried: list[tuple[Method, View, tuple[int, ...], np.ndarray]] = []
    of_features = [m for m in methods if m != "mahalanobis"]
    at = spaced_layers(lens) if choices and layers is None else numbers
    if choices:
        if of_features:
            features = _features_of_prompts(lens, both, "answers", numbers, tuple(choices), progress=progress)
            tried += [(m, "answers", numbers, features) for m in _candidates(of_features, seed)]
        states = mean_states(lm, both, at) if "mahalanobis" in methods else np.zeros((2 * n, 0, 1))
    else:
        described = measure_prompts(lens, both, numbers, progress=progress)
        states = described.states
        tried += [(m, "trajectory", numbers, described.trajectory) for m in _candidates(of_features, seed)]
    if "mahalanobis" in methods:
        tried += [(Mahalanobis(), "states", (layer,), states[:, i]) for i, layer in enumerate(at)]
    separations = [separation(m, x[:n], x[n:], seed) for m, _, _, x in tried]
    method, view, chosen_layers, x = tried[best_candidate(separations)]
    report = [
        {"method": name_of(m), **asdict(m), "view": v, "layers": list(k), "auroc": round(s, 4)}
        for (m, v, k, _), s in zip(tried, separations, strict=True)
    ]
    return Detector(
        lens=lens,
        view=view,
        layers=chosen_layers,
        choices=tuple(choices) if view == "answers" else (),
        method=method,
        reference=x[:n],
        threshold=threshold(method, x[:n], false_positives, seed),
        false_positives=false_positives,
        prompts=tuple(text_fingerprint(lm, t) for t in texts),
        report={"tried": report, "normal": n, "seed": seed},
    )


def load_detector(folder: str | os.PathLike[str], lm: LM) -> Detector | AttackDetector:
    """Load what `save` of a detector wrote, for the model it was fitted on, in the same dtype; nothing in it is run.

    Raises LenscopeError for what is missing, damaged, of another model, or whose scores come out differently here.
    """
    with checked_reading(folder, "is no detector that lenscope saved"):
        config, tensors = artifacts.read_folder(folder, STEM)
        if config.get("kind") == ATTACK_DETECTOR:
            return attack_detector_of(folder, config, tensors, lm)
        if config.get("kind") != "detector" or config["format"] != FORMAT:
            raise LenscopeError(f"{folder}: is no detector of format {FORMAT}")
        check_fitted_model(folder, config, lm)
        lens = lens_beside(Path(folder) / "lens", lm, config["lens"], config["lens_name"])
        named = dict(config["method"])
        method = METHODS[named.pop("name")](**named)
        detector = Detector(
            lens=lens,
            view=config["view"],
            layers=tuple(config["layers"]),
            choices=tuple(map(str, config["choices"])),
            method=method,
            reference=tensors["reference"].double().numpy(),
            threshold=float(config["threshold"]),
            false_positives=float(config["false_positives"]),
            prompts=tuple(map(str, config["prompts"])),
            report=dict(config["report"]),
        )
        own = tensors["own"].numpy()
        if len(detector.prompts) != len(detector.reference):
            raise ValueError(f"it has {len(detector.prompts)} prompts and features of {len(detector.reference)}")
    if not np.allclose(detector._outliers(detector.reference[:KEPT_SCORES]), own, rtol=1e-6, atol=1e-9):
        raise LenscopeError(
            f"{folder}: scores come out differently with scikit-learn {sklearn.__version__} than with "
            f"{config.get('scikit-learn')}: fit it anew, or install that version"
        )
    return detector


def _chosen_layers(lens: Lens, layers: Sequence[int] | None, answers: bool) -> tuple[int, ...]:
    if layers is None:
        return tuple(lens.layers) if answers else spaced_layers(lens)
    return tuple(sorted({*check_layers(layers, lens.lm.n_layers, lens.lm.name)}))


def _within(lm: LM, text: str, choices: Sequence[str]) -> PromptLike:
    """A disturbed prompt, which may have become too long: its end, with room for the answers."""
    ids = lm.encoder.ids(text)
    room = (lm.context or len(ids) + 1) - max((len(lm.encoder.ids_behind(f" {c}")) for c in choices), default=0) - 1
    return text if len(ids) < room else ids[-room:]


def _candidates(methods: Sequence[str], seed: int) -> list[Method]:
    candidates: list[Method] = [Forest(seed=seed)] if "forest" in methods else []
    return [*candidates, *(NEIGHBOURS if "neighbours" in methods else ())]


def _features_of_prompts(
    lens: Lens,
    prompts: Sequence[PromptLike],
    view: View,
    layers: tuple[int, ...],
    choices: tuple[str, ...],
    known: ReadPrefixes | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    if view == "states":
        return mean_states(lens.lm, prompts, layers, known=known).reshape(len(prompts), -1)
    if view == "trajectory":
        return measure_prompts(lens, prompts, layers, known=known, progress=progress).trajectory
    scores = answer_log_likelihoods(lens, prompts, [choices] * len(prompts), layers, progress=progress)
    return answer_features(scores.log_probs)
