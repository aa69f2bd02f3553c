"""Arguments of loading: what no model takes, and what this machine lacks, is told in one line before files are read."""

import pytest
import torch

import lenscope as ls
from lenscope.models import load_streamed
from lenscope.models.load_options import require_device_map, require_load_options

NOWHERE = "/nowhere/at/all"  # files are not looked at


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "fp16"}, "dtype fp16: give float32, float64, bfloat16 or float16; did you mean float16?"),
        ({"dtype": "bf16"}, "did you mean bfloat16?"),
        ({"dtype": "torch.float16"}, "did you mean float16?"),
        ({"dtype": "flaot32"}, "did you mean float32?"),
        ({"dtype": torch.int8}, "dtype torch.int8: give float32"),
        ({"dtype": 16}, "dtype 16: give float32"),
        ({"dtype": {"text": "int8"}}, "dtype int8: give float32"),
        ({"device_map": "gpu"}, "device gpu: there is no such device; give cpu"),
        ({"device_map": "meta"}, "device meta: holds no numbers"),
        ({"device_map": {"": "foo"}}, "device foo: there is no such device"),
        ({"device_map": {0: "cpu"}}, "give places by the names of modules"),
        ({"device_map": [1]}, "device_map: is a list"),
        ({"device_map": "auto", "max_memory": "1GB"}, "max_memory 1GB: give memory by device"),
        ({"device_map": "auto", "max_memory": {"gpu": "1GB"}}, "max_memory 'gpu': give numbers of devices"),
        ({"device_map": "auto", "max_memory": {"cpu": "lots"}}, "max_memory 'cpu': 'lots' is no size"),
        ({"attn_implementation": 3}, "attn_implementation '3': give a name"),
        ({"quantization_config": "4bit"}, "quantization_config: is a str"),
    ],
)
def test_arguments_that_no_model_takes_are_refused(options, message):
    with pytest.raises(ls.LenscopeError) as error:
        ls.load(NOWHERE, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["cuda", "cuda:1", 0, torch.device("cuda"), {"": "cuda"}, {"a": 0, "b": "disk"}])
def test_a_device_that_this_machine_lacks_is_told_with_those_it_has(place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ls.LenscopeError, match="this machine, or this build of torch, has none; give cpu"):
        ls.load(NOWHERE, device_map=place)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    require_device_map(place)
    with pytest.raises(ls.LenscopeError, match="device cuda:2: this machine has 2, numbered from 0"):
        require_device_map("cuda:2")


def test_what_models_take_is_let_through():
    for dtype in (*("float32", "float64", "bfloat16", "float16", "half", "auto"), torch.bfloat16):
        require_load_options({"dtype": dtype})
    for place in ("cpu", "auto", "balanced", torch.device("cpu"), {"model": "cpu", "lm_head": "disk"}):
        require_load_options({"device_map": place, "max_memory": {0: "20GB", "cpu": 10**9, "disk": "1.5GiB"}})
    require_load_options({"attn_implementation": "eager", "quantization_config": {"load_in_4bit": True}})


def test_a_streamed_model_is_asked_the_same():
    with pytest.raises(ls.LenscopeError, match="did you mean float16"):
        load_streamed(NOWHERE, dtype="fp16")
