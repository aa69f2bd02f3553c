"""How much of vectors comes back from what was said of them: variance explained, beside every control's texts.

Knows: which texts are reconstructed, from what vectors, and what their variance is compared with.
Does not know: how a text becomes a vector; it is given a function that does that.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.models.edits import as_vectors
from lenscope.patchscopes.with_controls import ControlledTexts
from lenscope.statistics.estimates import variance_explained
from lenscope.statistics.intervals import Estimate

# texts (N,) → the vectors (N, D) that they are taken to describe
Reconstruct = Callable[[Sequence[str]], Tensor]


def reconstruction_with_controls(
    texts: ControlledTexts,
    vectors: Tensor,
    reconstruct: Reconstruct,
    center: Tensor | None = None,
    *,
    cell: int = 0,
    units: Sequence[Any] | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """The share of the variance of N vectors that comes back from what was said of them, by way of telling.

    It is 1 - Σ ‖v - v'‖² / Σ ‖v - c‖² of natural language autoencoders. "mean vector" and the other controls say what a
    text that is not about the vector brings back: a text that only says what all vectors have in common can have more
    than 0 where the center is not theirs.

    Args:
        texts: what was said of the vectors and in every control, as `generate_with_controls` gives it.
        vectors: the vectors, (N, D).
        reconstruct: gives texts (N,) their vectors (N, D).
        center: c, (D,), the mean of the vectors that the reconstructor was trained on; None: that of these.
        cell: the number of the cell whose texts are taken, of ways that have several.
        units: what each vector belongs to, and is resampled with.
        seed: fixes the intervals.

    Raises LenscopeError where there are not as many vectors as texts, or they are of another size.
    """
    own = as_vectors(vectors, "vectors").double().cpu()
    middle = None if center is None else as_vectors(center, "center").double().cpu().numpy()
    shares: dict[str, Estimate] = {}
    for way, table in texts.texts.items():
        if len(table) != len(own):
            raise LenscopeError(f"{len(own)} vectors, {len(table)} texts: give one vector for each text")
        column = [str(text) for text in table[:, cell if table.shape[1] > 1 else 0]]
        # the same text is read once
        distinct = list(dict.fromkeys(column))
        with torch.no_grad():
            rebuilt = as_vectors(reconstruct(distinct), "reconstruct").double().cpu().numpy()
        if rebuilt.shape != (len(distinct), own.shape[1]):
            raise LenscopeError(
                f"reconstruct: made {rebuilt.shape} of {len(distinct)} texts; it must give (texts, {own.shape[1]})"
            )
        back = rebuilt[[distinct.index(text) for text in column]]
        shares[way] = variance_explained(np.asarray(own.numpy()), back, middle, units=units, seed=seed)
    return shares
