"""Optimizers of translators: what a step makes of the gradients of all layers.

Knows: Muon, and SGD with Nesterov momentum as in the tuned lens' published recipe; their state, to be saved.
Does not know: models, losses, text, which process has which layers.
"""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Protocol, final

import torch
from torch import Tensor


class Optimizer(Protocol):
    """Changes the weights it was made with: those of this process's layers, which may be none.

    One that needs numbers of the layers of all processes has an attribute `everywhere`: the function that a run puts
    there makes of the numbers (own layers,) of each process those of all (n_layers,).
    """

    @property
    def state(self) -> Sequence[Sequence[Tensor]]:
        """For each weight the tensors, of one dimension or more, that a run needs to go on exactly."""
        ...

    def step(self, gradients: Sequence[Tensor], decay: float) -> None:
        """One step against the gradients, one per weight; `decay` goes from 1 to 0 over the run."""
        ...


# how large each input (D + 1,) and each output (D,) of a layer's weights is beside the others: root mean squares
Units = tuple[Tensor, Tensor]
# makes an optimizer of the weights (D + 1, D) of a process's layers, the last row being the bias, of their held-out KL
# in nats, and of their units
MakeOptimizer = Callable[[list[Tensor], Sequence[float], Sequence[Units]], Optimizer]


@final
class Muon:
    """Momentum whose steps have all singular values near 1 (Jordan et al. 2024, "Muon"), in units of what is mapped.

    Weights are changed as W' = diag(inputs) W diag(outputs)⁻¹, whose inputs and outputs are of one size, so that
    neither a few large numbers of a state nor many small ones decide how large a step is. A step is rate · decay ·
    rms(W') · orthogonal(momentum), with rms(W') = ‖W'‖_F / √D and rate = lr · KL, at most `most`, both at the start:
    the same lr serves every model and layer, and a layer that has little left to learn is not thrown off. Without
    `units` all are 1. `low` is the dtype of the products, None: float32.
    """

    def __init__(
        self, weights: list[Tensor], kl: Sequence[float], units: Sequence[Units] = (), *, lr: float = 0.017,
        most: float = 0.075, momentum: float = 0.8, low: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.weights, self.momentum, self.low = weights, momentum, low
        scales = [(u.clone(), v.clone()) for u, v in units] or [
            (w.new_ones(len(w)), w.new_ones(w.shape[1])) for w in weights
        ]
        rates = [min(lr * abs(k), most) if isfinite(k) else most for k in kl]
        sizes = [
            rate * float((w * u[:, None] / v).norm()) / min(w.shape) ** 0.5
            for w, (u, v), rate in zip(weights, scales, rates, strict=True)
        ]
        self.state = [
            (torch.zeros_like(w), u, v, torch.tensor([size]))
            for w, (u, v), size in zip(weights, scales, sizes, strict=True)
        ]

    def step(self, gradients: Sequence[Tensor], decay: float) -> None:
        """One step."""
        for w, g, (buffer, u, v, size) in zip(self.weights, gradients, self.state, strict=True):
            # of W': the gradient; a step of W' is one of W by the same ratio
            ratio = v / u[:, None]
            pull = g * ratio
            buffer.mul_(self.momentum).add_(pull)
            w.sub_(orthogonal(pull.add_(buffer, alpha=self.momentum), self.low) * ratio, alpha=decay * size.item())


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
        units: Sequence[Units] = (),
        *,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-3,
        clip: float = 1.0,
    ) -> None:
        self.weights, self.lr, self.momentum, self.weight_decay, self.clip = weights, lr, momentum, weight_decay, clip
        # momentum, and where the weights began
        self.state = [(torch.zeros_like(w), w.clone()) for w in weights]
        # of one process that has all layers
        self.everywhere: Callable[[Tensor], Tensor] = torch.clone

    def step(self, gradients: Sequence[Tensor], decay: float) -> None:
        """One step."""
        norms = torch.stack([g.norm() for g in gradients]) if gradients else torch.zeros(0)
        norm = self.everywhere(norms).norm()
        factor = float((self.clip / (norm + 1e-6)).clamp_max(1.0))
        for w, g, (buffer, start) in zip(self.weights, gradients, self.state, strict=True):
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
