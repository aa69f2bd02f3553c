"""What trajectories are said to cost is what they cost."""

import pytest
from counted_flops import CountedFlops

import lenscope as ls
from lenscope.planning.plan import Task, plan


def test_products_are_those_that_are_made(llama, shape, documents, slow):
    works = plan(shape, Task("lens", tokens=800, length=100), slow).placements[0].works
    lens = ls.Lens(llama)
    lens.trajectory(documents[0][:10])
    with CountedFlops() as counted:
        lens.trajectory([ids[:100] for ids in documents[:8]])
    # attention's own kernel is not counted
    attention = 800 * shape.attention * 101 / 2
    assert sum(part.work.flops for part in works) - attention == pytest.approx(counted.total, rel=0.02)


def test_a_tuned_lens_adds_its_translators(shape, slow):
    plain, tuned = (plan(shape, Task("lens", tokens=800, tuned=t), slow).placements[0] for t in (False, True))
    d = shape.width
    assert tuned.parts["translators"] == 4 * shape.layers * d * (d + 1)
    assert sum(p.work.flops for p in tuned.works) - sum(p.work.flops for p in plain.works) == 800 * 5 * 2 * d * d


def test_gpus_share_the_texts(shape, slow):
    one, eight = (plan(shape, Task("lens", tokens=80_000, length=100), slow, n).placements[0] for n in (1, 8))
    for a, b in zip(one.works, eight.works, strict=True):
        assert a.work.flops == pytest.approx(8 * b.work.flops)
