"""How far two ways of computing the same numbers are apart, and up to where that counts as equal.

Knows: deviations in units of spread, how finely each dtype rounds, what modules raise when they are run in a wrong way.
Does not know: models, what is compared.
"""

import torch
from torch import Tensor

# What modules raise when they are run on their own with an input of the wrong kind.
FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)


# The largest `deviation` that counts as equal.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 5e-2}


def deviation(measured: Tensor, expected: Tensor) -> float:
    """The largest |difference|, in standard deviations of what is expected; infinite where the shapes differ.

    16-bit floats round at 2^-8 or 2^-11 of each value, in another order whenever the shape of a batch changes, and a
    state may hold single numbers a hundred times the others: there the root mean square of each row's difference is
    taken, relative to that row's standard deviation, and the worst row counts.
    """
    if measured.shape != expected.shape:
        return float("inf")
    coarse = expected.dtype in (torch.float16, torch.bfloat16)
    # compared on the CPU: not every accelerator has float64
    measured, expected = measured.cpu().double(), expected.cpu().double()
    gap = (measured - expected).abs()
    if coarse:
        return float((gap.square().mean(-1).sqrt() / expected.std(-1).clamp_min(1e-30)).max())
    return float(gap.max() / expected.std().clamp_min(1e-30))
