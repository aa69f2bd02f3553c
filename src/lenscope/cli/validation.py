"""Checks of what a command line gives, made before any work: combinations, names, files to read, places to write.

Knows: which mistakes can be seen without a model. Does not know: any command, what is asked for where all is well.
"""

import glob
import os
import tempfile
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lenscope.errors import LenscopeError


def require_effect(option: str, value: Any, applies: bool, why: str) -> None:
    """Raise LenscopeError for an option that was given where it has no effect; `why` says when it has one."""
    # not by `in`: 0 equals False, and is a number that was given
    if value is not None and value is not False and value != [] and not applies:
        raise LenscopeError(f"{option}: {why}; leave it out")


def require_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raise LenscopeError, with the nearest name and all that there are, for a name that is none of them."""
    every = list(known)
    if name not in every:
        raise LenscopeError(f"{what} {name!r}: there are {', '.join(every)}{did_you_mean(name, every)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message: the known name that was probably meant, or nothing."""
    every = list(known)
    folded = {one.lower(): one for one in reversed(every)}
    close = get_close_matches(name.lower(), folded, 1, 0.6)
    return f"; did you mean {folded[close[0]]}?" if close else ""


def require_path(path: str, what: str = "file or folder") -> Path:
    """Return the path to what is there; LenscopeError with the nearest name in its folder where nothing is."""
    place = Path(path).expanduser()
    if _there(place):
        return place
    close = did_you_mean(place.name, _names_beside(place))
    if close and os.path.dirname(path):
        close = close.replace("did you mean ", f"did you mean {os.path.dirname(path).rstrip('/')}/")
    raise LenscopeError(f"{path}: no such {what}{close}")


def require_writable(path: str | None, endings: tuple[str, ...]) -> None:
    """Raise LenscopeError for a file that cannot be written, which is tried before the work and not after it."""
    if path is None:
        return
    place = Path(path)
    if place.suffix not in endings:
        raise LenscopeError(f"{path}: give a file that ends in {' or '.join(endings)}")
    folder = place.absolute().parent
    try:
        if not folder.is_dir():
            raise LenscopeError(f"{path}: the folder {folder} does not exist")
        if place.is_dir():
            raise LenscopeError(f"{path}: is a folder; give a file")
        if place.exists() and not place.is_file():
            raise LenscopeError(f"{path}: is no regular file; give another name")
        with tempfile.TemporaryFile(dir=folder) as tried:
            tried.write(b"\0")
    except OSError as error:
        raise LenscopeError(f"{path}: cannot be written ({error.strerror or error})") from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Return a folder to write to, made where there is none; LenscopeError where it cannot be written to."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LenscopeError(f"{folder}: cannot be made a folder ({error.strerror or error})") from error
    try:
        with tempfile.TemporaryFile(dir=folder) as tried:
            tried.write(b"\0")
    except OSError as error:
        raise LenscopeError(
            f"{folder}: cannot be written to ({error.strerror or error}); give another folder"
        ) from error
    return folder


def require_model(name: str) -> None:
    """Raise LenscopeError where there is no model of this name: built in, a folder, a file, cached or on the hub."""
    place = Path(name).expanduser()
    if _there(place):
        return
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or place.suffix == ".gguf":
        require_path(name, "file" if place.suffix == ".gguf" else "folder")
    from lenscope.models.loading import BUILT_IN

    if name in BUILT_IN or _cached(name, "config.json"):
        return
    close = did_you_mean(name, BUILT_IN) or did_you_mean(name, _names_beside(place))
    message = f"{name}: no built-in model ({', '.join(BUILT_IN)}), folder or cached hub model of this name"
    if "/" not in name and close:
        raise LenscopeError(message + close)
    from lenscope.files.hub import reachable

    if not reachable():
        raise LenscopeError(f"{message}, and the hub cannot be reached{close}")
    if not _on_hub(name):
        raise LenscopeError(f"{message}, and none on the hub (private ones need: hf auth login){close}")


def require_lens(where: str, transferred: bool = False) -> None:
    """Raise LenscopeError where nothing of this name may be a lens; `transferred`: only a folder may."""
    place = Path(where).expanduser()
    if transferred and not place.is_dir():
        raise LenscopeError(
            f"{where}: no such folder; --transferred takes one that lenscope fit wrote"
            f"{did_you_mean(place.name, _names_beside(place))}"
        )
    if _there(place):
        if place.is_dir() and not ((place / "config.json").is_file() or any(place.glob("*.pt"))):
            raise LenscopeError(f"{where}: is no lens (the folder has no config.json)")
        return
    if where.startswith((".", "/", "~")) or (place.suffix in (".pt", ".pth", ".safetensors") and "/" not in where):
        require_path(where)
    from lenscope.mappings.lens_files import SPACE

    repository = "/".join(where.split("/")[:2])
    if _cached(repository, None) or _cached(SPACE, f"lens/{where}/config.json", "space"):
        return
    close = did_you_mean(place.name, _names_beside(place))
    from lenscope.files.hub import reachable

    if not reachable():
        raise LenscopeError(f"{where}: no such file or folder, and the hub cannot be reached{close}")
    if not _on_hub(repository) and not _on_hub(SPACE, f"lens/{where}/config.json", "space"):
        raise LenscopeError(
            f"{where}: no such file or folder, no repository of this name on the hub, and no lens in the space {SPACE} "
            f"(private ones need: hf auth login){close}"
        )


def require_mapping(folder: str, what: str = "mapping") -> None:
    """Raise LenscopeError for a folder that cannot hold a mapping, or `what` else lenscope saves in a folder."""
    if not (require_path(folder, "folder") / "config.json").is_file():
        raise LenscopeError(f"{folder}: is no {what} that lenscope saved (the folder has no config.json)")


def require_verbaliser(path: str) -> None:
    """Raise LenscopeError for what is no folder of a verbaliser, and no file of a SelfIE adapter."""
    if path.endswith(".safetensors"):
        require_path(path)
    else:
        require_mapping(path, "verbaliser")


def require_text(where: str) -> None:
    """Raise LenscopeError where no text has this name: a file, folder, pattern, or data set of the hub."""
    if _there(Path(where).expanduser()):
        return
    if any(c in where for c in "*?["):
        if not glob.glob(where, recursive=True):
            raise LenscopeError(f"{where}: no file is like this pattern")
        return
    named_on_hub = "/" in where and not where.startswith((".", "/", "~"))
    if not named_on_hub or not find_spec("datasets"):
        try:
            require_path(where)
        except LenscopeError as error:
            more = "; if it is a data set of the hub, run: pip install 'lenscope[hub]'" if named_on_hub else ""
            raise LenscopeError(f"{error}{more}") from error


def require_seed(seed: int) -> None:
    """Raise LenscopeError for a negative seed."""
    if seed < 0:
        raise LenscopeError(f"--seed {seed}: give 0 or more")


def require_fraction(held_out: float) -> None:
    """Raise LenscopeError for what is no fraction of the documents that can be held out."""
    if not 0 < held_out < 1:
        raise LenscopeError(f"held_out {held_out}: give a fraction of the documents between 0 and 1, such as 0.1")


def require_corpus(data: Sequence[str] | None, field: str | None, length: int | None, seed: int) -> None:
    """Raise LenscopeError for text that is not there, and options of text without effect or out of range."""
    require_effect("--field", field, bool(data), "names the field of --data; the model's own samples have none")
    require_effect(
        "--field", field, not data or not _is_plain_text(data), "names a field or column, and text files have none"
    )
    for one in data or ():
        require_text(one)
    if length is not None and length < 2:
        raise LenscopeError(f"length {length}: give at least 2 tokens")
    require_seed(seed)


def _is_plain_text(paths: Iterable[str]) -> bool:
    """Whether files have no fields: all are .txt, packed or not."""
    return all(Path(p.removesuffix(".gz").removesuffix(".zst")).suffix == ".txt" for p in paths)


def _there(place: Path) -> bool:
    try:
        return place.exists()
    except (OSError, ValueError):
        return False


def _names_beside(place: Path) -> list[str]:
    """The names in the folder that something would be in."""
    try:
        return sorted(os.listdir(place.parent))
    except (OSError, ValueError):
        return []


def _cached(repository: str, file: str | None, kind: str = "model") -> bool:
    """Whether the hub's local cache has a file of a repository; None: any file of it."""
    import huggingface_hub as hub

    try:
        if file is None:
            place = Path(hub.constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
            return place.is_dir()
        return isinstance(hub.try_to_load_from_cache(repository, file, repo_type=kind), str)
    except (hub.errors.HFValidationError, OSError, ValueError):
        return False


def _on_hub(repository: str, file: str = "", kind: str = "model") -> bool:
    """Whether the hub has a repository, or a file in it, that this user may see; True where it does not say."""
    import huggingface_hub as hub

    try:
        if file:
            return bool(hub.file_exists(repository, file, repo_type=kind))
        return bool(hub.repo_exists(repository, repo_type=kind))
    except hub.errors.HFValidationError:
        return False
    except Exception:  # it is asked again by who loads, and its answer told there
        return True
