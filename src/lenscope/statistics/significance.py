"""p-values of paired differences, and their correction for the number of tests.

Knows: flips of signs, whole units among them, and Holm's correction. Does not know: what is compared.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lenscope.errors import LenscopeError
from lenscope.statistics.estimates import difference


def sign_flips(differences: ArrayLike, *, seed: int = 0, resamples: int = 10_000) -> float:
    """Test whether paired differences (n,) have mean 0, by flipping their signs at random: the two-sided p-value."""
    values = np.asarray(differences, dtype=float)
    if not len(values):
        raise LenscopeError("differences: none given")
    random = np.random.default_rng(seed)
    observed = abs(values.mean()) * (1 - 1e-12)
    flips = random.integers(0, 2, (resamples, len(values))) * 2.0 - 1
    return float((1 + (np.abs(flips @ values / len(values)) >= observed).sum()) / (1 + resamples))


def holm(p: Sequence[float]) -> list[float]:
    """Correct the p-values of several tests for their number (Holm 1979); they come back in the order given."""
    values = np.asarray(p, dtype=float)
    order = np.argsort(values)
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(stepped, 1)
    return [float(v) for v in corrected]


def paired_tests(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray, Sequence[Any] | None]], seed: int = 0
) -> list[dict[str, Any]]:
    """A row for each named pair of scores (n,) of the same items: the paired difference, its p, and p after Holm.

    Each comes with the units of its items, or None: signs are flipped by unit, of whose differences sums are taken.
    """
    rows: list[dict[str, Any]] = []
    for name, (a, b, units) in pairs.items():
        differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
        _, unit = np.unique(np.arange(len(differences)) if units is None else np.asarray(units), return_inverse=True)
        p = sign_flips(np.bincount(unit, differences), seed=seed)
        rows.append({"comparison": name, "difference": difference(a, b, units=units, seed=seed), "p": p})
    corrected = holm([row["p"] for row in rows]) if rows else []
    return [{**row, "p (Holm)": p} for row, p in zip(rows, corrected, strict=True)]
