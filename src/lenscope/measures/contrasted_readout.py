"""A readout of pairs of states: logits of a run, moved further away from those of a run that it is compared with.

Knows: how two distributions are contrasted, also where the vocabulary is walked in pieces.
Does not know: which runs they are of, how a token is chosen.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.models.readout import Readout, wide

# The largest α. Published ones are 0 to about 2. The larger it is, the more the difference alone decides, and what is
# shown overflows float32 in the end; at this one even logits of a million are far within it.
MOST_CONTRAST = 1000
CONTRAST_RANGE = f"give a number from 0 to {MOST_CONTRAST}, such as 0.5; 0 is no contrast"


@dataclass(frozen=True, eq=False)
class ContrastedReadout:
    """Pairs of last-layer states (N, 2 · D), a run's own beside another's → (1 + α) · own logits - α · the other's.

    BALOR, arXiv 2602.00300, contrasts a patched run with the same run without its patch. It is computed as own + α ·
    (own - other): of two equal states it is bit for bit what they give. A token that the other run cannot say at all
    (its logit is -inf) keeps its own logit.
    """

    readout: Readout
    alpha: float

    @property
    def description(self) -> str:
        """What is applied, in words."""
        return f"(1 + {self.alpha:g}) · logits of a run - {self.alpha:g} · those of another; {self.readout.description}"

    @property
    def splits(self) -> bool:
        """Whether `columns` may be asked for a part of the vocabulary."""
        return self.readout.splits

    def prepare(self, h: Tensor) -> Tensor:
        """(N, 2 · D) → what `columns` takes: both prepared, side by side."""
        return torch.cat([self.readout.prepare(part.contiguous()) for part in h.chunk(2, -1)], -1)

    def columns(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Contrasted logits (N, stop - start) of the tokens start…stop-1, in float32 or wider."""
        return self._contrast(*(self.readout.columns(part.contiguous(), start, stop) for part in x.chunk(2, -1)))

    def tokens(self, x: Tensor, ids: Tensor) -> Tensor:
        """Contrasted logits (N,) of one token per row."""
        return self._contrast(*(self.readout.tokens(part.contiguous(), ids) for part in x.chunk(2, -1)))

    def head(self, ids: Tensor) -> None:
        """None: no one matrix gives them."""

    def finish(self, z: Tensor) -> Tensor:
        """Nothing: what the model does with its logits was done before they were contrasted."""
        return z

    def _contrast(self, own: Tensor, other: Tensor) -> Tensor:
        own, other = wide(own), wide(other)
        return own + self.alpha * (own - other).masked_fill_(other == -torch.inf, 0.0)


def contrasted(readout: Readout, alpha: float) -> Readout:
    """The readout of pairs of states contrasted by `alpha`; for 0 the readout itself, of single states."""
    return ContrastedReadout(readout, alpha) if alpha else readout


def contrast_weight(value: Any) -> float:
    """The α of a contrast as a float; LenscopeError for what is no number from 0 to `MOST_CONTRAST`."""
    try:
        alpha = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        alpha = math.nan
    if not 0 <= alpha <= MOST_CONTRAST:
        raise LenscopeError(f"contrast {value!r}: {CONTRAST_RANGE}")
    return alpha
