"""Machines that work is planned for: what they do in a second at most, and how much of it work is taken to reach.

Knows: vendors' figures, and how this machine's own are measured.
Does not know: models, work.
"""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch

from lenscope.errors import LenscopeError

# Of the vendor's products a second that a GPU is taken to reach. Llama 3's training reached 0.38 to 0.43 of an H100's
# (arXiv 2407.21783, Table 4). No GPU has run lenscope yet; benchmarks/gpu.py will say what it reaches.
GPU_PRODUCTS = 0.4
# Of the vendor's bandwidth: assumed.
GPU_BANDWIDTH = 0.8
# Seconds that a kernel takes to start: assumed, of the order that profilers show for eager torch.
GPU_LAUNCH = 5e-6
# Of a GPU's memory what its context and fragments take: assumed.
GPU_LOST = 0.05
# Bytes a second of a disk: assumed, a data centre's NVMe. `--disk` says another.
DISK = 2e9


@final
@dataclass(frozen=True)
class Machine:
    """The speeds and sizes of one GPU of a machine, or of the processors of this one.

    Attributes:
        matrix: multiplications and additions a second, by the bits of the numbers.
        bandwidth: bytes a second of its memory.
        memory: bytes of its memory.
        network: bytes a second between GPUs of one machine.
        across: bytes a second between machines.
        together: how many GPUs a machine has.
        host: bytes a second between a GPU and the processor's memory.
        disk: bytes a second of a disk.
        shares: which share of `matrix` work reaches, by its kind, and of `bandwidth` as "memory".
        launch: seconds that a kernel takes to start.
        lost: the share of memory that nothing can be stored in.
        cached: whether pieces of logits lie in the processor's cache.
        source: where the figures come from.
    """

    name: str
    matrix: Mapping[int, float]
    bandwidth: float
    memory: float
    network: float
    across: float
    host: float
    source: str
    together: int = 8
    disk: float = DISK
    shares: Mapping[str, float] = field(default_factory=dict)
    launch: float = 0.0
    lost: float = 0.0
    cached: bool = False

    def products(self, bits: int, kind: str) -> float:
        """Multiplications and additions a second that work of a kind is taken to reach."""
        return self.matrix[bits] * self.shares.get(kind, self.shares.get("products", 1.0))

    @property
    def usable(self) -> float:
        """Bytes of memory that can be stored in."""
        return self.memory * (1 - self.lost)


def _gpu(name: str, half: float, single: float, bandwidth: float, memory: float, **links: Any) -> Machine:
    return Machine(
        name, {16: half, 32: single, 64: single}, bandwidth, memory, **links, launch=GPU_LAUNCH, lost=GPU_LOST,
        shares={"products": GPU_PRODUCTS, "memory": GPU_BANDWIDTH},
    )  # fmt: skip


# Dense products in bfloat16 and float32 (TF32 is off in torch by default), bandwidth, memory; links in one direction.
_HOPPER: dict[str, Any] = {"network": 450e9, "across": 50e9, "host": 64e9}
_AMPERE: dict[str, Any] = {"network": 300e9, "across": 25e9, "host": 32e9}
MACHINES = {
    "h100": _gpu("h100", 989e12, 67e12, 3.35e12, 80e9, source="NVIDIA H100 SXM data sheet", **_HOPPER),
    "h200": _gpu("h200", 989e12, 67e12, 4.8e12, 141e9, source="NVIDIA H200 SXM data sheet", **_HOPPER),
    "a100": _gpu("a100", 312e12, 19.5e12, 2.039e12, 80e9, source="NVIDIA A100 80GB SXM data sheet", **_AMPERE),
}

# Of this machine's largest products, what each kind of work reaches on a processor: set by one run of
# `benchmarks/plan.py --calibrate` (a random Llama of 16 layers and width 768; 2026-11-29, AMD EPYC with AVX-512 bf16,
# one thread, a quiet machine).
CPU_SHARES = {
    "reading": 0.9,
    "readout": 0.8,
    "moments": 0.8,
    "solving": 0.5,
    "steps": 0.6,
    "orthogonal": 0.95,
    "rows": 0.6,
    "memory": 0.8,
}


def machine(name: str, *, memory: float | None = None, disk: float | None = None) -> Machine:
    """Give a machine by its name.

    It is one of MACHINES, "cpu" (this one, measured now), or "FLOPS,BANDWIDTH" such as "400T,2T", of which all products
    and all bandwidth are taken to be reached. `memory` and `disk`, in bytes and bytes a second, stand in place of its
    own. Raises LenscopeError for any other name.
    """
    if name in MACHINES:
        chosen = MACHINES[name]
    elif name == "cpu":
        chosen = this_machine()
    else:
        match = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)([GTP]?)\s*,\s*([\d.]+(?:e\d+)?)([GTP]?)\s*", name)
        try:
            values = [] if match is None else [float(match[n]) * _SCALE[match[n + 1]] for n in (1, 3)]
        except ValueError:
            values = []
        if not values or min(values) < 1e6 or max(values) > 1e21:
            raise LenscopeError(
                f"device {name!r}: give {', '.join(MACHINES)}, cpu, or what it does in a second, FLOPS,BANDWIDTH, such "
                "as 400T,2T"
            )
        rate, bandwidth = values
        chosen = Machine(
            name, {16: rate, 32: rate, 64: rate}, bandwidth, 80e9, **_HOPPER, source="as given", launch=GPU_LAUNCH,
            lost=GPU_LOST,
        )  # fmt: skip
    changed = {"memory": memory or chosen.memory, "disk": disk or chosen.disk}
    return Machine(**{**vars(chosen), **changed})


# seconds of one product of matrices from which on a smaller one is timed
SLOW_PRODUCT = 0.5
_SCALE = {"": 1.0, "G": 1e9, "T": 1e12, "P": 1e15}


def this_machine() -> Machine:
    """The processors of this machine, as fast as they are now: a few seconds of products and copies."""
    matrix = {64: _rate(768, torch.float64), 32: _rate(1536, torch.float32), 16: _rate(1536, torch.bfloat16)}
    a, b = torch.ones(1 << 24), torch.zeros(1 << 24)
    bandwidth = 2 * 4 * len(a) / _seconds_of(lambda: b.copy_(a))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 16e9
    threads = torch.get_num_threads()
    return Machine(
        "cpu", matrix, bandwidth, float(memory), 1e9, 1e9, bandwidth, together=1, shares=CPU_SHARES, cached=True,
        source=f"measured now, {threads} thread{'s' * (threads > 1)}",
    )  # fmt: skip


def _rate(n: int, dtype: torch.dtype) -> float:
    """Operations a second of a product of matrices (n, n); of smaller ones where that would take long.

    A processor without 16-bit products makes them a hundred times as slowly as 32-bit ones: half a minute for one.
    """
    small = n // 6
    seconds = _seconds_of(_product(small, dtype), 2)
    if seconds * (n / small) ** 3 > SLOW_PRODUCT:
        return 2 * small**3 / seconds
    return 2 * n**3 / _seconds_of(_product(n, dtype))


def _product(n: int, dtype: torch.dtype) -> Callable[[], Any]:
    a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
    out = torch.empty(n, n, dtype=dtype)
    return lambda: torch.mm(a, b, out=out)


def _seconds_of(run: Callable[[], Any], repeats: int = 5) -> float:
    """The fastest of some runs: what the machine can do, whoever else uses it."""
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return best
