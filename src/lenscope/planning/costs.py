"""What a piece of work asks of a machine, and how long it then takes: the slowest of what it asks for decides.

Knows: products, bytes that move, links and disks. Does not know: which work there is (fit_costs.py and its neighbours).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lenscope.planning.machines import Machine

# what may limit work, as it is shown
PRODUCTS, BANDWIDTH, LAUNCHES, NETWORK, DISK_READS = (
    "products", "bandwidth", "kernel starts", "network", "disk"
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What one GPU does of a kind of work, all of it together.

    `flops` multiplications and additions in numbers of `bits` bits, `moved` bytes to and from its memory, `calls`
    kernels, `sent` bytes to other GPUs (`far`: of other machines), `read` bytes from disk, `fetched` bytes from the
    processor's memory. `kind` names the share of the machine's products that such work reaches.
    """

    name: str
    flops: float
    bits: int
    moved: float
    kind: str = "products"
    calls: float = 0
    sent: float = 0
    far: bool = False
    read: float = 0
    fetched: float = 0


@dataclass(frozen=True)
class TimedWork:
    """A piece of work, the seconds that it takes, and what most of them go to."""

    work: Work
    seconds: float
    limit: str


def timed_work(work: Work, machine: Machine) -> TimedWork:
    """How long work takes on a machine: products, memory and starts overlap, links and disks do not."""
    overlapping = {
        PRODUCTS: work.flops / machine.products(work.bits, work.kind),
        BANDWIDTH: work.moved / (machine.bandwidth * machine.shares.get("memory", 1.0)),
        LAUNCHES: work.calls * machine.launch,
    }
    links = {
        NETWORK: work.sent / (machine.across if work.far else machine.network) + work.fetched / machine.host,
        DISK_READS: work.read / machine.disk,
    }
    slowest = max(overlapping.values())
    limits = {**overlapping, **links}
    return TimedWork(work, slowest + sum(links.values()), max(limits, key=lambda name: limits[name]))


def what_limits(parts: Sequence[TimedWork]) -> str:
    """What most of the seconds of several pieces of work go to."""
    seconds: dict[str, float] = {}
    for part in parts:
        seconds[part.limit] = seconds.get(part.limit, 0.0) + part.seconds
    return max(seconds, key=lambda name: seconds[name]) if seconds else PRODUCTS
