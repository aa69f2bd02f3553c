"""Detectors of attacks: probabilities and verdicts, one prompt at a time or many; kept in a folder.

Knows: how a view, a probe and thresholds make a detector, what is saved of it, and refused.
Does not know: how features are measured (probe_features.py), how a detector is fitted (attack_fit.py).
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final, overload

import numpy as np
import torch
from torch import Tensor

from lenscope._version import __version__
from lenscope.detection.calibration import calibration_of, calibration_parts
from lenscope.detection.detector_card import detector_card
from lenscope.detection.detector_parts import (
    check_fingerprints,
    check_fitted_model,
    is_fitted_prompt,
    lens_beside,
    save_lens_beside,
)
from lenscope.detection.position_results import OddPositions
from lenscope.detection.probe_features import (
    ALL_LAYERS,
    BOTH,
    LAST,
    LENGTH,
    MEAN,
    PERPLEXITY,
    TRAJECTORIES,
    ProbeReading,
    all_views,
    trajectory_names,
)
from lenscope.detection.probes import Probe
from lenscope.detection.scored_positions import WINDOW, Part, locate, probe_rows_of_parts
from lenscope.engine.shared_prefix_states import ReadPrefixes
from lenscope.errors import LenscopeError
from lenscope.files import weights_folder as artifacts
from lenscope.files.writing import write_text
from lenscope.lenses.lens import Lens
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.layers import check_layers
from lenscope.models.same_model import model_identity

FORMAT = 1
KIND = "attack detector"
STEM = "detector"
ATTACK, NORMAL, UNSURE = "attack", "normal", "unsure"


@final
@dataclass(frozen=True, eq=False)
class AttackDetector:
    """Says how probable it is that a prompt is an attack, by how a model processes it. From `fit_attack_detector`.

    `view` is what of a prompt is looked at (`ProbeFeatures`), at `layer`, -1 for a view that is not of one layer,
    through `lenses`, each at its `lens_layers`; `probe` makes a probability of it. `thresholds` maps shares of false
    positives to probabilities, NaN where there were too few harmless prompts to know. Verdicts are given at
    `false_positives`; in the band `unsure`, (low, high), there is none. `prompts` are the SHA-256 of the prompts that
    were fitted, and `report` has what was tried. Probabilities hold for as many attacks among prompts as there were in
    the fit.
    """

    lm: LM
    view: str
    layer: int
    lenses: dict[str, Lens]
    lens_layers: dict[str, tuple[int, ...]]
    probe: Probe
    thresholds: dict[float, float]
    unsure: tuple[float, float]
    false_positives: float
    prompts: tuple[str, ...]
    report: dict[str, Any] = field(default_factory=dict)
    reading: ProbeReading = field(init=False, repr=False)

    def __post_init__(self) -> None:
        views = all_views(self.lenses)
        if self.view not in views:
            raise LenscopeError(f"detector: view {self.view!r}; give one of {', '.join(map(repr, views))}")
        of_layer = self.view in (LAST, MEAN, BOTH)
        if of_layer != (self.layer != ALL_LAYERS):
            raise LenscopeError(
                f"detector: view {self.view!r} at layer {self.layer}; only views of states have a layer"
            )
        states = check_layers((self.layer,), self.lm.n_layers, self.lm.name) if of_layer else ()
        if self.lens_layers.keys() != self.lenses.keys():
            raise LenscopeError("detector: lenses and their layers have different names; fit it anew")
        for name, lens in self.lenses.items():
            at = check_layers(self.lens_layers[name], self.lm.n_layers, self.lm.name)
            if not at or list(at) != sorted({*at}) or not {*at} <= {*lens.layers}:
                raise LenscopeError(f"detector: lens {name!r} is read at layers {list(at)}, which are not its own")
        widths = {n: len(trajectory_names(at, self.lm.n_layers)) for n, at in self.lens_layers.items()}
        of_states = self.lm.hidden_size if of_layer else 0
        of_lenses = sum(w for n, w in widths.items() if self.view in (BOTH, TRAJECTORIES, f"trajectory {n}"))
        width = 1 if self.view in (LENGTH, PERPLEXITY) else of_states + of_lenses
        if self.probe.weights.shape != (width,):
            raise LenscopeError(
                f"detector: its probe has {self.probe.weights.shape} weights, but view {self.view!r} has "
                f"{width} features"
            )
        values = [*self.thresholds.values(), *self.unsure]
        known = self.false_positives in self.thresholds and not math.isnan(self.threshold + sum(self.unsure))
        shares = all(0 < share < 1 for share in self.thresholds)
        if not known or not shares or any(not math.isnan(v) and not 0 <= v <= 1 for v in values):
            raise LenscopeError("detector: thresholds must be probabilities, that at its false positives among them")
        check_fingerprints(self.prompts)
        reading = ProbeReading(self.lm, (self.view,), tuple(states), self.lenses, self.lens_layers)
        object.__setattr__(self, "reading", reading)

    def __repr__(self) -> str:
        at = "" if self.layer == ALL_LAYERS else f" at layer {self.layer}"
        return f"AttackDetector({self.view}{at}, {len(self.prompts)} prompts, {self.lm.name})"

    @property
    def threshold(self) -> float:
        """The probability above which a share `false_positives` of harmless prompts lies."""
        return self.thresholds[self.false_positives]

    @overload
    def score(self, prompts: PromptLike) -> float: ...
    @overload
    def score(self, prompts: list[str]) -> np.ndarray: ...
    def score(self, prompts: Any) -> float | np.ndarray:
        """The probability that one prompt is an attack, or that each of a list is (N,)."""
        batched, many = self.lm.encoder.prompts(prompts)
        scores = self.scores_of_features(self.features(many))
        return scores if batched else float(scores[0])

    @overload
    def verdict(self, prompts: PromptLike) -> str: ...
    @overload
    def verdict(self, prompts: list[str]) -> list[str]: ...
    def verdict(self, prompts: Any) -> str | list[str]:
        """What one prompt is, or each of a list: "attack", "normal" or "unsure"."""
        batched, many = self.lm.encoder.prompts(prompts)
        verdicts = [self.verdict_of_score(float(s)) for s in self.scores_of_features(self.features(many))]
        return verdicts if batched else verdicts[0]

    def features(self, prompts: Sequence[PromptLike], known: ReadPrefixes | None = None) -> np.ndarray:
        """What is looked at of prompts, (N, F); what they begin with is read once, or `known` from earlier calls."""
        return self.reading.read(prompts, known)[self.view][self.layer]

    def scores_of_features(self, features: np.ndarray) -> np.ndarray:
        """The probabilities (N,) of prompts with these features (N, F)."""
        return self.probe.probabilities(features)

    def verdict_of_score(self, score: float) -> str:
        """What a prompt with this probability is: "attack", "normal" or "unsure"."""
        low, high = self.unsure
        if low < high and low <= score <= high:
            return UNSURE
        return ATTACK if score > self.threshold else NORMAL

    def where(self, prompt: PromptLike) -> OddPositions:
        """Where a prompt is like an attack: each position is scored by the part around it, as if that were a prompt.

        With the view "last state" by its own state alone. Raises LenscopeError for the views "length" and "perplexity",
        which positions do not have.
        """
        if self.view in (LENGTH, PERPLEXITY):
            raise LenscopeError(f"detector: view {self.view!r} is of whole prompts; positions have no score")
        one = self.lm.prompt(prompt)
        (batch,) = self.reading.batches([one])

        def rows(parts: Sequence[Part]) -> np.ndarray:
            return probe_rows_of_parts(self.reading, batch, self.view, self.layer, parts)

        window = 1 if self.view == LAST else WINDOW
        of = "its state" if window == 1 else f"the {window} positions around it"
        at = "" if self.layer == ALL_LAYERS else f" at layer {self.layer}"
        return locate(
            self.lm,
            one,
            lambda parts: self.probe.margins(rows(parts)),
            window=window,
            detector=f"probe of {self.view}{at}, {len(self.prompts)} prompts",
            unit=f"the margin of the probe for {of}, before calibration: the higher, the more like an attack",
            threshold=self.threshold,
            score=float(self.scores_of_features(rows([(min(1, len(one) - 1), len(one))]))[0]),
        )

    def saw(self, prompt: PromptLike) -> bool:
        """Whether the detector was fitted on a prompt, or on one that differs in letter case and blanks alone."""
        return is_fitted_prompt(self.lm, prompt, self.prompts)

    def save(self, folder: str | os.PathLike[str], evaluation: Mapping[str, Any] | None = None) -> None:
        """Write the detector, the lenses it looks through and its card to a folder: JSON, safetensors and README.md.

        The card says what the detector was fitted on, and what an `evaluation` on other prompts has found, where one is
        given. Raises LenscopeError for a lens that is a function, which cannot be kept.
        """
        folder = Path(folder)
        lenses = []
        for n, (name, lens) in enumerate(self.reading.through.items()):
            digest = save_lens_beside(lens, self.lens_layers[name], folder / f"lens-{n}")
            lenses.append({"name": name, "of": lens.name, "layers": list(self.lens_layers[name]), "sha256": digest})
        about, arrays = calibration_parts(self.probe.calibration)
        config = {
            "kind": KIND,
            "format": FORMAT,
            "lenscope": __version__,
            **model_identity(self.lm),
            "view": self.view,
            "layer": self.layer,
            "lenses": lenses,
            "bias": self.probe.bias,
            "penalty": self.probe.penalty,
            "calibration": about,
            "thresholds": [[share, _or_none(p)] for share, p in self.thresholds.items()],
            "unsure": [_or_none(p) for p in self.unsure],
            "false_positives": self.false_positives,
            "prompts": list(self.prompts),
            "report": self.report,
        }
        arrays = {"mean": self.probe.mean, "scale": self.probe.scale, "weights": self.probe.weights, **arrays}
        tensors = {name: torch.from_numpy(np.array(a, dtype=np.float64)) for name, a in arrays.items()}
        artifacts.write_folder(folder, STEM, config, tensors)
        write_text(folder / "README.md", detector_card(self, evaluation))


def attack_detector_of(
    folder: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, Tensor], lm: LM
) -> AttackDetector:
    """The detector that `AttackDetector.save` wrote, of what is in its folder; any exception says that it is none."""
    if config["format"] != FORMAT:
        raise LenscopeError(f"{folder}: is no detector of attacks of format {FORMAT}")
    check_fitted_model(folder, config, lm)
    arrays = {name: t.double().numpy() for name, t in tensors.items()}
    lenses = {
        str(about["name"]): lens_beside(Path(folder) / f"lens-{n}", lm, about["sha256"], about["of"])
        for n, about in enumerate(config["lenses"])
    }
    low, high = (_or_nan(p) for p in config["unsure"])
    detector = AttackDetector(
        lm=lm,
        view=config["view"],
        layer=int(config["layer"]),
        lenses=lenses,
        lens_layers={str(about["name"]): tuple(about["layers"]) for about in config["lenses"]},
        probe=Probe(
            mean=arrays["mean"],
            scale=arrays["scale"],
            weights=arrays["weights"],
            bias=float(config["bias"]),
            calibration=calibration_of(config["calibration"], arrays),
            penalty=float(config["penalty"]),
        ),
        thresholds={float(share): _or_nan(p) for share, p in config["thresholds"]},
        unsure=(low, high),
        false_positives=float(config["false_positives"]),
        prompts=tuple(config["prompts"]),
        report=dict(config["report"]),
    )
    # the report is what its card is made of
    detector_card(detector)
    return detector


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _or_nan(value: Any) -> float:
    return math.nan if value is None else float(value)
