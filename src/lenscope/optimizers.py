"""Optimizers of translators: what a step makes of the gradients of all layers.

Knows: Muon, and SGD with Nesterov momentum as in the tuned lens' published recipe; their state, to be saved.
Does not know: models, losses, text, several processes (gradients arrive summed).
"""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Protocol, final

import torch
from torch import Tensor


class Optimizer(Protocol):
    """Changes the weights it was made with; `state` are the tensors that a run needs to go on exactly."""

    state: list[Tensor]

    def step(self, gradients: Sequence[Tensor], decay: float) -> None:
        """One step against the gradients, one per weight; `decay` goes from 1 to 0 over the run."""
        ...


# makes an optimizer of all layers' weights (D + 1, D), the last row being the bias, and of their held-out KL in nats
MakeOptimizer = Callable[[list[Tensor], Sequence[float]], Optimizer]


@final
class Muon:
    """Momentum whose steps have all singular values near 1 (Jordan et al. 2024, "Muon"), in units of each weight.

    A step is rate · decay · rms(W) · orthogonal(momentum), with rms(W) = ‖W‖_F / √D and rate = lr · KL, at most `most`,
    both at the start: so that the same lr serves every model and layer, whatever the size of its states, and a layer
    that has little left to learn is not thrown off. `low` is the dtype of the products, None: float32.
    """

    def __init__(
        self, weights: list[Tensor], kl: Sequence[float], *, lr: float = 0.014, most: float = 0.06,
        momentum: float = 0.8, low: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.weights, self.momentum, self.low = weights, momentum, low
        rates = [min(lr * abs(k), most) if isfinite(k) else most for k in kl]
        sizes = [rate * float(w.norm()) / min(w.shape) ** 0.5 for w, rate in zip(weights, rates, strict=True)]
        self.state = [torch.zeros_like(w) for w in weights] + [torch.tensor(sizes)]

    def step(self, gradients: Sequence[Tensor], decay: float) -> None:
        """One step."""
        sizes = self.state[-1].tolist()
        for w, g, buffer, size in zip(self.weights, gradients, self.state, sizes, strict=False):
            buffer.mul_(self.momentum).add_(g)
            w.sub_(orthogonal(g + self.momentum * buffer, self.low), alpha=decay * size)


@final
class Nesterov:
    """SGD with Nesterov momentum, weight decay towards the start, and one clip of all layers' gradient norm.

    Belrose et al. 2023, §3.1 and their code: base step 1, given to SGD as lr · (1 - momentum); decay of the weights'
    distance from the identity, 1e-3; global norm at most 1.
    """

    def __init__(
        self,
        weights: list[Tensor],
        kl: Sequence[float] = (),
        *,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-3,
        clip: float = 1.0,
    ) -> None:
        self.weights, self.lr, self.momentum, self.weight_decay, self.clip = weights, lr, momentum, weight_decay, clip
        n = len(weights)
        self.state = [torch.zeros_like(w) for w in weights] + [w.clone() for w in weights]
        self.start = self.state[n:]

    def step(self, gradients: Sequence[Tensor], decay: float) -> None:
        """One step."""
        norm = torch.stack([g.norm() for g in gradients]).norm()
        factor = float((self.clip / (norm + 1e-6)).clamp_max(1.0))
        for w, g, buffer, start in zip(self.weights, gradients, self.state, self.start, strict=False):
            pull = g * factor + self.weight_decay * (w - start)
            buffer.mul_(self.momentum).add_(pull)
            w.sub_(pull + self.momentum * buffer, alpha=self.lr * (1 - self.momentum) * decay)


def orthogonal(g: Tensor, low: torch.dtype | None = None, steps: int = 4) -> Tensor:
    """About U Vᵀ of g = U S Vᵀ (R, C): singular values between 0.7 and 1.2, by Newton–Schulz iterations.

    The coefficients are those of Jordan et al. 2024, which raise small singular values fastest. A zero g stays zero.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.T if g.shape[0] > g.shape[1] else g
    x = (x / x.norm().clamp_min(1e-30)).to(low or g.dtype).contiguous()
    for _ in range(steps):
        gram = x @ x.T
        # a + b·gram + c·gram²
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        x = polynomial @ x
    x = x.to(g.dtype)
    return x.T if g.shape[0] > g.shape[1] else x
