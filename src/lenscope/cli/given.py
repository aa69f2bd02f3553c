"""What a command line gives, checked before any work: combinations, names, files to read, places to write.

Knows: which mistakes can be seen without a model. Does not know: any command.
"""

import glob
import os
import tempfile
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lenscope.errors import LenscopeError


def only(option: str, value: Any, applies: bool, why: str) -> None:
    """Raise LenscopeError for an option that was given where it has no effect; `why` says when it has one."""
    if value not in (None, False, []) and not applies:
        raise LenscopeError(f"{option}: {why}; leave it out")


def named(what: str, name: str, known: Iterable[str], more: str = "") -> str:
    """The name, or LenscopeError with the nearest one and all that there are; `more` says what else may be given."""
    every = list(known)
    if name in every:
        return name
    raise LenscopeError(f"{what} {name!r}: there are {', '.join(every)}{more}{nearest(name, every)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message: the known name that was probably meant, or nothing."""
    every = list(known)
    folded = {one.lower(): one for one in reversed(every)}
    found = get_close_matches(name.lower(), folded, 1, 0.6)
    return f"; did you mean {folded[found[0]]}?" if found else ""


def existing(path: str, what: str = "file or folder") -> Path:
    """A path to what is there; LenscopeError with the nearest name in its folder where nothing is."""
    place = Path(path).expanduser()
    if _there(place):
        return place
    close = nearest(place.name, _beside(place))
    if close and os.path.dirname(path):
        close = close.replace("did you mean ", f"did you mean {os.path.dirname(path).rstrip('/')}/")
    raise LenscopeError(f"{path}: no such {what}{close}")


def writable(path: str | None, endings: tuple[str, ...]) -> None:
    """Whether a file can be written, tried before the work and not after it; LenscopeError if not."""
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
    """A folder to write to, made where it does not exist; LenscopeError where it cannot be written to."""
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


def known_model(name: str) -> None:
    """Whether there is a model of this name: built in, a folder, a file, in the hub's cache or on the hub.

    Raises LenscopeError if not, before anything is loaded.
    """
    place = Path(name).expanduser()
    if _there(place):
        return
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or place.suffix == ".gguf":
        existing(name, "file" if place.suffix == ".gguf" else "folder")
    from lenscope.models.loading import BUILT_IN

    if name in BUILT_IN or _cached(name, "config.json"):
        return
    close = nearest(name, BUILT_IN) or nearest(name, _beside(place))
    told = f"{name}: no built-in model ({', '.join(BUILT_IN)}), folder or cached hub model of this name"
    if "/" not in name and close:
        raise LenscopeError(told + close)
    if not _reachable():
        raise LenscopeError(f"{told}, and the hub cannot be reached{close}")
    if not _on_hub(name):
        raise LenscopeError(f"{told}, and none on the hub (private ones need: hf auth login){close}")


def known_lens(where: str, transferred: bool = False) -> None:
    """Whether there is something of this name that may be a lens; LenscopeError if not, before a model is loaded."""
    place = Path(where).expanduser()
    if transferred and not place.is_dir():
        raise LenscopeError(
            f"{where}: no such folder; --transferred takes one that lenscope fit wrote"
            f"{nearest(place.name, _beside(place))}"
        )
    if _there(place):
        if place.is_dir() and not (place / "config.json").is_file():
            raise LenscopeError(f"{where}: is no lens (the folder has no config.json)")
        return
    if where.startswith((".", "/", "~")) or (place.suffix in (".pt", ".pth", ".safetensors") and "/" not in where):
        existing(where)
    from lenscope.mappings.lens_files import SPACE

    repository = "/".join(where.split("/")[:2])
    if _cached(repository, None) or _cached(SPACE, f"lens/{where}/config.json", "space"):
        return
    close = nearest(place.name, _beside(place))
    if not _reachable():
        raise LenscopeError(f"{where}: no such file or folder, and the hub cannot be reached{close}")
    if not _on_hub(repository) and not _on_hub(SPACE, f"lens/{where}/config.json", "space"):
        raise LenscopeError(
            f"{where}: no such file or folder, no repository of this name on the hub, and no lens in the space {SPACE} "
            f"(private ones need: hf auth login){close}"
        )


def known_mapping(folder: str) -> None:
    """Whether a folder may hold a mapping; LenscopeError if not, before a model is loaded."""
    if not (existing(folder, "folder") / "config.json").is_file():
        raise LenscopeError(f"{folder}: is no mapping that lenscope saved (the folder has no config.json)")


def known_text(where: str) -> None:
    """Whether there is text of this name: a file, folder, pattern, or the name of a data set of the hub."""
    if _there(Path(where).expanduser()):
        return
    if any(c in where for c in "*?["):
        if not glob.glob(where, recursive=True):
            raise LenscopeError(f"{where}: no file is like this pattern")
        return
    named_on_hub = "/" in where and not where.startswith((".", "/", "~"))
    if not named_on_hub or not find_spec("datasets"):
        try:
            existing(where)
        except LenscopeError as error:
            more = "; if it is a data set of the hub, run: pip install 'lenscope[hub]'" if named_on_hub else ""
            raise LenscopeError(f"{error}{more}") from error


def is_plain_text(paths: Iterable[str]) -> bool:
    """Whether files have no fields: all are .txt, packed or not."""
    return all(Path(p.removesuffix(".gz").removesuffix(".zst")).suffix == ".txt" for p in paths)


def _there(place: Path) -> bool:
    try:
        return place.exists()
    except (OSError, ValueError):
        return False


def _beside(place: Path) -> list[str]:
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


def _reachable() -> bool:
    """Whether the hub answers at all: its own retries take half a minute to give up."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # the transport's own errors, which differ from one huggingface_hub to the next
        return False
    return True


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
