"""A folder with config.json and files of weights, one or several, which is replaced whole or not at all.

Knows: in which order files are written, how they are known to belong together and to be as they were written.
Does not know: what the config says, what the weights are for.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.files import kinds
from lenscope.files.kinds import refusal
from lenscope.files.untrusted import checked_reading, escaped, read_json, read_safetensors
from lenscope.files.writing import clear_left_folders, folder_lock, temporary_folder, write_text

CONFIG = kinds.CONFIG
# where the weights' file keeps the digest of the config they were written with
_CONFIG_DIGEST = "config_sha256"
# what in a config is about the weights' file, which cannot hold a digest of it
_ABOUT_WEIGHTS = ("weights", "sha256")
# seconds that a save waits for another one into the same folder
_WAIT = 10.0


def write_folder(folder: str | os.PathLike[str], stem: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write config.json and `stem`-….safetensors into a folder, which is made where it does not exist.

    The weights' name holds their SHA-256, and the config, which names them, comes last and whole: whenever writing
    ends, the folder holds the old artifact or the new one. Weights of earlier artifacts are removed in the end. The
    weights' file holds the SHA-256 of the config. Raises LenscopeError for a folder that cannot be written to, or that
    another run is writing to.
    """
    with _written_to(Path(folder)), folder_lock(folder, wait=_WAIT):
        part = write_weights_file(folder, stem, config, tensors)
        join_weights_files(folder, stem, config, [part])


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights in a folder: its name, its SHA-256, and whether equal weights lay there before."""

    name: str
    sha256: str
    there: bool = False


def write_weights_file(
    folder: str | os.PathLike[str], stem: str, config: dict[str, Any], tensors: dict[str, Tensor]
) -> WeightsFile:
    """Write some of an artifact's tensors into a folder; `join_weights_files`, with an equal config, joins all of them.

    Several processes may do so at once, while one of them holds the folder's lock. Raises LenscopeError as
    `write_folder` does.
    """
    folder = Path(folder)
    with _written_to(folder):
        # nothing is cleared away here: files that others are writing may look as if their writers were gone
        with temporary_folder(folder) as making:
            path = making / "weights"
            # safetensors writes a file of its own beside it, which only the owner may read, and which it then renames
            path.touch()
            mode = path.stat().st_mode
            # one entry only: safetensors writes several in any order, and equal artifacts are equal files
            about = {_CONFIG_DIGEST: _config_digest(_json_of(config))}
            safetensors.torch.save_file(tensors, path, metadata=about)
            path.chmod(mode)
            digest = _digest_of_file(path)
            weights = folder / f"{stem}-{digest[:16]}.safetensors"
            there = weights.exists()
            path.replace(weights)
        return WeightsFile(weights.name, digest, there)


def join_weights_files(
    folder: str | os.PathLike[str], stem: str, config: dict[str, Any], parts: Sequence[WeightsFile]
) -> None:
    """Write the config of an artifact whose parts are there, and remove the weights of earlier ones.

    Raises LenscopeError as `write_folder` does; parts that are new are then taken away.
    """
    folder, names = Path(folder), [part.name for part in parts]
    with _written_to(folder):
        # one file is named as it always was
        weights, digests = names, [part.sha256 for part in parts]
        about = dict(zip(_ABOUT_WEIGHTS, (weights, digests) if len(parts) > 1 else (*weights, *digests), strict=True))
        try:
            text = json.dumps({**_json_of(config), **about}, ensure_ascii=False, allow_nan=False, indent=1)
            write_text(folder / CONFIG, text)
        except BaseException:
            # equal weights that were there before are those of the config that stays
            for part in parts:
                if not part.there:
                    with suppress(OSError):
                        (folder / part.name).unlink(missing_ok=True)
            raise
        # all that writes here now has written
        clear_left_folders(folder)
        for old in folder.iterdir():
            if old.name not in names and re.fullmatch(re.escape(stem) + r"(-[0-9a-f]{16})?\.safetensors", old.name):
                with suppress(OSError):
                    old.unlink(missing_ok=True)


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise LenscopeError(f"{folder}: cannot be written ({' '.join(str(error).split())})") from error


def _json_of(config: dict[str, Any]) -> dict[str, Any]:
    """A config as JSON gives it again."""
    return dict(json.loads(json.dumps(config, allow_nan=False)))


@contextmanager
def opened_folder(
    folder: str | os.PathLike[str], stem: str, version: int
) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """The config and the tensors of a folder, for a block that makes of them what was saved.

    Raises LenscopeError as `read_folder`, for a config of another format than `version`, and for whatever the block
    raises, which says that they are none of what `stem` stands for.
    """
    with checked_reading(folder, f"is no {kinds.KINDS[stem][0]} that lenscope saved"):
        config, tensors = read_folder(folder, stem)
        if config["format"] != version:
            raise LenscopeError(f"{folder}: has format {config['format']!r}; this lenscope reads {version}")
        yield config, tensors


def read_folder(folder: str | os.PathLike[str], stem: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors that `write_folder` wrote.

    Raises LenscopeError for a folder that holds none, or something else of lenscope's; for weights that are not those
    of the config, and for a config that is not the one the weights were written with (what version 0.1.0 wrote is not
    checked for that).
    """
    folder = Path(folder)
    damaged = f"{folder}: the weights are damaged or not those {CONFIG} belongs to; save it again"
    for _ in range(3):
        try:
            config = read_json(folder / CONFIG)
        except LenscopeError as error:
            raise refusal(folder, stem, f"{CONFIG}{str(error).removeprefix(escaped(folder / CONFIG))}") from error
        parts = _parts(folder, stem, config)
        if parts is None:
            raise refusal(folder, stem, f"its {CONFIG} does not name a weights file of a {kinds.KINDS[stem][0]}")
        with checked_reading(folder, damaged.removeprefix(f"{folder}: ")):
            if all(path.is_file() and _digest_of_file(path) == digest for path, digest in parts.items()):
                tensors: dict[str, Tensor] = {}
                for path in parts:
                    tensors.update(read_safetensors(path))
                    with safe_open(path, framework="pt") as file:
                        digest = (file.metadata() or {}).get(_CONFIG_DIGEST)
                    if digest is not None and digest != _config_digest(config):
                        raise LenscopeError(f"{folder}: {CONFIG} is damaged or was changed; save it again")
                return config, tensors
            # another artifact may have taken its place between config and weights
            if read_json(folder / CONFIG) == config:
                break
    raise LenscopeError(damaged)


def names_of_weights(config: Any) -> list[str]:
    """The files of weights that a config names, if they are names of files: one or several."""
    names = config.get("weights") if isinstance(config, dict) else None
    names = names if isinstance(names, list) else [names]
    return names if all(isinstance(n, str) and Path(n).name == n and "\0" not in n for n in names) else []


def _parts(folder: Path, stem: str, config: Any) -> dict[Path, Any] | None:
    """The files that a config names, and their digests, or None where it names none of this stem in that folder."""
    if not isinstance(config, dict):
        return None
    # before weights had names of their own
    named = {"weights": f"{stem}.safetensors", **config} if "sha256" in config else config
    names, digests = names_of_weights(named), config.get("sha256")
    digests = digests if isinstance(digests, list) else [digests]
    if not names or any(not n.startswith(stem) or not n.endswith(".safetensors") for n in names):
        return None
    return dict(zip((folder / n for n in names), digests, strict=True)) if len(names) == len(digests) else None


def _config_digest(config: dict[str, Any]) -> str:
    rest = {name: value for name, value in config.items() if name not in _ABOUT_WEIGHTS}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
