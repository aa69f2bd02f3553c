"""In which precision products of a model's weights are computed where speed matters more than the last digits.

Knows: which 16-bit dtype this machine multiplies faster than float32, and how that is switched off.
Does not know: what is computed.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from lenscope.errors import LenscopeError
from lenscope.models.language_model import LM

# The variable of the environment that switches products in 16 bits off (0) or on (1), whatever the processor has: so a
# fit can be tried on any machine as it runs on all others.
SWITCH = "LENSCOPE_FAST_PRODUCTS"


def low_precision(lm: LM) -> torch.dtype | None:
    """The 16-bit dtype in which products of a float32 model's weights are faster here, None where there is none."""
    return fast_products(lm) if lm.dtype == torch.float32 else None


def fast_products(lm: LM) -> torch.dtype | None:
    """The 16-bit dtype in which this machine multiplies float32 numbers faster, None where there is none.

    LENSCOPE_FAST_PRODUCTS in the environment says it instead of the machine: 0 is None everywhere, 1 is bfloat16.
    Raises LenscopeError for other values.
    """
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "0", "1"):
        raise LenscopeError(f"{SWITCH} {switch!r}: set it to 0 or 1, or leave it out")
    if switch == "0" or lm.dtype == torch.float64:
        return None
    if switch == "1":
        return torch.bfloat16
    if lm.device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    # oneDNN has products of bfloat16 for any x86, slower than those of float32 without this instruction
    known: Callable[[], bool] = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if lm.device.type == "cpu" and known() else None


def half_precision(lm: LM, low: torch.dtype | None) -> AbstractContextManager[object]:
    """Within the block the model runs with products in `low`, if any."""
    return nullcontext() if low is None else torch.autocast(lm.device.type, low)
