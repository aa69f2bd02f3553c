"""What translators are trained on: KL(model ‖ lens), over columns of the vocabulary drawn at each step.

Knows: which columns are drawn and how they are weighted, the gradient at translated states, where 16-bit products pay.
Does not know: translators, optimizers, text, several processes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from lenscope.contents import Brief
from lenscope.models.language_model import LM
from lenscope.models.readout import wide

# Bytes of logits at once: the passes over a piece find it in the processor's cache.
PIECE_BYTES = 4 << 20
PIECE_BYTES_CUDA = 256 << 20
# The gradient is this much larger on its way through a float16 model, whose smallest number is 6e-8.
FLOAT16_GRADIENT_SCALE = 256.0


@dataclass(frozen=True, eq=False, repr=False)
class Columns(Brief):
    """Some tokens of the vocabulary: `ids` (k,) and what is added to their logits (k,), so that they stand for all.

    The head's rows of these tokens are gathered once, in the dtype in which they are multiplied.
    """

    ids: Tensor
    added: Tensor
    weight: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True, eq=False, repr=False)
class Expected(Brief):
    """The model's own distributions `p` (n, k) over drawn columns, and `information` (n,), Σ p ln p of each."""

    p: Tensor
    information: Tensor

    def split(self, size: int) -> "list[Expected]":
        """In pieces of so many states."""
        pieces = zip(self.p.split(size), self.information.split(size), strict=True)
        return [Expected(p, information) for p, information in pieces]


class SampledKL:
    """The loss of a lens on states (n, D) translated to the last layer, and its gradient there.

    `columns` tokens are drawn for each step: one half always the most probable under the model's mean distribution
    `mean` (V,), the other half drawn evenly from the rest, with ln(rest / drawn) added to their logits in both
    distributions, so that their sums are estimates without bias. None takes the whole vocabulary, as Belrose et al.
    2023, Eq. 9, do. With `next_token` the target is the token that comes next in the text, over the whole vocabulary:
    cross-entropy, their other loss. Products with the head are in bfloat16 where the processor is faster at it (`low`):
    only gradients are made of them, never a number that is reported.
    """

    def __init__(
        self, lm: LM, mean: Tensor, columns: int | None, seed: int, low: torch.dtype | None = None, *,
        next_token: bool = False,
    ) -> None:  # fmt: skip
        self.lm, self.seed, self.low, self.next_token = lm, seed, low, next_token
        self.readout = lm.runner.readout
        self.dtype = wide(torch.empty(0, dtype=lm.dtype)).dtype
        self.columns = None if columns is None or columns >= lm.vocab_size else columns
        order = mean.argsort(descending=True)
        top = (self.columns or 0) // 2
        # in the order of their ids: where probabilities meet, rounding does not change what is drawn
        self.top, self.rest = order[:top].sort().values, order[top:].sort().values
        # below a cap the first is kept, above it the second is not
        probe = torch.tensor([1.0, 1e4], device=order.device)
        self.plain = torch.equal(self.readout.finish(probe.clone()), probe)

    def draw(self, step: int) -> Columns:
        """The columns of a step: the same ones for the same seed and step."""
        ids, correction = self.rest, 0.0
        if self.columns is not None:
            drawn = self.columns - len(self.top)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            more = torch.randperm(len(self.rest), generator=generator)[:drawn].to(self.rest.device)
            ids, correction = torch.cat([self.top, self.rest[more]]), math.log(len(self.rest) / drawn)
        added = torch.zeros(len(ids), dtype=self.dtype, device=ids.device)
        added[len(self.top) :] = correction
        head = self.readout.head(ids)
        if head is None:
            return Columns(ids, added, None, None)
        weight, bias = head
        weight = weight.detach() if self.low is None else weight.detach().to(self.low)
        return Columns(ids, added, weight, None if bias is None else wide(bias.detach()))

    def log_q(self, y: Tensor, columns: Columns) -> Tensor:
        """ln of the distribution (n, k) over the drawn columns, in float32 or wider, of a few states y (n, D)."""
        with torch.no_grad():
            raw = self._product(self.readout.prepare(y.to(self.lm.dtype)), columns)
            return self.readout.finish(raw).add_(columns.added).log_softmax(-1)

    def target(self, y: Tensor, columns: Columns) -> Expected:
        """The model's own distributions over the drawn columns, from its last layer's states y (n, D)."""
        p = columns.added.new_empty(len(y), len(columns.ids))
        size = self._at_once(columns)
        for part, out in zip(y.split(size), p.split(size), strict=True):
            if len(part):
                out.copy_(self.log_q(part, columns).exp_())
        return Expected(p, torch.xlogy(p, p).sum(-1))

    def following(self, ids: Tensor) -> Expected:
        """The target where token ids (n,) are what came next, over the whole vocabulary."""
        one = torch.ones(len(ids), 1, dtype=self.dtype, device=ids.device)
        p = one.new_zeros(len(ids), self.lm.vocab_size).scatter_(1, ids[:, None], one)
        return Expected(p, one.new_zeros(len(ids)))

    def loss(self, y: Tensor, target: Expected, columns: Columns) -> Tensor:
        """Σ KL(model ‖ lens) over translated states y (n, D), with what `target` found."""
        total = columns.added.new_zeros(())
        group = self._at_once(columns)
        for part, wanted in zip(y.split(group), target.split(group), strict=True):
            if len(part):
                total += _divergence(wanted, self.log_q(part, columns))
        return total

    def gradient(self, y: Tensor, target: Expected, columns: Columns) -> tuple[Tensor, Tensor]:
        """For translated states y (n, D): Σ KL(model ‖ lens), and its gradient (n, D), both in float32 or wider."""
        total = columns.added.new_zeros(())
        out = torch.empty(y.shape, dtype=total.dtype, device=y.device)
        group = self._at_once(columns)
        for part, wanted, pulled in zip(y.split(group), target.split(group), out.split(group), strict=True):
            if len(part):
                total += self._pull(part, wanted, columns, pulled)
        return total, out

    def _pull(self, y: Tensor, target: Expected, columns: Columns, out: Tensor) -> Tensor:
        """The loss of a few states, and in `out` its gradient."""
        h = y.detach().to(self.lm.dtype).requires_grad_()
        with torch.enable_grad():
            x = self.readout.prepare(h)
        with torch.no_grad():
            raw = self._product(x.detach(), columns)
        logits = raw
        if not self.plain:
            raw.requires_grad_()
            # a soft cap works in place, also on what its derivative needs
            with torch.enable_grad(), saved_tensors_hooks(torch.clone, lambda t: t):
                logits = self.readout.finish(raw.clone())
        with torch.no_grad():
            log_q = (logits.detach() + columns.added).log_softmax(-1)
            total = _divergence(target, log_q)
            pull = log_q.exp_().sub_(target.p)
        if not self.plain:
            pull = torch.autograd.grad(logits, raw, pull)[0]
        loud = FLOAT16_GRADIENT_SCALE if self.lm.dtype == torch.float16 else 1.0
        with torch.no_grad():
            pull = pull.mul_(loud)
            if columns.weight is not None:
                back = (pull.to(columns.weight.dtype) @ columns.weight).to(x.dtype)
            else:
                # what `prepare` returns are the logits of all tokens
                back = torch.zeros_like(x).index_copy_(1, columns.ids, pull.to(x.dtype))
        out.copy_(torch.autograd.grad(x, h, back)[0]).div_(loud)
        return total

    def _product(self, x: Tensor, columns: Columns) -> Tensor:
        if columns.weight is None:
            return wide(x[:, columns.ids])
        z = wide(F.linear(x.to(columns.weight.dtype), columns.weight))
        return z if columns.bias is None else z.add_(columns.bias)

    def _at_once(self, columns: Columns) -> int:
        """How many states are decoded together."""
        room = PIECE_BYTES if columns.ids.device.type == "cpu" else PIECE_BYTES_CUDA
        width = len(columns.ids) if columns.weight is not None else self.lm.vocab_size
        # fewer rows would wait for the head to come from memory
        return max(64, room // (4 * width))


def _divergence(target: Expected, log_q: Tensor) -> Tensor:
    """Σ KL(p ‖ q)."""
    return target.information.sum() - torch.linalg.vecdot(target.p, log_q).sum()
