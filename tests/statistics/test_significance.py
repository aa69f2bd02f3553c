"""Corrected p-values and sign flips equal their definitions."""

from itertools import product

import numpy as np
import pytest

from lenscope.errors import LenscopeError
from lenscope.statistics.intervals import group_difference
from lenscope.statistics.significance import holm, paired_tests, sign_flips


def random(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        # Holm 1979: ordered p times n, n - 1, …, each at least the one before
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.2], [0.2]),
        ([0.5, 0.6, 0.9], [1.0, 1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holm_by_hand(p, expected):
    assert holm(p) == pytest.approx(expected, abs=1e-12)


def test_holm_keeps_what_bonferroni_rejects():
    p = random(7).random(20) ** 4
    corrected = np.array(holm(p))
    assert (corrected <= np.minimum(1, p * 20) + 1e-12).all()
    assert (corrected >= p).all()
    assert (np.diff(corrected[np.argsort(p)]) >= 0).all()


def test_sign_flips_is_the_exact_test():
    values = random(8).normal(size=10) + 0.5
    flips = np.array(list(product([-1, 1], repeat=10)))
    exact = (np.abs((flips * values).mean(1)) >= abs(values.mean()) - 1e-12).mean()
    assert sign_flips(values, resamples=40_000) == pytest.approx(exact, abs=0.01)
    assert sign_flips(-values, resamples=40_000) == pytest.approx(exact, abs=0.01)


def test_sign_flips_of_nothing_and_of_no_effect():
    assert sign_flips(np.zeros(5)) == 1
    assert sign_flips(np.ones(50)) == pytest.approx(1 / 10_001)
    with pytest.raises(LenscopeError, match="none given"):
        sign_flips([])


def test_p_values_of_nothing_are_even():
    found = np.array([sign_flips(random(n).normal(size=15), resamples=400) for n in range(300)])
    assert (found < 0.05).mean() == pytest.approx(0.05, abs=0.035)
    assert (found < 0.5).mean() == pytest.approx(0.5, abs=0.09)


def test_two_groups_and_many_pairs_by_hand():
    values, first = np.array([3.0, 5.0, 1.0, 2.0]), [True, True, False, False]
    assert group_difference(values, first).value == 2.5
    a, b = np.ones(40), np.zeros(40)
    noise = np.resize([1.0, 0.0], 40)
    units = [n // 20 for n in range(40)]
    rows = paired_tests({"far": (a, b, None), "near": (noise, noise[::-1], None), "two": (a, b, units)})
    assert [r["difference"].value for r in rows] == [1, 0, 1]
    assert rows[0]["p"] < 1e-3
    assert rows[0]["p (Holm)"] == pytest.approx(3 * rows[0]["p"])
    # two units have four patterns of signs, half of which are as far from 0
    assert rows[2]["p"] == pytest.approx(0.5, abs=0.03)
