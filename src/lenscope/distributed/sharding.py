"""Several processes: which one this is, sums over all of them, and a model whose blocks are split among them.

Knows: torch.distributed as torchrun starts it, FSDP2. One process is the same path with nothing to do.
Does not know: what is summed, what a model is run for.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch import distributed as dist

from lenscope.errors import LenscopeError
from lenscope.mappings.mapping import identify
from lenscope.models.language_model import LM
from lenscope.models.provenance import provenance

# what was known of a model before its weights were split
_whole: WeakKeyDictionary[LM, tuple[dict[str, Any], dict[str, Any]]] = WeakKeyDictionary()


@final
@dataclass(frozen=True)
class Group:
    """The processes that work on one thing: `rank` of `world`."""

    rank: int = 0
    world: int = 1

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all processes into each tensor, in one message per dtype."""
        if self.world == 1:
            return
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            some = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in some])
            dist.all_reduce(flat)
            for t, part in zip(some, flat.split([t.numel() for t in some]), strict=True):
                t.copy_(part.view_as(t))

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """The group of this process: all those that torchrun started together, or this one alone.

    Joins the group that is there, else makes one for the time of the block: NCCL for CUDA, Gloo otherwise.
    """
    if dist.is_available() and dist.is_initialized():
        yield Group(dist.get_rank(), dist.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Group()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextmanager
def sharded(lm: LM) -> Iterator[None]:
    """Within the block, each process keeps only its share of the weights of `lm`'s blocks (FSDP2); numbers stay equal.

    A block's weights are brought together when it runs, so that all processes have to run the model equally often;
    `fit` does. Embedding, norms and head stay whole. The model cannot be run after the block. One process: nothing
    happens. Raises LenscopeError for a model whose readout runs its blocks, since lenses run on different states.
    """
    with joined(lm.device) as group:
        if group.world > 1:
            if not lm.readout.splits:
                raise LenscopeError(
                    f"{lm.name}: its readout is {lm.readout.description}; only a plain head can be sharded"
                )
            _whole[lm] = identify(lm), provenance(lm)
            _shard(lm, group.world)
        yield


def is_sharded(lm: LM) -> bool:
    """Whether the weights of a model's blocks are split among processes."""
    return lm in _whole


def described(lm: LM) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `identify` and `provenance` say of a model, of a sharded one as they said when it was whole."""
    return _whole.get(lm) or (identify(lm), provenance(lm))


def _shard(lm: LM, world: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(lm.device.type, (world,))
    for block in lm.anatomy.blocks:
        # each is the root of its own tree, which would keep its weights
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
