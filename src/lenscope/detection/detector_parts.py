"""What saved detectors of all kinds have in common: the lenses in their folder, the model, which prompts they saw.

Knows: how a lens is kept beside a detector, how model and prompts are known again.
Does not know: what a detector is made of beside these.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lenscope.detection.labelled_prompts import without_case_and_blanks
from lenscope.errors import LenscopeError
from lenscope.files import weights_folder as artifacts
from lenscope.lenses.lens import Lens
from lenscope.mappings.mapping import PairMapping, load_mapping
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.load_options import dtype_name
from lenscope.models.same_model import is_same_model


def fingerprint(lm: LM, prompt: PromptLike) -> str:
    """The SHA-256 of a prompt's text, letter by letter."""
    return hashlib.sha256(lm.prompt(prompt).text.encode()).hexdigest()


def text_fingerprint(lm: LM, prompt: PromptLike) -> str:
    """The SHA-256 of a prompt's text without letter case and blanks: how a detector knows what it was fitted on."""
    return hashlib.sha256(without_case_and_blanks(lm.prompt(prompt).text).encode()).hexdigest()


def is_fitted_prompt(lm: LM, prompt: PromptLike, prompts: Sequence[str]) -> bool:
    """Whether a prompt is among those with these digests, or differs from one in letter case and blanks alone.

    Detectors of 0.1.0 have digests of the texts as they were, which are known again only letter by letter.
    """
    return text_fingerprint(lm, prompt) in prompts or fingerprint(lm, prompt) in prompts


def check_fingerprints(prompts: Sequence[Any]) -> None:
    """Raise LenscopeError unless these are SHA-256 digests."""
    if any(not isinstance(p, str) or not re.fullmatch("[0-9a-f]{64}", p) for p in prompts):
        raise LenscopeError(
            "detector: its prompts must be SHA-256 digests, 64 hexadecimal digits each (0–9, a–f); fit it anew"
        )


def save_lens_beside(lens: Lens, layers: Sequence[int], folder: Path) -> str | None:
    """Keep what a lens needs to read some layers in a folder: the SHA-256 of its weights, None of the logit lens.

    Raises LenscopeError for a lens that is a function.
    """
    if lens.f is None:
        return None
    if not isinstance(lens.f, PairMapping):
        raise LenscopeError(f"lens {lens.name}: is a function; a detector is kept with a fitted lens")
    weights = {p: w for p, w in lens.f.weights.items() if p is None or p[0] in layers}
    # a lens of which only the last layer is read maps nothing
    replace(lens.f, weights=weights or lens.f.weights).save(folder)
    return str(artifacts.read_folder(folder, "mapping")[0]["sha256"])


def lens_beside(folder: Path, lm: LM, sha256: Any, name: Any) -> Lens:
    """The lens that `save_lens_beside` kept, with that digest; LenscopeError for another one."""
    f = None
    if sha256 is not None:
        f = load_mapping(folder)
        if artifacts.read_folder(folder, "mapping")[0]["sha256"] != sha256:
            raise LenscopeError(f"{folder.parent}: its lens is not the one it was fitted with; save it again")
    return Lens(lm, f, name=str(name))


def check_fitted_model(folder: Any, config: Mapping[str, Any], lm: LM) -> None:
    """Raise LenscopeError unless a detector's config is of this model, in the same dtype."""
    # of one dtype, which version 0.1.0 did not say
    dtype = dtype_name(lm.dtype)
    if config.get("dtype", dtype) != dtype or not is_same_model({**config, "dtype": dtype}, lm):
        raise LenscopeError(f"{folder}: was fitted on {config['model']}, not these weights of {lm.name}; load those")
