"""The command that says what work would cost."""

import json

import pytest

SHAPE = "layers=12,width=20480,heads=160,kv=8,inner=71680,vocab=128256"


def test_a_plan_of_a_model_that_is_not_there(run):
    status, out, err = run("plan", SHAPE, "--gpus", "8", "--memory", "80GB")
    assert (status, err) == (0, "")
    assert "68,671,754,240 parameters" in out
    assert "torchrun --nproc-per-node 8 -m lenscope fit" in out
    for word in ("translators", "gradients", "momentum", "moments", "states", "peak", "fsdp", "limited by", "exact"):
        assert word in out
    alone = run("plan", SHAPE)[1]
    assert "nothing fits" in alone
    assert "GPUs on" in alone


def test_json_has_every_number(run, model):
    value = json.loads(run("plan", model, "--task", "sweep", "--rows", "1k", "--new-tokens", "20", "--json")[1])
    assert value["kind"] == "plan"
    assert value["task"]["rows"] == 1000
    assert value["model"]["name"] == str(model)
    assert value["command"].startswith("lenscope sweep")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((SHAPE, "--task", "train"), "--task 'train'"),
        ((SHAPE, "--gpus", "0"), "--gpus 0"),
        ((SHAPE, "--memory", "80"), "--memory 80"),
        ((SHAPE, "--device", "tpu"), "h100, h200"),
        ((SHAPE, "--device", "cpu", "--gpus", "2"), "one machine"),
        ((SHAPE, "--rows", "5"), "--rows: are those of a sweep"),
        ((SHAPE, "--task", "sweep", "--tokens", "5"), "--tokens: are those of a fit"),
        ((SHAPE, "--recipe", "best"), "recipe 'best'"),
        ((SHAPE, "--length", "1"), "--length 1"),
        ((SHAPE, "--dtype", "int4"), "--dtype int4"),
        (("layers=80",), "width is missing"),
        (("/nowhere",), "/nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(mistaken, arguments, why):
    assert why in mistaken("plan", *arguments)
