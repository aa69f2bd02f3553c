"""Checkpoints that several processes write together, each what it has, and that any number of processes reads again.

Knows: torch.distributed.checkpoint, how what it wrote is known to be as it was written.
Does not know: what the tensors are for, which checkpoint is the last (fitting/fit_checkpoints.py).

Files are safetensors: the package's own format keeps its index as a pickle, and reading that runs what code is in it.
"""

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from lenscope.distributed.processes import Group
from lenscope.errors import LenscopeError

_ENDING = ".safetensors"


def write_tensors(
    folder: Path, tensors: Mapping[str, Tensor], files: Mapping[str, int], group: Group
) -> dict[str, str]:
    """Write the tensors of all processes into a folder, and return the SHA-256 of each file there, in all processes.

    What one writes is written one file after the other, and takes the memory of one file. Raises LenscopeError, in all
    processes, where the folder cannot be written to.

    Args:
        folder: where to write, a new folder.
        tensors: those of this process, by names that no other process has.
        files: name → number from 1 on: tensors of a process with one number go into one file.
        group: all processes that write.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with _one_line(folder, "cannot be written"):
        # the first process plans for all
        every = {name: number for part in group.gathered(dict(files)) for name, number in part.items()}
        writer = HuggingFaceStorageWriter(str(folder), every, save_distributed=True)
        save(dict(tensors), storage_writer=writer, no_dist=group.world == 1)
        digests = _sha256_of(folder, sorted(p.name for p in folder.glob(f"*{_ENDING}"))[group.rank :: group.world])
    return {name: digest for part in group.gathered(digests) for name, digest in part.items()}


def read_tensors_into(folder: Path, tensors: Mapping[str, Tensor], digests: Mapping[str, str], group: Group) -> None:
    """Fill tensors of this process with what those of these names were when some processes wrote them.

    Raises LenscopeError, in all processes, for files that are not those that were written, by their SHA-256.

    Args:
        folder: where to read.
        tensors: those to be filled, of the shapes and dtypes that they had; any of what was written.
        digests: what `write_tensors` returned.
        group: all processes that read, also those without tensors.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    names = sorted(p.name for p in folder.glob(f"*{_ENDING}"))
    mine = names[group.rank :: group.world]
    whole = names == sorted(digests) and _sha256_of(folder, mine) == {name: digests[name] for name in mine}
    if not all(group.gathered(whole)):
        raise LenscopeError(f"{folder}: its files are damaged, or not those that were written")
    with _one_line(folder, "cannot be read"):
        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=group.world == 1)


def _sha256_of(folder: Path, names: list[str]) -> dict[str, str]:
    digests = {}
    for name in names:
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


@contextmanager
def _one_line(folder: Path, what: str) -> Iterator[None]:
    """What went wrong in any process as one line in all of them."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            # that this process is alone
            warnings.filterwarnings("ignore", "torch.distributed is", UserWarning)
            yield
    except CheckpointException as error:
        why = [failure for failure, _ in error.failures.values()]
        stops = [failure for failure in why if isinstance(failure, KeyboardInterrupt)]
        if stops:
            raise stops[0] from error
        raise LenscopeError(f"{folder}: {what} ({_why(why[0])})") from error
    except OSError as error:
        raise LenscopeError(f"{folder}: {what} ({error.strerror or error})") from error


def _why(error: BaseException) -> str:
    own = error.strerror if isinstance(error, OSError) else None
    return own or " ".join(str(error).split())[:200] or type(error).__name__
