"""Multiplications and additions that torch really makes, counted below everything that is run.

Knows: matrix products, by torch's own formulas. Does not know: lenscope; attention kernels, decompositions.
"""

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class CountedFlops(TorchDispatchMode):
    """Within the block, `total` grows by the FLOPs of every matrix product."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out
