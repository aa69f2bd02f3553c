"""How hidden states vary at each layer: their covariances from a stream of text, and how alike those of layers are.

Knows: exact pooling of parts of a text, what Frobenius cosines and rogue components are.
Does not know: which positions count (predictions.py), what resamples are for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.models.language_model import LM
from lenscope.models.layers import check_layers
from lenscope.models.progress import Progress
from lenscope.text.predictions import TextRows, predictions


@dataclass(frozen=True, eq=False)
class Covariances:
    """Means (L, D) and covariances (L, D, D) of the states of `layers`, float64, over `count` positions.

    Covariances are divided by `count`, not by one less.
    """

    layers: tuple[int, ...]
    count: float
    means: Tensor
    matrices: Tensor

    def __repr__(self) -> str:
        return f"Covariances({len(self.layers)} layers, D {self.means.shape[1]}, {self.count:g} positions)"


def covariances(
    lm: LM, rows: TextRows, layers: Sequence[int] | None = None, *, progress: Progress | None = None
) -> Covariances:
    """The covariances of hidden states over text, read once: no states are stored.

    `rows` are texts, rows of token ids or batches of a corpus, as `lenscope.evaluate` takes them, and the same
    positions count: those that predict a next token, but for position 0 of a text and marks (a sink would outweigh all
    others), of a corpus those in `counted`. `layers` default to all, 0…n_layers. Sums are centred batch by batch, in
    float64 on the CPU. Memory: 16 · L · D² bytes. Raises LenscopeError for text without a prediction and layers out of
    range.
    """
    numbers = check_layers(range(lm.n_layers + 1) if layers is None else layers, lm.n_layers, lm.name)
    size = lm.hidden_size
    means = torch.zeros(len(numbers), size, dtype=torch.float64)
    scatter = torch.zeros(len(numbers), size, size, dtype=torch.float64)
    count = 0
    for batch in predictions(lm, rows, numbers, progress):
        new = len(batch.targets)
        for n in range(len(numbers)):
            h = batch.h[:, n].cpu().double()
            own = h.mean(0)
            apart = own - means[n]
            # Σ (h - m)(h - m)ᵀ of both together (Chan, Golub & LeVeque 1983, Eq. 2.1)
            scatter[n].addmm_((h - own).T, h - own)
            scatter[n].addr_(apart, apart, alpha=count * new / (count + new))
            means[n] += apart * (new / (count + new))
        count += new
    return Covariances(numbers, count, means, scatter.div_(count))


def pool_covariances(parts: Sequence[Covariances], weights: Sequence[float] | None = None) -> Covariances:
    """The covariances of several parts of a text together, each taken `weights` times (by default once).

    Exactly what the parts' positions give when read as one text. Raises LenscopeError for parts of different layers,
    and for weights that are negative or all zero.
    """
    times = [1.0] * len(parts) if weights is None else [float(w) for w in weights]
    if len(times) != len(parts) or min(times, default=0) < 0 or not sum(times):
        raise LenscopeError(f"weights {times} of {len(parts)} parts: give one of each, from 0 on, not all 0")
    if len({p.layers for p in parts}) > 1:
        raise LenscopeError("parts: are of different layers; pool covariances of the same layers")
    used = [(p, w * p.count) for p, w in zip(parts, times, strict=True) if w]
    count = sum(n for _, n in used)
    means = torch.zeros_like(parts[0].means)
    for p, n in used:
        means.add_(p.means, alpha=n / count)
    matrices = torch.zeros_like(parts[0].matrices)
    for p, n in used:
        matrices.add_(p.matrices, alpha=n / count)
        apart = p.means - means
        matrices.baddbmm_(apart[:, :, None], apart[:, None, :], alpha=n / count)
    return Covariances(parts[0].layers, count, means, matrices)


def largest_components(matrices: Tensor, top: int = 2) -> tuple[Tensor, Tensor]:
    """The `top` largest eigenvalues (L, top), largest first, and their eigenvectors (L, D, top), of (L, D, D)."""
    size = matrices.shape[-1]
    if not 0 <= top <= size:
        raise LenscopeError(f"top {top}: covariances of size {size} have 0–{size} components")
    cosines = [
        eigh(m.numpy(), subset_by_index=[size - top, size - 1]) if top else (np.zeros(0), np.zeros((size, 0)))
        for m in matrices
    ]
    values, vectors = (torch.from_numpy(np.stack([f[n] for f in cosines])) for n in (0, 1))
    return values.flip(-1), vectors.flip(-1)


def trimmed(matrices: Tensor, top: int = 2) -> Tensor:
    """Covariances (L, D, D) with their `top` largest eigencomponents set to zero.

    Few directions, the rogue dimensions, can outweigh all others in variance (Timkey & van Schijndel 2021); Belrose et
    al. 2023, §3 and Fig. 6, zero the first two. Raises LenscopeError for more components than there are.
    """
    values, vectors = largest_components(matrices, top)
    return matrices - (vectors * values[:, None, :]) @ vectors.transpose(1, 2)


def covariance_similarity(matrices: Tensor) -> np.ndarray:
    """How alike covariances (L, D, D) are, (L, L): their Frobenius cosine tr(A B) / (‖A‖ ‖B‖), 0–1.

    Belrose et al. 2023, Fig. 6. NaN where one is zero.
    """
    flat = matrices.flatten(1)
    inner = flat @ flat.T
    # exactly symmetric, and 1 of a layer with itself: ranks of cells are not to turn on rounding
    inner = (inner + inner.T) / 2
    size = inner.diagonal()
    return (inner / (size[:, None] * size).sqrt()).numpy()
