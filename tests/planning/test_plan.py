"""Which placement is advised, and by which command."""

import json

import pytest

from lenscope.errors import LenscopeError
from lenscope.planning.machines import machine
from lenscope.planning.model_shapes import model_shape
from lenscope.planning.plan import Task, fewest_gpus, plan

LARGE = "layers=12,width=20480,heads=160,kv=8,inner=71680,vocab=128256"


@pytest.fixture(scope="module")
def large():
    return model_shape(LARGE)


@pytest.fixture(scope="module")
def h100():
    return machine("h100")


def test_what_fits_is_advised_and_what_does_not_is_not(large, h100):
    one = plan(large, Task("fit"), h100)
    assert one.advised is None
    assert one.command() is None
    more = fewest_gpus(large, Task("fit"), h100)
    eight = plan(large, Task("fit"), h100, 8)
    assert more is not None
    assert 1 < more <= 8
    assert eight.advised is not None
    assert eight.advised.placement in ("fsdp", "tensor")
    assert not next(p for p in eight.placements if p.placement == "whole").fits
    assert eight.command().startswith("torchrun --nproc-per-node 8 -m lenscope fit -m MODEL --tokens 200000")
    named = plan(model_shape("smollm2-135m"), Task("fit"), h100)
    assert named.command().startswith("lenscope fit -m smollm2-135m --tokens 200000")
    assert plan(large, Task("fit"), h100, 64).command().startswith("torchrun --nnodes 8 --nproc-per-node 8 ")


def test_what_fits_whole_is_left_whole(h100):
    small = model_shape("layers=16,width=2048,heads=32,kv=8,inner=8192,vocab=128256")
    assert plan(small, Task("fit"), h100).advised.placement == "whole"
    assert plan(small, Task("sweep", new_tokens=20), h100).command().startswith("lenscope sweep SPEC.yaml")


def test_the_command_of_many_gpus_uses_all_of_them(h100):
    small = model_shape("layers=16,width=2048,heads=32,kv=8,inner=8192,vocab=128256")
    lens = plan(small, Task("lens"), h100, 8).command()
    assert lens.startswith(
        "for n in $(seq 8); do CUDA_VISIBLE_DEVICES=$((n-1)) lenscope lens -m MODEL --file PROMPTS-$n -o OUT-$n.parquet"
    )
    assert plan(small, Task("lens"), h100, 16).command().endswith("on each of 2 machines")
    assert (
        "--engine ray --workers 8 --gpus-per-worker 1" in plan(small, Task("sweep", new_tokens=20), h100, 8).command()
    )


def test_memory_decides(large):
    wide = plan(large, Task("lens"), machine("h100", memory=200e9))
    assert wide.advised.placement == "whole"
    narrow = plan(large, Task("lens"), machine("h100", memory=50e9))
    assert narrow.advised.placement == "stream"


def test_a_plan_is_json(large, h100):
    value = json.loads(json.dumps(plan(large, Task("fit"), h100, 8).to_json()))
    assert value["model"]["parameters"] == 68_671_754_240
    assert value["advised"] in [p["placement"] for p in value["placements"] if p["fits"]]
    one = value["placements"][0]
    assert one["hours"] == pytest.approx(sum(work["seconds"] for work in one["works"]) / 3600)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"kind": "train"}, "fit, lens, sweep"),
        ({"kind": "fit", "recipe": "best"}, "muon"),
        ({"kind": "fit", "tokens": 0}, "tokens 0"),
        ({"kind": "sweep", "rows": -1}, "rows -1"),
        ({"kind": "sweep", "new_tokens": -1}, "new tokens -1"),
    ],
)
def test_what_is_no_task_is_refused(wrong, why):
    with pytest.raises(LenscopeError, match=why):
        Task(**wrong)


def test_no_gpu_is_refused(large, h100):
    with pytest.raises(LenscopeError, match="gpus 0"):
        plan(large, Task("fit"), h100, 0)
