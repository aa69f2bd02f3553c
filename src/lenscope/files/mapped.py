"""Tensors in files that are larger than memory: mapped into it, and written back by the system.

Knows: that space is taken before anything is written, since a full disk ends a process that writes to mapped memory.
Does not know: what the tensors are.
"""

import os
import shutil
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from lenscope.errors import LenscopeError

if TYPE_CHECKING:
    import torch


def mapped_tensor(path: Path, shape: Sequence[int], dtype: "torch.dtype") -> "torch.Tensor":
    """A tensor in a file: one of that size as it is, else a new one of zeros; what is written to it is in the file.

    Raises LenscopeError where there is no room for it, or nothing can be written.
    """
    import torch

    size = prod(shape) * dtype.itemsize
    try:
        if not path.is_file() or path.stat().st_size != size:
            path.unlink(missing_ok=True)
            with path.open("wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, max(1, size))
                else:
                    file.truncate(size)
        return torch.from_file(str(path), shared=True, size=prod(shape), dtype=dtype).view(*shape)
    except OSError as error:
        raise LenscopeError(f"{path}: cannot be written ({error.strerror or error})") from error


def require_room_on_disk(folder: Path, size: int, what: str) -> None:
    """Raise LenscopeError where the disk of a folder has less than `size` bytes left for `what`."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise LenscopeError(
            f"{folder}: {what} take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there; give a folder on a "
            "larger disk"
        )
