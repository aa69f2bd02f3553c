"""What a fit is said to cost is what it costs: its products counted, its tensors measured."""

import pytest
from counted_flops import CountedFlops

import lenscope as ls
from lenscope.fitting.tuned_lens_run import TunedLensRun
from lenscope.planning.plan import Task, plan


@pytest.mark.parametrize("recipe", ["muon", "ridge", "published"])
def test_products_are_those_that_are_made(llama, shape, documents, slow, recipe):
    task = Task("fit", tokens=4096, length=128, recipe=recipe, room=1 << 20)
    works = plan(shape, task, slow).placements[0].works
    with CountedFlops() as counted:
        lens = ls.fit(llama, documents, tokens=4096, length=128, recipe=recipe, room=1 << 20)
    assert lens.report["tokens"] == 4096
    # torch has no formula for the solving
    products = sum(part.work.flops for part in works if part.work.name != "solving")
    assert products == pytest.approx(counted.total, rel=0.05)


@pytest.mark.parametrize("recipe", ["muon", "published"])
def test_tensors_of_a_run_have_the_bytes_that_are_planned(llama, shape, documents, slow, recipe, monkeypatch):
    seen = {}
    steps, gather = TunedLensRun.take_steps, TunedLensRun.gather

    def watched(run, block, objective, optimizer):
        steps(run, block, objective, optimizer)
        d = shape.width
        seen["translators"] = sum(t.numel() for t in (*run.weights, *run.start)) * 4
        seen["gradients"] = sum(t.numel() for t in run.gradients) * 4
        seen["momentum"] = sum(t.numel() for of_layer in optimizer.state for t in of_layer if t.shape == (d + 1, d)) * 4
        seen["states"] = block.states.nbytes + block.last.nbytes

    def gathered(run, block):
        gather(run, block)
        seen["moments"] = sum(m.xx.nbytes + m.xy.nbytes for m in run.moments)

    monkeypatch.setattr(TunedLensRun, "take_steps", watched)
    monkeypatch.setattr(TunedLensRun, "gather", gathered)
    room = 5 << 20
    parts = plan(shape, Task("fit", tokens=4096, length=128, recipe=recipe, room=room), slow).placements[0].parts
    ls.fit(llama, documents, tokens=4096, length=128, recipe=recipe, room=room)
    for name, count in seen.items():
        # of the moments' rows one is the constant's
        assert parts[name] == pytest.approx(count, rel=0.02 if name == "moments" else 1e-9), name


def test_owners_share_translators_and_states(shape, slow):
    one = plan(shape, Task("fit", tokens=4096, length=128), slow).placements[0]
    five = plan(shape, Task("fit", tokens=4096, length=128), slow, 5).placements[0]
    for name in ("translators", "gradients", "momentum", "moments"):
        assert five.parts[name] * 5 == one.parts[name]
    assert five.parts["states"] < one.parts["states"]
    flops = {p.work.name: p.work.flops for p in one.works}
    for part in five.works:
        if part.work.name in ("orthogonalising", "translating", "moments", "solving"):
            assert part.work.flops * 5 == pytest.approx(flops[part.work.name])
    # two owners of five layers: one has three
    assert plan(shape, Task("fit"), slow, 2).placements[0].parts["gradients"] * 5 == one.parts["gradients"] * 3
