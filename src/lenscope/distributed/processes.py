"""Processes that torchrun started: which one this is, sums over all of them, what they send, waiting for all.

Knows: torch.distributed. One process is the same path with nothing to do.
Does not know: what is summed, how a model is split among processes (sharding.py).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, final

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from lenscope.errors import LenscopeError


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
            alike = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in alike])
            dist.all_reduce(flat)
            for t, part in zip(alike, flat.split([t.numel() for t in alike]), strict=True):
                t.copy_(part.view_as(t))

    def exchange(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, Tensor]) -> None:
        """Send a tensor to each process of `outgoing`, and put what each of `incoming` sends here into its tensor.

        All are contiguous; what one sends has the size and dtype of what the other has room for.
        """
        # named in torch's documentation, and not in its annotations
        sends = [dist.P2POp(dist.isend, t, rank) for rank, t in outgoing.items() if t.numel()]
        waits = [dist.P2POp(dist.irecv, t, rank) for rank, t in incoming.items() if t.numel()]
        if sends or waits:
            for work in dist.batch_isend_irecv([*sends, *waits]):
                work.wait()

    def from_first(self, value: Any) -> Any:
        """What the first process has as `value`: JSON values."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gathered(self, value: Any) -> list[Any]:
        """What all processes have as `value`, JSON values, by their ranks."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """The group of this process: all those that torchrun started together, or this one alone.

    Joins the group that is there, else makes one for the time of the block: NCCL for CUDA, Gloo otherwise. Raises
    LenscopeError where another process has ended within the block: as soon as this one waits for it, or after torch's
    own time-out (30 minutes, for Gloo) where its machine is gone without a word.
    """
    if dist.is_available() and dist.is_initialized():
        with _lost_ones_named():
            yield Group(dist.get_rank(), dist.get_world_size())
        return
    if started_together() == 1:
        yield Group()
        return
    store, rank, world = _meeting_place()
    if device.type == "cuda" and device.index is not None:
        # what is sent that is no tensor goes through the device that is current
        torch.cuda.set_device(device)
    with _lost_ones_named():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=world)
        try:
            yield Group(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()


@contextmanager
def _lost_ones_named() -> Iterator[None]:
    """What torch says of a process that does not answer becomes one line."""
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        # Gloo has no error of its own
        if not isinstance(error, dist.DistError) and "gloo" not in text:
            raise
        # behind the place in Gloo's own source
        brief = text.rpartition("] ")[2].partition(". ")[0][:120]
        raise LenscopeError(
            f"processes: another process of this run has ended, or cannot be reached ({brief}); see what it said and "
            "start all of them again: a fit with a folder goes on from its last checkpoint"
        ) from error


def started_together() -> int:
    """How many processes torchrun started together, this one among them; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def fails_first() -> bool:
    """Whether this process is the first of those that torchrun started to fail, and so the one that says why."""
    if started_together() == 1:
        return True
    try:
        if not _meetings:
            _meetings.append(next(rendezvous("env://", timeout=timedelta(seconds=10))))
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return int(_meetings[0][0].add(f"lenscope-failures-{restart}", 1)) == 1
    except (RuntimeError, ValueError, OSError):
        # nobody is left who could say it
        return True


# the store through which the processes meet, how many groups met there, and this process among all
_meetings: list[tuple[Any, int, int]] = []
_groups = 0


def _meeting_place() -> tuple[Any, int, int]:
    """A place of the store that no earlier group has used, this process' rank, and how many processes there are.

    The store is opened once and stays open. One that is opened anew for each group lets a process meet the store of the
    group before, which is about to close, and then all wait for each other; in torchrun's own store, which does stay
    open, a second group would read the addresses of the first.
    """
    global _groups
    if not _meetings:
        _meetings.append(next(rendezvous("env://")))
    _groups += 1
    store, rank, world = _meetings[0]
    # public in torch's documentation, and not named in its annotations
    return dist.PrefixStore(f"lenscope-group-{_groups}", store), rank, world  # type: ignore[attr-defined]
