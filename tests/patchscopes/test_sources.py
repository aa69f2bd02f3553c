"""Sources of patches: vectors with and without an address."""

import numpy as np
import pytest
import torch

import lenscope as ls
from lenscope.mappings.mapping import Scale
from lenscope.models import same_model


def test_vectors_without_address_go_through_a_mapping_that_is_the_same_everywhere(lm64):
    model = same_model.model_identity(lm64)
    vectors = torch.randn(2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    b = torch.randn(32, generator=torch.Generator().manual_seed(1))
    same = Scale({None: (0.5, b)}, model, model)
    got = ls.Patchscope(lm64, ls.Target("the cat x"), same).predict(vectors, [1, 3])
    own = ls.Patchscope(lm64, ls.Target("the cat x")).predict(vectors / 2 + b, [1, 3])
    np.testing.assert_allclose(got.log_probs, own.log_probs, atol=1e-6)
    assert np.array_equal(got.ids, own.ids)
    plain = ls.Patchscope(lm64, ls.Target("the cat x")).predict(vectors, [1, 3])
    assert not np.allclose(got.log_probs, plain.log_probs, atol=1e-3)
    for weights in ({None: (0.5,), (1, 3): (2.0,)}, {(0, 1): (0.5,), (0, 3): (0.5,)}):
        with pytest.raises(ls.LenscopeError, match="give HiddenStates, not vectors"):
            ls.Patchscope(lm64, ls.Target("the cat x"), Scale(weights, model, model)).predict(vectors, [1, 3])
