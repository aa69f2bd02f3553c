"""The Hugging Face hub as a place of files: fetch one, list them, put a folder there.

Knows: how the hub says no, and what a user can do then.
Does not know: what is in the files.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from lenscope.errors import LenscopeError


def fetch(repo_id: str, file: str, kind: str = "model") -> Path | None:
    """A file of a repository, from the cache where it is there; None where the hub has none, or none for this user.

    Raises LenscopeError where the hub cannot be reached.
    """
    try:
        return Path(huggingface_hub.hf_hub_download(repo_id, file, repo_type=kind))
    except LocalEntryNotFoundError as error:
        raise _refused(repo_id, error) from error
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return None
    except Exception as error:  # the transport's own errors, which differ from one huggingface_hub to the next
        raise _refused(repo_id, error) from error


def files(repo_id: str) -> list[str]:
    """The files of a model repository, none where there is no such repository; raises LenscopeError as `fetch`."""
    try:
        return list(huggingface_hub.list_repo_files(repo_id))
    except (RepositoryNotFoundError, HFValidationError):
        return []
    except Exception as error:
        raise _refused(repo_id, error) from error


def push(repo_id: str, save: Callable[[str], None], message: str, replacing: str) -> str:
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
                f"{repo_id}: cannot be pushed to the hub ({_told(error)}); check the name OWNER/REPOSITORY, and log in "
                "with: hf auth login"
            ) from error
    return str(address)


def _refused(repo_id: str, error: Exception) -> LenscopeError:
    return LenscopeError(
        f"{repo_id}: no such file or folder, and the hub cannot be reached ({_told(error)}); check the path, or fetch "
        "it once while online"
    )


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
