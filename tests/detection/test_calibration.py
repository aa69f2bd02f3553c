"""Probabilities are those of the definitions; thresholds keep their promise; the band is around the threshold."""

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression

import lenscope as ls
from lenscope.detection.calibration import (
    Isotonic,
    Platt,
    calibrate,
    calibration_of,
    calibration_parts,
    conformal_threshold,
    fewest_normals,
    known_thresholds,
    unsure_band,
)


def _margins(n=400, seed=0):
    random = np.random.default_rng(seed)
    attacks = random.random(n) < 0.3
    return random.normal(size=n) * 3 + 2 * attacks + 5, attacks


def test_platt_maximises_the_likelihood_of_platt_s_targets():
    margins, attacks = _margins()
    platt = calibrate(margins, attacks)
    positive, negative = attacks.sum(), (~attacks).sum()
    targets = np.where(attacks, (positive + 1) / (positive + 2), 1 / (negative + 2))

    def loss(w):
        p = 1 / (1 + np.exp(-(w[0] * margins + w[1])))
        return -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum()

    best = minimize(loss, [0.1, 0.0], method="BFGS", options={"gtol": 1e-8})
    assert [platt.slope, platt.intercept] == pytest.approx(best.x, rel=1e-4)
    # as many attacks as there are
    assert platt(margins).mean() == pytest.approx(targets.mean())


def test_margins_without_a_signal_or_turned_give_the_mean():
    _, attacks = _margins()
    for margins in (np.ones(400), np.where(attacks, -1.0, 1.0)):
        platt = calibrate(margins, attacks)
        assert platt(np.array([-9.0, 0.0, 9.0])) == pytest.approx([attacks.mean()] * 3, abs=0.01)
    # parted without a doubt: certain, but finite
    sure = calibrate(np.where(attacks, 1.0, -1.0), attacks)
    assert 0 < sure(np.array([-1.0]))[0] < 0.01 < 0.98 < sure(np.array([1.0]))[0] < 1


def test_isotonic_is_scikit_learn_s():
    margins, attacks = _margins()
    isotonic = calibrate(margins, attacks, "isotonic")
    at = np.linspace(-9, 20, 77)
    wanted = IsotonicRegression(out_of_bounds="clip").fit(margins, attacks.astype(float)).predict(at)
    np.testing.assert_allclose(isotonic(at), wanted, atol=1e-12)
    for one in (isotonic, calibrate(margins, attacks)):
        config, arrays = calibration_parts(one)
        np.testing.assert_array_equal(calibration_of(config, arrays)(at), one(at))


def test_a_threshold_is_exceeded_by_no_more_than_its_share():
    random = np.random.default_rng(0)
    exceeded = []
    for _ in range(300):
        scores = random.normal(size=100)
        exceeded.append((random.normal(size=1000) > conformal_threshold(scores, 0.05)).mean())
    assert 0.03 < np.mean(exceeded) <= 0.051
    # 99 held-out scores show one in a hundred: none of them is above
    assert conformal_threshold(np.arange(99.0), 0.01) == 98
    assert conformal_threshold(np.arange(199.0), 0.01) == 197
    assert [fewest_normals(s) for s in (0.01, 0.05, 0.5)] == [99, 19, 1]
    with pytest.raises(ls.LenscopeError, match="at least 99 normal items, not 98; give more, or a larger share"):
        conformal_threshold(np.arange(98.0), 0.01)
    with pytest.raises(ls.LenscopeError, match="between 0 and 1"):
        fewest_normals(1)


def test_a_threshold_that_is_not_to_be_known_is_nan():
    scores = np.arange(20.0)
    assert known_thresholds(scores, (0.05, 0.5)) == {s: conformal_threshold(scores, s) for s in (0.05, 0.5)}
    assert np.isnan(known_thresholds(scores, (0.01,))[0.01])


def test_the_band_holds_the_nearest():
    p = np.array([0.1, 0.2, 0.3, 0.48, 0.55, 0.7, 0.8, 0.9, 0.95, 1.0])
    assert unsure_band(p, 0.5, 0.2) == (0.48, 0.55)
    assert unsure_band(p, 0.5, 0.1) == (0.48, 0.5)
    assert unsure_band(p, 0.5, 0) == (0.5, 0.5)
    with pytest.raises(ls.LenscopeError, match="from 0 to below 1"):
        unsure_band(p, 0.5, 1)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: calibrate(np.ones(3), np.array([True] * 3)), "both classes"),
        (lambda: calibrate(np.array([1, np.nan]), np.array([True, False])), "finite margins"),
        (lambda: calibrate(np.ones(2), np.array([True, False]), "beta"), "'beta': give one of platt, isotonic"),
        (lambda: Platt(-1.0, 0.0), "slope -1"),
        (lambda: Platt(np.inf, 0.0), "finite"),
        (lambda: Isotonic(np.array([0.0, 0.0]), np.array([0.0, 1.0])), "must rise"),
        (lambda: Isotonic(np.array([0.0, 1.0]), np.array([0.5, 0.4])), "must rise"),
        (lambda: Isotonic(np.array([0.0, 1.0]), np.array([0.0, 1.5])), "between 0 and 1"),
        (lambda: Isotonic(np.array([0.0, np.nan]), np.array([0.0, 1.0])), "must rise"),
        (lambda: Isotonic(np.empty(0), np.empty(0)), "must rise"),
        (lambda: calibration_of({"name": "pickle"}, {}), "pickle"),
    ],
)
def test_what_is_no_calibration_is_refused(call, told):
    with pytest.raises(ls.LenscopeError, match=told):
        call()
