"""A Jacobian lens of few prompts, drawn towards cheaper estimates as far as that brings it nearer to other prompts.

Knows: the cheap estimates (the layers beside, the regression onto the last layer), the weight that two halves of the
prompts say, the test on held-out prompts. Does not know: which prompts these are, how their Jacobians are had.

A mean over n prompts errs by noise / n; an estimate with less noise errs by what it is biased. The weight
w = E⟨noise, X - C⟩ / E‖X - C‖² of C in (1 - w) X + w C is estimated from halves A and B, whose noise is independent
(James and Stein 1961 in the form of Stein's shrinkage toward a target). It is used where held-out prompts, which took
no part in it, say with 95 % that the error becomes less.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor

# Random directions of the logits in which held-out prompts are differentiated, and how many prompts these are.
PROBES, PROMPTS = 32, 8
# Held-out states that errors are measured on.
STATES = 256


@dataclass(frozen=True, eq=False)
class HeldOutJacobians:
    """Rows of the Jacobians of held-out prompts, and the states on which they are compared.

    Args:
        probes: directions z of the last state, (m, D).
        rows: zᵀ J of each prompt and layer, (prompts, L, m, D).
        states: for each layer, (L, N, D).
    """

    probes: Tensor
    rows: Tensor
    states: Tensor

    def seen(self, matrices: Tensor, layer: int) -> Tensor:
        """What a matrix (D, D) of a layer makes of the states, in the directions of the probes: (m, N)."""
        return self.probes @ matrices @ self.states[layer].T


def shrunk(
    first: Sequence[Tensor] | Tensor,
    second: Sequence[Tensor] | Tensor,
    mean: Sequence[Tensor] | Tensor,
    regression: Sequence[Tensor] | Tensor | None,
    held: HeldOutJacobians,
    out: Tensor | None = None,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """The mean Jacobians (L, D, D), each drawn towards a cheaper estimate where that helps, and what was done to each.

    Rows of the second result: "towards" (None: left as it is), "weight", and "error_change", the change of the squared
    error on held-out prompts relative to the size of what is read there, with its interval.

    Args:
        first: the mean Jacobians of one half of the prompts, (L, D, D), or a matrix of each layer as it is asked for.
        second: those of the other half.
        mean: those of all prompts.
        regression: least squares of the last layer's states on each layer's, (L, D, D), if known.
        held: what held-out prompts say.
        out: where the first result is put, (L, D, D); None: a new tensor.
    """
    layers, rows = len(mean), []
    out = torch.stack([mean[n] for n in range(layers)]) if out is None else out
    for layer in range(layers):
        best: tuple[float, dict[str, Any], Tensor] | None = None
        plain = mean[layer]
        x = held.seen(plain, layer)
        for name, a_cheap, b_cheap, cheap in _cheaper(first, second, mean, regression, layer):
            weight = _shrinkage_weight(
                held.seen(first[layer], layer), held.seen(second[layer], layer), held.seen(a_cheap, layer),
                held.seen(b_cheap, layer),
            )  # fmt: skip
            if weight <= 0:
                continue
            tried = (1 - weight) * plain + weight * cheap
            change = _error_change(x, held.seen(tried, layer), held, layer)
            if change[2] < 0 and (best is None or change[0] < best[0]):
                row = {
                    "towards": name,
                    "weight": weight,
                    "error_change": change[0],
                    "error_change_95": list(change[1:]),
                }
                best = change[0], row, tried
        if best is None:
            rows.append({"towards": None, "weight": 0.0, "error_change": 0.0, "error_change_95": [0.0, 0.0]})
            out[layer] = plain
        else:
            rows.append(best[1])
            out[layer] = best[2]
    return out, rows


def _cheaper(
    first: Sequence[Tensor] | Tensor,
    second: Sequence[Tensor] | Tensor,
    mean: Sequence[Tensor] | Tensor,
    regression: Sequence[Tensor] | Tensor | None,
    layer: int,
) -> list[tuple[str, Tensor, Tensor, Tensor]]:
    """Estimates for a layer: a name, what each half gives, what both give."""
    one = torch.eye(mean[0].shape[-1], device=mean[0].device, dtype=mean[0].dtype)

    def at(matrices: Sequence[Tensor] | Tensor, n: int) -> Tensor:
        return matrices[n] if n < len(matrices) else one

    ways = [("the layer above", [at(j, layer + 1) for j in (first, second, mean)])]
    if layer:
        ways.append(("the layers beside", [(j[layer - 1] + at(j, layer + 1)) / 2 for j in (first, second, mean)]))
    if regression is not None:
        ways.append(("the regression", [regression[layer]] * 3))
    return [(name, a, b, both) for name, (a, b, both) in ways]


def _shrinkage_weight(a: Tensor, b: Tensor, a_cheap: Tensor, b_cheap: Tensor) -> float:
    """The weight of the cheap estimate beside the mean of both halves, from what the halves and theirs give."""
    gap_a, gap_b = a - a_cheap, b - b_cheap
    noise = float(((a - b) * (gap_a - gap_b)).sum()) / 2
    far = float(gap_a.square().sum() + gap_b.square().sum()) / 2
    # of both halves together: half the noise, in what is to be had and in how far apart they seem
    far -= float((gap_a - gap_b).square().sum()) / 4
    return min(1.0, max(0.0, noise / 2 / max(far, 1e-30)))


def _error_change(x: Tensor, tried: Tensor, held: HeldOutJacobians, layer: int) -> tuple[float, float, float]:
    """Squared error of `tried` less that of x, relative to ‖x‖²: the mean over held-out prompts and its 95 % interval.

    The prompts' own Jacobians scatter around the true mean; that scatter is the same in both errors.
    """
    truth = held.rows[:, layer] @ held.states[layer].T
    size = float(x.square().sum())
    each = ((tried - truth).square() - (x - truth).square()).flatten(1).sum(1).double() / max(size, 1e-30)
    mean, count = float(each.mean()), len(each)
    if count < 2:
        return mean, float("-inf"), float("inf")
    reach = float(student.ppf(0.975, count - 1)) * float(each.std()) / sqrt(count)
    return mean, mean - reach, mean + reach
