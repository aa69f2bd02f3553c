"""The files of an adapter, as the package peft saves it: a configuration and its tensors, from a folder or the hub.

Knows: what of a configuration can be trusted, which kinds of adapters are read, and why others are refused.
Does not know: models, or how tensors become layers (adapters.py).
"""

import dataclasses
import hashlib
import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.files import hub
from lenscope.files.tensors import read_tensors
from lenscope.files.untrusted import read_json
from lenscope.models import refusals

CONFIG = refusals.ADAPTER
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# these put tokens of their own before a prompt, or keys before its keys
_VIRTUAL_TOKENS = {
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"),
    "ADAPTION_PROMPT",
}
# these act through PEFT's own forward, beside the model's
_BESIDE_THE_MODEL = {"XLORA", "POLY", "SHADOW"}
# ranks up to this one are small whatever a file holds
_SMALL_RANK = 1024


@dataclass(frozen=True, eq=False)
class AdapterFiles:
    """An adapter as it was read.

    Attributes:
        place: the folder or the hub id that it is from.
        folder: the folder that its files lie in.
        config: PEFT's configuration of it.
        tensors: its tensors, by PEFT's names.
        digest: the SHA-256 of the configuration and the tensors' file.
    """

    place: str
    folder: Path
    config: Any
    tensors: dict[str, Tensor]
    digest: str

    @property
    def name(self) -> str:
        """What it is called: the last part of its place."""
        return Path(self.place).name or self.place

    @property
    def base(self) -> str:
        """The model that it says that it is for; "" where it says nothing."""
        return str(self.config.base_model_name_or_path or "")


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter alone, and no model beside it."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def is_on_hub(name: str, revision: str | None = None) -> bool:
    """Whether a repository of the hub, or of its cache, holds an adapter alone."""
    if hub.fetch_if_reachable(name, CONFIG, revision) is None:
        return False
    return hub.fetch_if_reachable(name, "config.json", revision) is None


def read_adapter(source: str | os.PathLike[str], revision: str | None = None) -> AdapterFiles:
    """Read an adapter from a folder or from the hub.

    Raises LenscopeError where there is none, a file is damaged, and for kinds that change more than a model's modules.
    """
    place = os.fspath(source)
    if not isinstance(place, str) or not place.strip() or "\0" in place:
        raise LenscopeError(f"adapter {place!r}: give the folder of an adapter, or its name on the hub")
    folder = _adapter_folder(place, revision)
    refusals.require_peft(place, folder)
    settings = read_json(folder / CONFIG)
    config = _config_of(place, settings)
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise LenscopeError(f"{place}: has {CONFIG}, but no {WEIGHTS[0]} beside it; fetch or save the whole adapter")
    tensors = _tensors_of(file)
    _require_possible(place, config, tensors)
    content = hashlib.sha256((folder / CONFIG).read_bytes())
    with file.open("rb") as opened:
        content.update(hashlib.file_digest(opened, "sha256").digest())
    return AdapterFiles(place, folder, config, tensors, content.hexdigest())


def _adapter_folder(place: str, revision: str | None) -> Path:
    path = Path(place).expanduser()
    try:
        there = path.is_dir()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise LenscopeError(f"{place!r}: is no name of an adapter ({error})") from error
    if there:
        if revision is not None:
            raise LenscopeError(f"{place}: revision {revision} applies to adapters on the hub, and this is a folder")
        if not (path / CONFIG).is_file():
            raise LenscopeError(f"{place}: is no folder of an adapter, which has {CONFIG} in it")
        return path
    if path.exists():
        raise LenscopeError(f"{place}: is a file; give the folder of an adapter, with {CONFIG} in it")
    if place.count("/") != 1 or place.startswith((".", "/", "~")):
        raise LenscopeError(f"{place}: no such folder; give the folder of an adapter, or its name on the hub")
    config = hub.fetch_file(place, CONFIG, revision=revision)
    if config is None:
        raise LenscopeError(f"{place}: no folder, and the hub has no adapter of this name that you may read")
    if hub.fetch_file(place, WEIGHTS[0], revision=revision) is None:
        hub.fetch_file(place, WEIGHTS[1], revision=revision)
    return config.parent


def _config_of(place: str, settings: Any) -> Any:
    """PEFT's own configuration, with nothing of the file left out."""
    where = f"{place}: its {CONFIG}"
    if not isinstance(settings, dict) or not isinstance(settings.get("peft_type"), str):
        raise LenscopeError(f"{where} names no peft_type; give the folder of an adapter that peft saved")
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = settings["peft_type"]
    known = {str(getattr(name, "value", name)): config for name, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    version = f"peft {importlib.metadata.version('peft')}"
    if kind not in known:
        raise LenscopeError(f"{where} names peft_type {kind!r}, which {version} does not know; upgrade peft")
    require_kind(place, kind, settings)
    fields = {field.name for field in dataclasses.fields(known[kind])}
    # a later version may save what an adapter does not use
    unknown = [
        name for name, value in settings.items() if name not in fields and value not in (None, False, "", [], {})
    ]
    unknown = [name for name in unknown if name not in ("peft_version", "auto_mapping")]
    if unknown:
        raise LenscopeError(f"{where} sets {', '.join(unknown[:3])}, which {version} does not know; upgrade peft")
    values = {name: value for name, value in settings.items() if name in fields and name != "auto_mapping"}
    try:
        config = known[kind](**values)
    except Exception as error:  # whatever PEFT's own checks raise
        raise LenscopeError(f"{where} is not one that {version} takes ({_in_a_line(error)})") from error
    config.inference_mode = True
    return config


def require_kind(source: str, kind: str, settings: Mapping[str, Any]) -> None:
    """Raise LenscopeError for a kind of adapter that is more than layers in a model."""
    if kind in _VIRTUAL_TOKENS:
        raise LenscopeError(
            f"{source}: is a {kind} adapter, which adds virtual tokens to each prompt, so that positions are not the "
            "prompt's; lenscope reads adapters that change a model's layers, such as LoRA"
        )
    if kind in _BESIDE_THE_MODEL:
        raise LenscopeError(
            f"{source}: is a {kind} adapter, which acts beside the model's own forward; lenscope reads adapters that "
            "change a model's layers, such as LoRA"
        )
    if settings.get("alora_invocation_tokens"):
        raise LenscopeError(
            f"{source}: is an activated LoRA, which is on from certain tokens of a prompt only; lenscope reads "
            "adapters that act on every token"
        )


def _tensors_of(file: Path) -> dict[str, Tensor]:
    content = read_tensors(file)
    tensors = {name: t for name, t in content.items() if isinstance(name, str) and isinstance(t, Tensor)}
    if len(tensors) < len(content) or not tensors:
        raise LenscopeError(f"{file}: does not hold an adapter's tensors by name, and nothing else")
    return tensors


def _require_possible(place: str, config: Any, tensors: dict[str, Tensor]) -> None:
    """Raise LenscopeError for sizes that the file cannot have: layers of such sizes would be made, and take memory."""
    largest = max((n for t in tensors.values() for n in t.shape), default=0)
    pattern = getattr(config, "rank_pattern", None) or {}
    sizes = {name: getattr(config, name, None) for name in ("r", "hra_r")}
    sizes |= {f"rank_pattern {name}": value for name, value in dict(pattern).items()}
    for name, value in sizes.items():
        if isinstance(value, int) and not isinstance(value, bool) and value > max(largest, _SMALL_RANK):
            raise LenscopeError(
                f"{place}: its {CONFIG} has {name} {value}, and no tensor of its file is larger than {largest}; the "
                "two do not belong together"
            )


def _in_a_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
