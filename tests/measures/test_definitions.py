"""The definitions, against sums written out by hand and known values."""

import math

import pytest
import torch

from lenscope.measures import definitions as m
from lenscope.measures import definitions as measures

P = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64)
Q = torch.tensor([0.25, 0.25, 0.25, 0.25], dtype=torch.float64)


def test_values_on_two_small_distributions():
    log_p, log_q = P.log(), Q.log()
    assert m.entropy(log_p).item() == pytest.approx(1.5 * math.log(2))
    assert m.entropy(log_q).item() == pytest.approx(math.log(4))
    assert m.kl(log_p, log_q).item() == pytest.approx(0.5 * math.log(2))
    assert m.kl(log_q, log_p).item() == math.inf
    # half the sum of the differences (.25, 0, 0, .25), not their maximum and not their sum
    assert m.total_variation(log_p, log_q).item() == pytest.approx(0.25)
    mix = [0.375, 0.25, 0.25, 0.125]
    js = sum(p * math.log(p / x) for p, x in zip(P.tolist(), mix, strict=True) if p) / 2
    js += sum(q * math.log(q / x) for q, x in zip(Q.tolist(), mix, strict=True)) / 2
    assert m.js(log_p, log_q).item() == pytest.approx(js)
    assert m.max_probability(log_p).item() == pytest.approx(0.5)


def test_js_is_symmetric_and_bounded_unlike_half_jeffreys():
    disjoint = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log()
    assert m.js(*disjoint).item() == pytest.approx(math.log(2))
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(7, 50, generator=g, dtype=torch.float64).mul(5).log_softmax(-1) for _ in range(2))
    assert torch.allclose(m.js(a, b), m.js(b, a))
    assert (m.js(a, b) <= math.log(2)).all()
    jeffreys = (m.kl(a, b) + m.kl(b, a)) / 2
    assert (m.js(a, b) < jeffreys).all()


def test_rank_counts_strictly_better_tokens():
    log_p = torch.tensor([0.1, 0.4, 0.4, 0.1]).log()
    assert [m.rank(log_p, torch.tensor(i)).item() for i in range(4)] == [2, 0, 0, 2]
    assert [m.precision(log_p, torch.tensor(i), 1).item() for i in range(4)] == [0, 1, 1, 0]
    assert m.precision(log_p, torch.tensor(0), 3).item() == 1


def test_surprisal_is_the_negative_log_probability():
    assert m.surprisal(P.log(), torch.tensor(1)).item() == pytest.approx(math.log(4))
    batch = torch.stack([P, Q]).log()
    assert m.surprisal(batch, torch.tensor([0, 3])).tolist() == pytest.approx([math.log(2), math.log(4)])


@pytest.mark.parametrize(
    ("top1", "depth"),
    [([7, 7, 7, 7], 0), ([1, 7, 7, 7], 1), ([7, 1, 7, 7], 2), ([7, 7, 7, 1], 3), ([7, 7, 1, 7], 3), ([5], 0)],
)
def test_prediction_depth_is_where_the_top_token_settles(top1, depth):
    assert m.prediction_depth(torch.tensor(top1)).item() == depth


def test_prediction_depth_of_several_positions():
    assert m.prediction_depth(torch.tensor([[1, 2], [3, 2], [3, 2]])).tolist() == [1, 0]


def test_precision_at_k_ends_at_k():
    """The token of rank k is not among the k most probable."""
    log_p = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    for k in range(1, 5):
        found = [measures.precision(log_p, torch.tensor(i), k).item() for i in range(4)]
        assert found == [1.0] * k + [0.0] * (4 - k)
