"""Where a model goes: whole into each process, over all devices of one, or divided among the processes of torchrun.

Knows: which way of dividing a name stands for, when it applies. Does not know: how a model is divided (sharding.py,
tensor_parallel.py), what it is run for.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lenscope.distributed.processes import started_together
from lenscope.distributed.sharding import sharded
from lenscope.distributed.tensor_parallel import tensor_parallel
from lenscope.errors import LenscopeError
from lenscope.models.language_model import LM
from lenscope.models.load_options import require_load_options
from lenscope.models.loading import load, load_with

PLACEMENTS = ("whole", "auto", "fsdp", "tensor")


@contextmanager
def placed(
    source: Any,
    placement: str = "whole",
    *,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
) -> Iterator[LM]:
    """Load a model that one device may not hold, for the time of a `with` block; as `lenscope.load` otherwise.

    "whole": in each process, on its own device. "auto": over all devices of one process, then memory, then disk
    (`device_map="auto"`). Under torchrun, where all processes make the same calls: "fsdp" divides the weights of each
    block, which are brought together when it runs (see `sharded`), and no process holds the whole model at any time;
    "tensor" divides each product by the plan that transformers has for the family, and all compute it together. Numbers
    are those of the whole model up to the order of sums, and so is the model's identity: lenses go from one to the
    other. A model that was divided cannot be run after the block.

    Raises LenscopeError for another placement, one that does not apply to this number of processes, and whatever
    `lenscope.load` raises.

    Args:
        source: an alias, a hub id, a folder or a .gguf file.
        placement: one of "whole", "auto", "fsdp" and "tensor".
        dtype: None keeps the checkpoint's own.
        device: "cuda" or "cpu"; None: "cuda" where there is one and the model is divided, else "cpu".
        attn_implementation: which attention the model computes with.
        revision: a branch, tag or commit on the hub.
    """
    require_placement(placement)
    require_load_options({"dtype": dtype, "device_map": device, "attn_implementation": attn_implementation})
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
    options = {name: value for name, value in options.items() if value is not None}
    if placement == "auto":
        with tempfile.TemporaryDirectory() as folder:
            yield load(source, device_map=device or "auto", offload_folder=folder, revision=revision, **options)
        return
    own = _own_device(device)
    if placement == "whole":
        yield load(source, device_map=own if device else None, revision=revision, **options)
        return
    where = torch.device(own or ("cuda" if torch.cuda.is_available() else "cpu"))
    if placement == "tensor":
        with tensor_parallel(source, options, revision, where) as lm:
            yield lm
        return
    with tempfile.TemporaryDirectory() as folder:
        how = {**options, "blocks_on_disk": str(where), "offload_folder": folder}
        lm = load_with(source, None, how, revision)
        with sharded(lm):
            yield lm


def require_placement(placement: str) -> None:
    """Raise LenscopeError for a placement that there is not, or that does not apply to this number of processes."""
    world = started_together()
    if placement not in PLACEMENTS:
        raise LenscopeError(f"placement {placement}: give {', '.join(PLACEMENTS[:-1])} or {PLACEMENTS[-1]}")
    if placement in ("fsdp", "tensor") and world == 1:
        raise LenscopeError(
            f"placement {placement}: divides a model among processes, and this is one alone; start several "
            "with torchrun --nproc-per-node N"
        )
    if placement == "auto" and world > 1:
        raise LenscopeError(
            f"placement auto: spreads a model over all devices of one process, and torchrun started {world}; give "
            "whole, fsdp or tensor"
        )


def _own_device(device: str | None) -> str | None:
    """The device of this process: of several that torchrun started on a machine, each has a GPU of its own."""
    local = os.environ.get("LOCAL_RANK")
    several = started_together() > 1
    if several and local and (device == "cuda" or (device is None and torch.cuda.is_available())):
        return f"cuda:{local}"
    return device
