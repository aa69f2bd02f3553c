"""The closed form: second moments of hidden states and ridge regressions onto the last layer.

Knows: sums over tokens, and what least squares makes of them.
Does not know: models, where states come from, what translators are for.
"""

from collections.abc import Iterable, Sequence

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

    def add(self, parts: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Take in tokens in parts x (n, D + 1), y (n, D); products are made where these are, sums kept where they were.

        Both are moved once, however many parts there are.
        """
        xx, xy = self.xx, self.xy
        for x, y in parts:
            xx, xy = xx.to(x.device), xy.to(x.device)
            xx += x.T @ x
            xy += x.T @ y
        self.xx, self.xy = xx.to(self.xx.device), xy.to(self.xy.device)

    def ridges(self, device: torch.device, ridges: Sequence[float] = RIDGES) -> list[Tensor]:
        """T (D + 1, D) minimising Σ ‖y - x T‖² + ridge · Σ ‖diag(Σ x xᵀ)^½ T‖², for each ridge.

        Solved in float64, on a device: 48 · D² bytes, and 4 · D² for each ridge.
        """
        unit = self.xx.to(device, torch.float64, copy=True)
        scale = unit.diagonal().clamp_min(1e-300).rsqrt()
        # in units of each input's size the penalty is a multiple of the identity
        unit.mul_(scale[:, None]).mul_(scale)
        right = self.xy.to(device, torch.float64, copy=True).mul_(scale[:, None])
        solutions = []
        for ridge in ridges:
            penalised = unit.clone()
            penalised.diagonal().add_(ridge)
            solved = torch.cholesky_solve(right, torch.linalg.cholesky(penalised)).mul_(scale[:, None])
            # LAPACK solves by columns: in rows, as files hold them, products round alike before and after a file
            solutions.append(solved.float().contiguous())
        return solutions

    def best_ridge(self, x: Tensor, y: Tensor, ridges: Sequence[float] = RIDGES) -> Tensor:
        """Of `ridges` the solution T (D + 1, D) that is nearest to states y (n, D) from x (n, D + 1); in float64.

        As many columns are solved for as there are tokens, for each ridge, and all of them for the best alone: with
        fewer tokens than dimensions that is faster than trying whole solutions.
        """
        unit = self.xx.to(torch.float64, copy=True)
        scale = unit.diagonal().clamp_min(1e-300).rsqrt()
        unit.mul_(scale[:, None]).mul_(scale)
        right = self.xy.to(torch.float64, copy=True).mul_(scale[:, None])
        tried = (x.double() * scale).T
        best: tuple[float, Tensor] | None = None
        for ridge in ridges:
            penalised = unit.clone()
            penalised.diagonal().add_(ridge)
            lower = torch.linalg.cholesky(penalised)
            error = float((y - torch.cholesky_solve(tried, lower).T @ right).square().sum())
            if best is None or error < best[0]:
                best = error, lower
        assert best is not None
        return torch.cholesky_solve(right, best[1]).mul_(scale[:, None]).float().contiguous()


def with_constant(h: Tensor, constant: float, dtype: torch.dtype | None = None) -> Tensor:
    """x = [h, c] (n, D + 1), in float32 or another dtype."""
    x = h.new_empty(len(h), h.shape[1] + 1, dtype=dtype or torch.float32)
    x[:, :-1] = h
    x[:, -1] = constant
    return x
