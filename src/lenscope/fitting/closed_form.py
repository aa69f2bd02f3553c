"""The closed form: second moments of hidden states and ridge regressions onto the last layer.

Knows: sums over tokens, and what least squares makes of them.
Does not know: models, where states come from, what translators are for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)


class SecondMoments:
    """Σ x xᵀ and Σ x yᵀ over tokens, with x = [h, c], h (n, D) the states of a layer and y (n, D) the last layer's.

    c, the constant, is the root mean square of the first states' elements, so that the bias is a number of the same
    size as other weights whatever the size of the states.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.xx = torch.zeros(size + 1, size + 1, device=device)
        self.xy = torch.zeros(size + 1, size, device=device)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in tokens: x (n, D + 1), y (n, D)."""
        self.xx += x.T @ x
        self.xy += x.T @ y

    def ridges(self, ridges: Sequence[float] = RIDGES) -> list[Tensor]:
        """T (D + 1, D) minimising Σ ‖y - x T‖² + ridge · Σ ‖diag(Σ x xᵀ)^½ T‖², for each ridge; solved in float64."""
        xx, xy = self.xx.double(), self.xy.double()
        scale = xx.diagonal().clamp_min(1e-300).rsqrt()
        # in units of each input's size the penalty is a multiple of the identity
        unit = xx * scale[:, None] * scale
        solutions = []
        for ridge in ridges:
            eye = ridge * torch.eye(len(unit), dtype=unit.dtype, device=unit.device)
            lower = torch.linalg.cholesky(unit + eye)
            solved = torch.cholesky_solve(xy * scale[:, None], lower) * scale[:, None]
            # LAPACK solves by columns: in rows, as files hold them, products round alike before and after a file
            solutions.append(solved.float().contiguous())
        return solutions


def with_constant(h: Tensor, constant: float, dtype: torch.dtype | None = None) -> Tensor:
    """x = [h, c] (n, D + 1), in float32 or another dtype."""
    x = h.new_empty(len(h), h.shape[1] + 1, dtype=dtype or torch.float32)
    x[:, :-1] = h
    x[:, -1] = constant
    return x
