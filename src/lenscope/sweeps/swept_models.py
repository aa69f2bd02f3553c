"""The models of a sweep: loaded as the spec says, and known again by what moves their numbers.

Knows: names and identities of models. Does not know: what is done with them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lenscope.models.constituents import absent
from lenscope.models.identity import stored_hash
from lenscope.models.language_model import LM
from lenscope.models.loading import load
from lenscope.sweeps.spec import SweepModel


def load_models(wanted: Sequence[SweepModel], models: Mapping[str, LM], anywhere: bool = False) -> list[LM]:
    """The models of a spec, each loaded once, or as it is in memory under its name.

    `anywhere`: on the CPU, whatever devices the spec names, by who looks at them and does not run them.
    """
    lms = []
    for one in wanted:
        place = None if anywhere else one.device
        how: dict[str, Any] = {"dtype": one.dtype, "device_map": place, "attn_implementation": one.attn}
        lms.append(models[one.name] if one.name in models else load(one.name, revision=one.revision, **how))
    return lms


def model_label(one: SweepModel) -> str:
    """What a manifest calls a model: its name, and how it is loaded where the spec says."""
    how = one.model_dump(exclude_none=True, exclude={"name"})
    return " ".join([one.name, *(f"{key}={value}" for key, value in how.items())])


def identity_of(lm: LM) -> str:
    """The identity of a model, on whatever processor: what a checkpoint stores of it, its dtype, its configuration.

    Of one whose weights are not all in memory it is where they came from in place of them.
    """
    settings = lm.model.config.to_diff_dict()
    for name in ("_name_or_path", "transformers_version"):
        settings.pop(name, None)
    gone = any(map(absent, lm.model.state_dict().values()))
    weights = f"{lm.source or lm.name} {lm.revision}" if gone else stored_hash(lm.model)
    content = f"{weights} {lm.dtype} {json.dumps(settings, sort_keys=True, default=str)}"
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def model_identities(wanted: Sequence[SweepModel], lms: Sequence[LM]) -> dict[str, str]:
    """The identities of a spec's models, by their labels."""
    return {model_label(one): identity_of(lm) for one, lm in zip(wanted, lms, strict=True)}
