"""Variance explained by what texts bring back, by hand; a reconstructor is any function."""

import numpy as np
import pytest
import torch

from lenscope.errors import LenscopeError
from lenscope.patchscopes.control_runs import NONE, VECTOR
from lenscope.patchscopes.reconstructions import reconstruction_with_controls
from lenscope.patchscopes.with_controls import ControlledTexts

VECTORS = torch.tensor([[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0], [0.0, -3.0]])
TABLE = {str(n): v for n, v in enumerate(VECTORS)} | {"none": torch.zeros(2), "half": torch.tensor([1.5, 0.0])}


def texts():
    own = np.array([["none", "0"], ["none", "1"], ["none", "2"], ["none", "none"]], dtype=object)
    return ControlledTexts(((1, 0), (2, 0)), {VECTOR: own, NONE: np.array([["half"]] * 4, dtype=object)})


def test_shares_by_hand():
    asked = []

    def reconstruct(given):
        asked.append(list(given))
        return torch.stack([TABLE[text] for text in given])

    found = reconstruction_with_controls(texts(), VECTORS, reconstruct, cell=1)
    assert found[VECTOR].value == pytest.approx(1 - 9 / 36)
    assert found[VECTOR].low < 0.75 < found[VECTOR].high
    missing = 1.5**2 + (1.5**2 + 9) * 2 + 4.5**2
    assert found[NONE].value == pytest.approx(1 - missing / 36)
    assert asked == [["0", "1", "2", "none"], ["half"]]
    assert reconstruction_with_controls(texts(), VECTORS, reconstruct)[VECTOR].value == 0
    away = reconstruction_with_controls(texts(), VECTORS, reconstruct, torch.tensor([1.0, 0.0]), cell=1)
    assert away[VECTOR].value == pytest.approx(1 - 9 / (4 + 10 + 16 + 10))


def test_what_does_not_fit_is_refused():
    with pytest.raises(LenscopeError, match="3 vectors, 4 texts"):
        reconstruction_with_controls(texts(), VECTORS[:3], lambda given: torch.zeros(len(given), 2))
    with pytest.raises(LenscopeError, match=r"made \(1, 3\) of 1 texts; it must give \(texts, 2\)"):
        reconstruction_with_controls(texts(), VECTORS, lambda given: torch.zeros(len(given), 3))
