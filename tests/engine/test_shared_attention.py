"""Attention over a shared prefix: what masks forbid."""

import pytest
import torch

from lenscope.engine import shared_attention as cascade


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("floats", [False, True])
def test_masks_count_for_one_query_as_for_several(queries, floats):
    """One query sees all keys of a causal mask, and not all of any other one."""
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 2, 2, queries, 6, generator=draw)
    seen = torch.rand(1, 1, queries, 6, generator=draw) > 0.4
    seen[..., 1] = True
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min) if floats else seen
    allowed = torch.ones(2, queries, 6, dtype=torch.bool)
    allowed[1, :, 1] = False
    got = scores.clone()
    cascade._bar(got, mask, allowed)
    barred = ~seen[:, :, None].expand(2, 2, 2, -1, -1) | ~allowed[:, None, None]
    assert torch.equal(got[~barred], scores[~barred])
    assert (got[barred] < -1e30).all()


@pytest.mark.parametrize("queries", [1, 2, 5])
def test_without_a_mask_every_query_sees_itself_and_what_is_before_it(queries):
    scores = torch.zeros(1, 1, 1, queries, 6)
    cascade._bar(scores, None, None)
    for q in range(queries):
        assert (scores[0, 0, 0, q] > -1e30).tolist() == [key <= 6 - queries + q for key in range(6)]
