"""The Hugging Face hub as a place of files: fetch one, list them, put a folder there.

Knows: how the hub says no, and what a user can do then.
Does not know: what is in the files.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from lenscope.errors import LenscopeError

# seconds that the hub has to answer, and for which what came of it is believed
_PATIENCE, _BELIEVED = 5.0, 30.0
_answer: list[tuple[float, bool]] = []


def reachable() -> bool:
    """Whether the hub answers at once: huggingface_hub itself tries for half a minute before it gives up."""
    if constants.HF_HUB_OFFLINE:
        return False
    if not _answer or time.monotonic() - _answer[-1][0] > _BELIEVED:
        answered: list[bool] = []

        def ask() -> None:
            try:
                huggingface_hub.get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
                answered.append(True)
            except Exception:  # the transport's own errors, which differ from one huggingface_hub to the next
                pass

        # a thread, because looking up the name of a host has no limit of its own
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(_PATIENCE)
        _answer[:] = [(time.monotonic(), bool(answered))]
    return _answer[-1][1]


@contextmanager
def not_asked(silent: bool) -> Iterator[None]:
    """As long as it lasts, and if the hub is silent, other libraries take nothing but what is in its cache.

    Some of their calls ask the hub whatever they are told, and wait ten seconds for it.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or silent
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def fetch_file(
    repo_id: str, file: str, kind: str = "model", named: str | None = None, revision: str | None = None
) -> Path | None:
    """A file of a repository, from the cache where it is there; None where the hub has none, or none for this user.

    Raises LenscopeError where the hub cannot be reached, about `named`, which is what a user wrote.
    """
    try:
        # offline it asks nobody, whatever it is told
        local: dict[str, Any] = {} if constants.HF_HUB_OFFLINE or reachable() else {"local_files_only": True}
        return Path(huggingface_hub.hf_hub_download(repo_id, file, repo_type=kind, revision=revision, **local))
    except LocalEntryNotFoundError as error:
        raise _refused(named or repo_id, error) from error
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return None
    except Exception as error:  # as above
        raise _refused(named or repo_id, error) from error


def fetch_if_reachable(repo_id: str, file: str, revision: str | None = None) -> Path | None:
    """As `fetch`, and None too where the hub cannot be reached."""
    try:
        return fetch_file(repo_id, file, revision=revision)
    except LenscopeError:
        return None


def list_files(repo_id: str) -> list[str]:
    """The files of a model repository, none where there is no such repository; raises LenscopeError as `fetch`."""
    if not (constants.HF_HUB_OFFLINE or reachable()):
        raise _refused(repo_id, TimeoutError(f"no answer within {_PATIENCE:.0f} s"))
    try:
        return list(huggingface_hub.list_repo_files(repo_id))
    except (RepositoryNotFoundError, HFValidationError):
        return []
    except Exception as error:
        raise _refused(repo_id, error) from error


def push_folder(repo_id: str, save: Callable[[str], None], message: str, replacing: str) -> str:
    """What `save` writes into a folder, as one commit to a model repository; returns the repository's address.

    The repository is made where it does not exist; its files like the pattern `replacing` that are not written again
    are taken out in the same commit. Raises LenscopeError where the hub cannot be reached or says no.
    """
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        try:
            address = huggingface_hub.create_repo(repo_id, exist_ok=True)
            huggingface_hub.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=message, delete_patterns=[replacing]
            )
        except Exception as error:
            raise LenscopeError(
                f"{repo_id}: cannot be pushed to the hub ({_brief(error)}); check the name OWNER/REPOSITORY, and log "
                "in with: hf auth login"
            ) from error
    return str(address)


def _refused(named: str, error: Exception) -> LenscopeError:
    return LenscopeError(
        f"{named}: no such file or folder, and the hub cannot be reached ({_brief(error)}); check the path, or fetch "
        "it once while online"
    )


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
