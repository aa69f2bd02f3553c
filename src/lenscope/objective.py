"""What translators are trained on: KL(model ‖ lens), over columns of the vocabulary drawn at each step.

Knows: which columns are drawn and how they are weighted, the gradient at translated states, where 16-bit products pay.
Does not know: translators, optimizers, text, several processes.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lenscope.model import LM

# Bytes of logits at once: the passes over a piece find it in the processor's cache.
PIECE = 4 << 20
PIECE_CUDA = 256 << 20


@dataclass(frozen=True, eq=False)
class Columns:
    """Some tokens of the vocabulary: `ids` (k,) and what is added to their logits (k,), so that they stand for all.

    The head's rows of these tokens are gathered once, in the dtype in which they are multiplied.
    """

    ids: Tensor
    added: Tensor
    weight: Tensor | None
    bias: Tensor | None


class Objective:
    """The loss of a lens on states (n, D) translated to the last layer, and its gradient there.

    `columns` tokens are drawn for each step: one half always the most probable under the model's mean distribution
    `mean` (V,), the other half drawn evenly from the rest, with ln(rest / drawn) added to their logits in both
    distributions, so that their sums are estimates without bias. None takes the whole vocabulary, as Belrose et al.
    2023, Eq. 9, do. Products with the head are in bfloat16 where the processor is faster at it (`low`): only
    gradients are made of them, never a number that is reported.
    """

    def __init__(self, lm: LM, mean: Tensor, columns: int | None, seed: int, low: torch.dtype | None = None) -> None:
        self.lm, self.seed = lm, seed
        self.readout = lm.readout
        vocab = lm.vocab_size
        self.columns = None if columns is None or columns >= vocab else columns
        self.order = mean.argsort(descending=True)
        self.low = low

    def draw(self, step: int) -> Columns:
        """The columns of a step: the same ones for the same seed and step."""
        device = self.order.device
        if self.columns is None:
            ids, added = torch.arange(self.lm.vocab_size, device=device), torch.zeros(self.lm.vocab_size, device=device)
        else:
            top = self.columns // 2
            rest, drawn = len(self.order) - top, self.columns - top
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            some = torch.randperm(rest, generator=generator)[:drawn].to(device)
            ids = torch.cat([self.order[:top], self.order[top:][some]])
            added = torch.zeros(len(ids), device=device)
            added[top:] = math.log(rest / drawn)
        found = self.readout.head(ids)
        if found is None:
            return Columns(ids, added, None, None)
        weight, bias = found
        weight = weight.detach() if self.low is None else weight.detach().to(self.low)
        return Columns(ids, added, weight, None if bias is None else bias.detach().float())

    def log_q(self, x: Tensor, columns: Columns) -> Tensor:
        """ln of the distribution over the drawn columns (n, k), in float32, of prepared states x."""
        return self._logits(x, columns).add_(columns.added).log_softmax(-1)

    def target(self, y: Tensor, columns: Columns) -> Tensor:
        """The model's own distribution (n, k) over the drawn columns, from its last layer's states y (n, D)."""
        with torch.no_grad():
            parts = [self.log_q(self.readout.prepare(some), columns).exp_() for some in y.split(self.at_once(columns))]
        return torch.cat(parts)

    def gradient(self, y: Tensor, p: Tensor, columns: Columns) -> tuple[Tensor, Tensor]:
        """For translated states y (n, D): Σ over them of the loss, and its gradient (n, D), both in float32.

        `p` (n, k) is what the lens shall predict: the model's distribution (`target`), or one-hot rows.
        The gradient is that of -Σ p ln q, which is KL's too; the loss is KL(p ‖ q).
        """
        total = torch.zeros((), device=y.device)
        parts = []
        group = self.at_once(columns)
        for some, wanted in zip(y.split(group), p.split(group), strict=True):
            h = some.detach().to(self.lm.dtype).requires_grad_()
            with torch.enable_grad():
                x = self.readout.prepare(h)
                z = self._differentiable(x.detach(), columns) if columns.weight is not None else None
                out = x if z is None else z[1]
                logits = (out[:, columns.ids] if z is None else out).float() + columns.added
            with torch.no_grad():
                log_q = logits.detach().log_softmax(-1)
                total += torch.xlogy(wanted, wanted).sum() - (wanted * log_q).sum()
                pull = log_q.exp_().sub_(wanted)
            if z is None:
                parts.append(torch.autograd.grad(logits, h, pull)[0].float())
                continue
            raw, _ = z
            if logits.requires_grad:
                pull = torch.autograd.grad(logits, raw, pull)[0]
            with torch.no_grad():
                assert columns.weight is not None
                back = pull.to(columns.weight.dtype) @ columns.weight
            parts.append(torch.autograd.grad(x, h, back.to(x.dtype))[0].float())
        return total, torch.cat(parts)

    def at_once(self, columns: Columns) -> int:
        """How many states are decoded together."""
        room = PIECE if self.order.device.type == "cpu" else PIECE_CUDA
        return max(16, room // (4 * len(columns.ids)))

    def _logits(self, x: Tensor, columns: Columns) -> Tensor:
        if columns.weight is None:
            return x[:, columns.ids].float()
        return self.readout.finish(self._product(x, columns))

    def _product(self, x: Tensor, columns: Columns) -> Tensor:
        assert columns.weight is not None
        z = F.linear(x.to(columns.weight.dtype), columns.weight).float()
        return z if columns.bias is None else z.add_(columns.bias)

    def _differentiable(self, x: Tensor, columns: Columns) -> tuple[Tensor, Tensor]:
        """The head's products, and the logits made of them: with a graph between the two only where they differ."""
        with torch.no_grad():
            raw = self._product(x, columns)
        probe = torch.ones(1, device=raw.device)
        if torch.equal(self.readout.finish(probe.clone()), probe):
            return raw, raw
        raw.requires_grad_()
        return raw, self.readout.finish(raw.clone())


def low_precision(lm: LM) -> torch.dtype | None:
    """The 16-bit dtype in which this machine multiplies float32 weights faster, None where there is none."""
    if lm.dtype != torch.float32:
        return None
    if lm.device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    # oneDNN has products of bfloat16 for any x86, slower than those of float32 without this instruction
    known: Callable[[], bool] = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if lm.device.type == "cpu" and known() else None


def reading(lm: LM, low: torch.dtype | None) -> AbstractContextManager[object]:
    """Within the block the model runs with products in `low`, if any."""
    return nullcontext() if low is None else torch.autocast(lm.device.type, low)
