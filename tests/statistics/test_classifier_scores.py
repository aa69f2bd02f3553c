"""Measures of classifiers beside what pairs, thresholds and bins say one by one; intervals cover; tests are level."""

import numpy as np
import pytest

import lenscope as ls
from lenscope.statistics import classifier_scores as cs


def drawn(n=60, seed=0, levels=12):
    """Scores with ties, and which items are positive."""
    random = np.random.default_rng(seed)
    positive = random.random(n) < 0.4
    return np.round(random.normal(size=n) + positive, 1) if levels else random.normal(size=n) + positive, positive


def pairs_won(scores, positive):
    high, low = scores[positive], scores[~positive]
    return np.mean([(h > x) + (h == x) / 2 for h in high for x in low])


def hits_at(scores, positive, share):
    """Every threshold in turn: the most positive items above one that few enough negative items exceed."""
    best = 0.0
    for t in [-np.inf, *scores]:
        if np.mean(scores[~positive] > t) <= share + 1e-12:
            best = max(best, float(np.mean(scores[positive] > t)))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_areas_and_true_positives_are_those_of_all_pairs_and_thresholds(seed):
    scores, positive = drawn(seed=seed)
    assert cs.weighted_auroc(scores, positive)[0] == pytest.approx(pairs_won(scores, positive))
    for share in (0.0, 0.01, 0.05, 0.3, 1.0):
        assert cs.weighted_true_positives(scores, positive, share)[0] == pytest.approx(hits_at(scores, positive, share))


def test_a_weight_is_a_number_of_copies():
    scores, positive = drawn(seed=5)
    units = [n // 3 for n in range(len(scores))]
    weights = cs.unit_weights(units, resamples=6, seed=1)
    assert (weights[0] == 1).all()
    assert all(len({*row[n * 3 : n * 3 + 3].tolist()}) == 1 for row in weights for n in range(len(scores) // 3))
    areas, hits = (
        cs.weighted_auroc(scores, positive, weights),
        cs.weighted_true_positives(scores, positive, 0.1, weights),
    )
    for row, area, hit in zip(weights, areas, hits, strict=True):
        copies = np.repeat(np.arange(len(scores)), row.astype(int))
        assert area == pytest.approx(pairs_won(scores[copies], positive[copies]))
        assert hit == pytest.approx(hits_at(scores[copies], positive[copies], 0.1))
    flags = scores > 0
    assert cs.weighted_share(flags, weights[1:2])[0] == pytest.approx(np.average(flags, weights=weights[1]))


def test_few_negative_items_allow_no_false_positive():
    scores, positive = np.array([0.1, 0.2, 0.9, 0.3, 0.95]), np.array([False, False, False, True, True])
    assert cs.weighted_true_positives(scores, positive, 0.01)[0] == 0.5
    assert cs.weighted_true_positives(scores, positive, 0.34)[0] == 1.0
    # a tie with the highest negative item is not above it
    assert cs.weighted_true_positives([0.9, 0.9], [False, True], 0.01)[0] == 0
    assert np.isnan(cs.weighted_auroc([1.0, 2.0], [True, True])).all()
    assert np.isnan(cs.weighted_true_positives([1.0, 2.0], [True, True], 0.1)).all()


def test_scores_that_are_none_are_refused():
    for scores in ([np.nan, 1.0], [], [[1.0]]):
        with pytest.raises(ls.LenscopeError, match="no score NaN"):
            cs.weighted_auroc(scores, [True, False][: len(scores)])
    with pytest.raises(ls.LenscopeError, match="0–1"):
        cs.calibration_error([0.5, 1.5], [True, False])


def test_the_calibration_error_by_hand():
    random = np.random.default_rng(2)
    p = random.random(40)
    y = random.random(40) < p
    order = np.argsort(p)
    by_hand = sum(abs(p[part].sum() - y[part].sum()) for part in np.split(order, 10)) / 40
    assert cs.calibration_error(p, y).value == pytest.approx(by_hand)
    # equal probabilities are one bin, whatever their order
    tied = np.repeat([0.2, 0.8], 20)
    y = np.concatenate([np.arange(20) < 6, np.arange(20) < 12])
    assert cs.calibration_error(tied, y).value == pytest.approx((abs(0.2 - 0.3) + abs(0.8 - 0.6)) / 2)
    shuffled = random.permutation(40)
    assert cs.calibration_error(tied[shuffled], y[shuffled]).value == cs.calibration_error(tied, y).value


def test_a_calibrated_predictor_has_an_error_by_chance_and_the_interval_covers_a_wrong_one():
    random = np.random.default_rng(3)
    p = random.random(200)
    by_chance = cs.calibrated_error(p)
    errors = [cs.calibration_error(p, random.random(200) < p).value for _ in range(200)]
    assert by_chance == pytest.approx(np.mean(errors), rel=0.1)
    assert by_chance > 0.02
    covered = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        p = draw.random(400) * 0.5
        estimate = cs.calibration_error(p, draw.random(400) < p + 0.3, seed=seed)
        covered += estimate.low <= 0.3 <= estimate.high
    assert covered >= 52


def test_differences_of_areas_and_their_intervals():
    first, positive = drawn(seed=7)
    second, _ = drawn(seed=8)
    units = list(range(len(first)))
    got = cs.auroc_difference([(first, second, positive, units)])
    assert got.value == pytest.approx(pairs_won(first, positive) - pairs_won(second, positive))
    assert got.low < got.value < got.high
    both = cs.auroc_difference([(first, second, positive, units), (second, first, positive, units)])
    assert both.value == pytest.approx(0)


def test_the_swap_test_by_all_swaps_and_its_level():
    random = np.random.default_rng(4)
    first, second, positive = random.permutation(8), random.permutation(8), np.arange(8) % 2 == 0
    units = [n // 2 for n in range(8)]
    # ranks are the scores themselves; all 16 swaps of 4 units
    gaps = []
    for code in range(16):
        swap = np.array([code >> u & 1 for u in units], dtype=bool)
        a, b = np.where(swap, second, first), np.where(swap, first, second)
        gaps.append(pairs_won(a, positive) - pairs_won(b, positive))
    exact = np.mean(np.abs(gaps) >= abs(gaps[0]) - 1e-12)
    assert cs.swap_test([(first, second, positive, units)], resamples=8000) == pytest.approx(exact, abs=0.02)
    # two equally good scores
    low = 0
    for seed in range(80):
        draw = np.random.default_rng(seed)
        y = draw.random(50) < 0.5
        x = draw.normal(size=50) + y
        low += cs.swap_test([(x + draw.normal(size=50), x + draw.normal(size=50), y, range(50))], resamples=200) < 0.1
    assert low <= 16
    y = np.arange(60) % 2 == 0
    good, bad = y + random.normal(size=60) / 3, random.normal(size=60)
    assert cs.swap_test([(good, bad, y, range(60))]) < 0.01
    assert cs.swap_test([(good, good, y, range(60))]) == 1
    with pytest.raises(ls.LenscopeError, match="none given"):
        cs.swap_test([])
