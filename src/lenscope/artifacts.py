"""A folder with config.json and one file of weights, which is replaced whole or not at all.

Knows: in which order files are written, how they are known to belong together.
Does not know: what the config says, what the weights are for.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.writing import write_text

CONFIG = "config.json"


def write(folder: str | os.PathLike[str], stem: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write config.json and `stem`-….safetensors into a folder, which is made where it does not exist.

    The weights' name holds their SHA-256, and the config, which names them, comes last and whole: whenever writing
    ends, the folder holds the old artifact or the new one. The old one's weights are removed in the end.
    """
    folder = Path(folder)
    making = folder / f".{stem}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            safetensors.torch.save_file(tensors, making)
            digest = _digest(making)
            weights = folder / f"{stem}-{digest[:16]}.safetensors"
            replaced = _weights(folder, stem)
            there = weights.exists()
            making.replace(weights)
        finally:
            making.unlink(missing_ok=True)
        full = {**config, "weights": weights.name, "sha256": digest}
        try:
            write_text(folder / CONFIG, json.dumps(full, ensure_ascii=False, allow_nan=False, indent=1))
        except BaseException:
            if not there:
                weights.unlink(missing_ok=True)
            raise
        if replaced is not None and replaced != weights:
            replaced.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise LenscopeError(f"{folder}: cannot be written ({' '.join(str(error).split())})") from error


def read(folder: str | os.PathLike[str], stem: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors that `write` wrote.

    Raises LenscopeError where the weights are not those of the config, else what reading or parsing a file raises.
    """
    folder = Path(folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    path = _weights(folder, stem)
    if path is None or _digest(path) != config["sha256"]:
        raise LenscopeError(f"{folder}: the weights are damaged or not those {CONFIG} belongs to; save it again")
    return config, safetensors.torch.load_file(path)


def _weights(folder: Path, stem: str) -> Path | None:
    """The file that the config of a folder names, or None where it names none in that folder."""
    try:
        # before weights had names of their own
        name = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("weights", f"{stem}.safetensors")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    good = isinstance(name, str) and Path(name).name == name and name.startswith(stem)
    return folder / name if good and name.endswith(".safetensors") else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
