"""Derangements: every item gets one of another group, none twice."""

from collections import Counter

import numpy as np
import pytest

from lenscope.errors import LenscopeError
from lenscope.statistics.derangements import derange


def test_exchanges_never_stay_in_the_group() -> None:
    random = np.random.default_rng(0)
    for seed in range(200):
        groups = random.integers(0, random.integers(2, 6), size=random.integers(2, 12)).tolist()
        if 2 * Counter(groups).most_common(1)[0][1] > len(groups):
            with pytest.raises(LenscopeError, match="at most half"):
                derange(groups, seed)
            continue
        taken = derange(groups, seed)
        assert sorted(taken) == list(range(len(groups)))
        assert all(groups[a] != groups[b] for a, b in enumerate(taken))
