"""Where the weights of a model lie while it runs: whole on each GPU, split among them, or elsewhere until needed.

Knows: bytes of weights per GPU, and what moves in a pass over the blocks. Does not know: what the passes are for.
"""

from dataclasses import dataclass
from typing import final

from lenscope.errors import LenscopeError
from lenscope.planning.machines import Machine
from lenscope.planning.model_shapes import ModelShape

# name → what it means
PLACEMENTS = {
    "whole": "each GPU has the whole model",
    "fsdp": "each GPU has its share of every block, which is brought together when it runs (FSDP2)",
    "tensor": "all GPUs compute each product together (tensor parallelism)",
    "spread": "one process, whose blocks lie on all GPUs and run one after the other (device_map='auto')",
    "offload": "what does not fit lies in the processor's memory (device_map='auto')",
    "stream": "one block after the other is read from disk, for all texts together",
}


@final
@dataclass(frozen=True)
class Fleet:
    """`gpus` machines' accelerators, all alike, that run one placement of a model."""

    machine: Machine
    gpus: int
    placement: str

    @property
    def readers(self) -> int:
        """How many parts the texts are divided into: one where all GPUs run each pass together."""
        return 1 if self.placement in ("tensor", "spread") else self.gpus

    @property
    def at_work(self) -> int:
        """How many GPUs compute at a time."""
        return 1 if self.placement == "spread" else self.gpus

    @property
    def owners(self) -> int:
        """How many processes share the translators of a fit."""
        return 1 if self.placement == "spread" else self.gpus

    @property
    def far(self) -> bool:
        """Whether GPUs of several machines work together."""
        return self.gpus > self.machine.together


@dataclass(frozen=True)
class WeightTraffic:
    """Bytes that a pass over all blocks moves, per GPU: to other GPUs, from the processor's memory, from disk."""

    sent: float = 0
    fetched: float = 0
    read: float = 0


def weight_bytes(shape: ModelShape, fleet: Fleet, room: float = 0.0) -> float:
    """Bytes of weights on each GPU; `room`: what else has to fit there, for offloading.

    As `lenscope.distributed.sharding.sharded` has it, FSDP2 splits the blocks alone, and one or two whole ones are
    there while they run. Tensor parallelism is taken to split blocks, and embedding and head to be whole.
    """
    size, n = shape.dtype.itemsize, fleet.gpus
    outside = shape.outside_blocks * size
    blocks, block = shape.blocks * size, shape.largest_block * size
    if fleet.placement == "whole":
        return outside + blocks
    if fleet.placement == "fsdp":
        return outside + blocks / n + 2 * block * (n > 1)
    if fleet.placement in ("tensor", "spread"):
        return outside + blocks / n
    if fleet.placement == "offload":
        resident = max(0.0, min(blocks, fleet.machine.usable - room - outside - block))
        return outside + resident + block * (resident < blocks)
    if fleet.placement == "stream":
        return outside + min(2 * block, blocks)
    raise LenscopeError(f"placement {fleet.placement!r}: there are {', '.join(PLACEMENTS)}")


def weight_traffic(shape: ModelShape, fleet: Fleet, room: float = 0.0) -> WeightTraffic:
    """What a pass over all blocks moves besides what the blocks compute, per GPU."""
    blocks, n = shape.blocks * shape.dtype.itemsize, fleet.gpus
    if fleet.placement == "fsdp":
        return WeightTraffic(sent=blocks * (n - 1) / n)
    if fleet.placement == "offload":
        resident = weight_bytes(shape, fleet, room) - shape.outside_blocks * shape.dtype.itemsize
        return WeightTraffic(fetched=max(0.0, blocks - resident))
    return WeightTraffic(read=blocks if fleet.placement == "stream" else 0.0)


def exchanged(shape: ModelShape, fleet: Fleet, tokens: float) -> float:
    """Bytes that each GPU sends where all compute each product of so many tokens together: two sums a block."""
    if fleet.placement != "tensor":
        return 0.0
    n = fleet.gpus
    return 2 * 2 * shape.layers * tokens * shape.width * shape.dtype.itemsize * (n - 1) / n
