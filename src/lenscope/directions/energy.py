"""The energy of a direction: how far a lens's predictions move when states lose their component along it.

Knows: which lenses read a state as a scale times a linear map, so that logits made once serve every direction, and the
gradient by the direction. Does not know: how directions are searched (causal_basis.py), models beyond their readout.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.lenses.lens import Lens
from lenscope.measures.sampled_kl import SampledKL
from lenscope.measures.streamed import reduce
from lenscope.models.language_model import LM
from lenscope.models.readout import Readout, Traced, wide

# Bytes of logits of all states that are kept, and of a piece that the passes find in the processor's cache.
KEPT_BYTES, PIECE_BYTES = 1 << 30, 2 << 20
# What a factored lens may be off, relative to the head's input.
EXACT = 1e-4

# σ of a unit vector (D,) in nats, and its gradient (D,)
Energy = Callable[[Tensor], tuple[float, Tensor]]


def wide_readout(lm: LM) -> Readout:
    """The model's readout in float32 or wider: a copy where the model is in 16 bits."""
    if wide(torch.empty(0, dtype=lm.dtype)).dtype == lm.dtype:
        return lm.runner.readout
    readout = lm.runner.readout
    if not isinstance(readout, Traced):
        raise LenscopeError(f"{lm.name}: its readout runs in {lm.dtype} only; load it in float32 to extract directions")
    return replace(readout, chain=tuple((name, copy.deepcopy(m).float()) for name, m in readout.chain))


class Site:
    """The states of one layer, h (N, D), and what a lens makes of them; gives energies over any columns."""

    def __init__(self, lens: Lens, readout: Readout, layer: int, h: Tensor, k: int, seed: int) -> None:
        self.lens, self.readout, self.layer, self.h, self.k, self.seed = lens, readout, layer, h, k, seed
        self.mean = h.mean(0)
        self.x = h - self.mean

    def energy(self, columns: int | None) -> Energy:
        """σ over so many drawn columns of the vocabulary; None: over all of it."""
        lm = self.lens.lm
        objective = SampledKL(lm, self._mean_distribution(), columns, self.seed)
        return (
            GeneralEnergy(self, objective) if self.factors is None else FactoredEnergy(self, objective, *self.factors)
        )

    def read(self, h: Tensor) -> Tensor:
        """The head's input (N, D') of states (N, D)."""
        return self.readout.prepare(self.lens.map(h, self.layer))

    @cached_property
    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        """M (D', D + 1) and c (D') of read(h) = c + s(h) M (h, 1), s a number for each state, and what scales logits.

        None where that is not what the lens does, or where logits are more than scaled.
        """
        probe = [float(z) for z in self.readout.finish(torch.tensor([1.0, 1e4]))]
        if not self.readout.splits or abs(probe[1] / probe[0] - 1e4) > 1:
            return None
        zero = torch.zeros_like(self.h[:1])
        try:
            a = _jacobian(lambda h: self.lens.map(h, self.layer), self.h)
            norm = _jacobian(self.readout.prepare, self.h)
        except RuntimeError as error:
            raise LenscopeError(f"{self.lens.name}: has no gradient, which a causal basis needs ({error})") from error
        with torch.no_grad():
            base = self.readout.prepare(zero)[0]
            matrix = torch.cat([norm @ a, (norm @ self.lens.map(zero, self.layer)[0])[:, None]], 1)
            draw = torch.randn(3, self.h.shape[1], generator=torch.Generator().manual_seed(0)).to(self.h)
            v = draw / draw.norm(dim=-1, keepdim=True)
            few = self.h[:64]
            r = torch.cat([few, *(few - (few - self.mean) @ one[:, None] * one for one in v)])
            moved = self.read(r) - base
            m = r @ matrix[:, :-1].T + matrix[:, -1]
            s = torch.linalg.vecdot(moved, m) / torch.linalg.vecdot(m, m)
            off = (moved - s[:, None] * m).norm(dim=-1) / moved.norm(dim=-1)
        return (matrix, base, probe[0]) if bool((off < EXACT).all()) else None

    @torch.no_grad()
    def _mean_distribution(self) -> Tensor:
        vocab = self.lens.lm.vocab_size
        total = torch.zeros(vocab, dtype=self.h.dtype, device=self.h.device)
        for part in self.h.split(64):
            total += wide(self.readout.columns(self.read(part), 0, vocab)).softmax(-1).sum(0)
        return total / len(self.h)


class GeneralEnergy:
    """The energy of a lens of any kind: all logits are made again for every direction."""

    def __init__(self, at: Site, objective: SampledKL) -> None:
        if at.h.dtype != at.lens.lm.dtype:
            raise LenscopeError(
                f"{at.lens.name}: this lens is read in {at.lens.lm.dtype} only; load the model in float32"
            )
        self.at, self.objective = at, objective
        self.columns = objective.draw(0)
        with torch.no_grad():
            self.target = objective.target(at.lens.map(at.h, at.layer), self.columns)

    def __call__(self, v: Tensor) -> tuple[float, Tensor]:
        """σ of a unit vector, and its gradient."""
        at = self.at
        v = v.detach().requires_grad_()
        with torch.enable_grad():
            y = at.lens.map(at.h - (at.x @ v)[:, None] * v, at.layer)
        if not y.requires_grad:
            raise LenscopeError(f"{at.lens.name}: has no gradient, which a causal basis needs")
        total, pull = self.objective.gradient(y.detach(), self.target, self.columns)
        (gradient,) = torch.autograd.grad(y, v, pull.to(y))
        return float(total) / len(y), gradient / len(y)


class FactoredEnergy:
    """The energy where the head's input is c + s(h) M (h, 1).

    Ablated logits are s' (Z - (v·x) W M v) + c', Z = W M (h, 1): of all that is as large as (states × columns), only
    the scale and one row added are new for each direction. Σ p z' needs no pass at all, ln Σ exp z' one.
    """

    def __init__(self, at: Site, objective: SampledKL, matrix: Tensor, base: Tensor, scale: float) -> None:
        self.at, self.offset = at, base
        columns = objective.draw(0)
        assert columns.weight is not None
        self.w = columns.weight.detach().to(at.h) * scale
        bias = 0.0 if columns.bias is None else columns.bias.to(at.h)
        self.base = (columns.weight.to(at.h) @ base + bias) * scale + columns.added.to(at.h)
        self.linear = matrix[:, :-1]
        with torch.no_grad():
            self.m = at.h @ self.linear.T + matrix[:, -1]
            size = self.w.element_size()
            self.rows = max(1, PIECE_BYTES // (len(self.w) * size))
            fits = len(self.m) * len(self.w) * size <= KEPT_BYTES
            self.z = self.m @ self.w.T if fits else None
            x = at.read(at.h) - base
            s = torch.linalg.vecdot(x, self.m) / torch.linalg.vecdot(self.m, self.m)
            self.expected = torch.empty_like(self.m)
            self.known = torch.empty_like(s)
            for part, z in self._pieces():
                log_p = torch.addcmul(self.base, z, s[part, None])
                total = log_p.logsumexp(-1)
                self.expected[part] = log_p.sub_(total[:, None]).exp_() @ self.w
                self.known[part] = s[part] * torch.linalg.vecdot(self.m[part], self.expected[part]) - total

    def __call__(self, v: Tensor) -> tuple[float, Tensor]:
        """σ of a unit vector, and its gradient."""
        at = self.at
        v = v.detach().requires_grad_()
        with torch.enable_grad():
            along = at.x @ v
            w = self.linear @ v
            m = self.m - along[:, None] * w
            x = at.read(at.h - along[:, None] * v) - self.offset
            s = torch.linalg.vecdot(x, m) / torch.linalg.vecdot(m, m)
            predicted = s * torch.linalg.vecdot(m, self.expected)
            shift = -s * along
        with torch.no_grad():
            total, by_s, by_shift, by_u = self._normalisers(s, shift, self.w @ w)
            pull = by_u @ self.w
            energy = float((self.known - predicted + total).cpu().double().mean())
        with torch.enable_grad():
            held = by_s @ s + by_shift @ shift + pull @ w - predicted.sum()
        (gradient,) = torch.autograd.grad(held, v)
        return energy, gradient / len(m)

    def sensitive(self, k: int) -> Tensor:
        """The k directions (k, D) along which logits move most per step: singular vectors of the lens's own head."""
        each = self.w @ self.linear
        values, vectors = torch.linalg.eigh(each.T @ each)
        return vectors[:, values.argsort(descending=True)[:k]].T

    def _normalisers(self, s: Tensor, shift: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """ln Σ exp(s Z + shift u + c) (N,), and the gradient of their sum by s, shift (N,) and u (C,)."""
        total, by_s, by_shift, by_u = torch.empty_like(s), torch.empty_like(s), torch.empty_like(s), torch.zeros_like(u)
        for part, z in self._pieces():
            e = torch.addcmul(self.base, z, s[part, None]).addcmul_(shift[part, None], u)
            top = e.amax(-1)
            e.sub_(top[:, None]).exp_()
            size = e.sum(-1)
            total[part] = top + size.log()
            by_s[part] = torch.linalg.vecdot(e, z) / size
            by_shift[part] = (e @ u) / size
            by_u += (shift[part] / size) @ e
        return total, by_s, by_shift, by_u

    def _pieces(self) -> Iterator[tuple[slice, Tensor]]:
        for at in range(0, len(self.m), self.rows):
            part = slice(at, at + self.rows)
            yield part, self.m[part] @ self.w.T if self.z is None else self.z[part]


def _jacobian(g: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The derivative (D', D) of g at the zero state; of linear maps the map."""
    size = g(torch.zeros_like(like[:1])).shape[-1]
    h = like.new_zeros(size, like.shape[1], requires_grad=True)
    with torch.enable_grad():
        out = g(h)
    (derivative,) = torch.autograd.grad(out, h, torch.eye(size).to(out))
    return derivative


@torch.no_grad()
def energies(lens: Lens, readout: Readout, h: Tensor, ablated: Tensor, layer: int) -> Tensor:
    """KL(lens(h) ‖ lens(h')) in nats of states h (P, D) and k ablated ones h' (k, P, D), over the whole vocabulary.

    Args:
        lens: the lens.
        readout: the readout in which it is computed.
        h: the states (P, D).
        ablated: the ablated ones (k, P, D).
        layer: their layer.
    """
    y = torch.stack([lens.map(one, layer) for one in ablated])
    return reduce(readout, lens.lm.vocab_size, y, lens.map(h, layer), None, 1, False).kl
