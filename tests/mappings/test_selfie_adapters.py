"""Files of SelfIE adapters: made by the published rules, read, mapped as the published formulas do, and written."""

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from lenscope.errors import LenscopeError
from lenscope.mappings.selfie_adapters import TENSORS, read_selfie_adapter, write_selfie_adapter
from lenscope.mappings.vector_map import VectorMap

D, R = 12, 3
TEMPLATE = 'What is "<|reserved_special_token_0|>"? It is "'
SIZES = {"log_scale": (1,), "bias": (D,), "U": (D, R), "V": (D, R), "weight": (D, D)}


def tensors_of(kind, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(SIZES[name], generator=draw) for name in TENSORS[kind]}


def header_of(kind, normalize=True, **more):
    projection = {
        "type": kind,
        "normalize_input": normalize,
        "init_scale": 5.0,
        "low_rank_rank": R if "rank" in kind else None,
    }
    if kind == "full_rank":
        projection["low_rank_rank"] = None
    config = {"projection": projection, "soft_prompt": {"template": TEMPLATE}, "model": {"name": "owner/model"}}
    return {"format": "selfie_adapter_v1", "config_json": json.dumps(config), "model_dim": str(D), **more}


def saved(path, tensors, header):
    safetensors.torch.save_file(tensors, path, metadata=header)
    return path


def published(kind, tensors, x, normalize):
    """Each projection's forward as the authors write it for rows, in float64."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    if normalize:
        x = x / (x.norm(p=2, dim=-1, keepdim=True) + 1e-8)
    low = (x @ t["U"]) @ t["V"].T if "U" in t else None
    if kind == "scale_only":
        return t["log_scale"].exp() * x
    if kind == "scalar_affine":
        return t["log_scale"].exp() * x + t["bias"]
    if kind == "scalar_affine_plus_low_rank":
        return t["log_scale"].exp() * x + low + t["bias"]
    if kind == "low_rank_only":
        return low + t["bias"]
    return x @ t["weight"].T + t["bias"]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", TENSORS)
def test_every_projection_maps_as_published(kind, normalize, tmp_path):
    """In float64 to what a scale in float32 allows, and what the authors add to a length of about 3: 1e-8."""
    tensors = tensors_of(kind)
    adapter = read_selfie_adapter(saved(tmp_path / "a.safetensors", tensors, header_of(kind, normalize)))
    x = torch.randn(5, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = published(kind, tensors, x, normalize)
    assert (adapter.map(x) - expected).abs().max() < 2e-7 * expected.abs().max()
    assert (adapter.width, adapter.template, adapter.model) == (D, TEMPLATE, "owner/model")
    assert adapter.map.normalize is normalize


def test_single_entries_that_say_the_same_as_config_json_are_read(tmp_path):
    more = {"projection_type": "low_rank_only", "normalize_input": "True", "low_rank_rank": str(R)}
    file = saved(tmp_path / "a.safetensors", tensors_of("low_rank_only"), header_of("low_rank_only", **more))
    adapter = read_selfie_adapter(file)
    assert adapter.map.rank == R
    # a map of another rank in its place is written with its own
    other = replace(adapter, map=replace(adapter.map, U=torch.ones(D, 1), V=torch.ones(1, D)))
    write_selfie_adapter(other, tmp_path / "b.safetensors")
    assert read_selfie_adapter(tmp_path / "b.safetensors").map.rank == 1


@pytest.mark.parametrize("kind", TENSORS)
def test_written_is_read_again_and_has_the_published_tensors(kind, tmp_path):
    adapter = read_selfie_adapter(saved(tmp_path / "a.safetensors", tensors_of(kind), header_of(kind)))
    write_selfie_adapter(adapter, tmp_path / "b.safetensors")
    with safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == sorted(TENSORS[kind])
        header = file.metadata()
    assert header["format"] == "selfie_adapter_v1"
    assert json.loads(header["config_json"])["soft_prompt"]["template"] == TEMPLATE
    again = read_selfie_adapter(tmp_path / "b.safetensors")
    x = torch.randn(4, D, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(again.map(x), adapter.map(x), rtol=1e-6, atol=1e-6)
    assert (again.width, again.template, again.marker, again.model) == (
        adapter.width, adapter.template, adapter.marker, adapter.model,
    )  # fmt: skip


def test_a_header_without_config_json_is_read_by_its_single_entries(tmp_path):
    header = {"projection_type": "low_rank_only", "normalize_input": "false", "low_rank_rank": str(R)}
    adapter = read_selfie_adapter(saved(tmp_path / "a.safetensors", tensors_of("low_rank_only"), header))
    assert adapter.map.normalize is False
    assert (adapter.map.rank, adapter.width, adapter.template) == (R, D, None)


def changed(kind="scalar_affine_plus_low_rank", drop=(), header=None, **tensors):
    made = {name: t for name, t in tensors_of(kind).items() if name not in drop} | tensors
    return made, header_of(kind) if header is None else header


def of_rank(rank):
    header = header_of("scalar_affine_plus_low_rank")
    config = json.loads(header["config_json"])
    config["projection"]["low_rank_rank"] = rank
    return {**header, "config_json": json.dumps(config)}


HUGE = torch.tensor([1000.0])
FAULTS = {
    "another format": (changed(header={"format": "pt"}), "is no SelfIE adapter: its header says format 'pt'"),
    "another version": (changed(header=header_of("scale_only") | {"format": "selfie_adapter_v2"}), "selfie_adapter_v2"),
    "no header": (changed(header={}), "its header says no projection"),
    "no JSON": (
        changed(header={"format": "selfie_adapter_v1", "config_json": "{"}),
        "is not that of selfie_adapter_v1",
    ),
    "nested": (changed(header={"format": "selfie_adapter_v1", "config_json": "[" * 9999}), "is not that of"),
    "a list": (changed(header={"config_json": "[]"}), "config_json has no projection"),
    "unknown type": (changed(header=header_of("cubic")), "type 'cubic'; there are scale_only, scalar_affine,"),
    "type no text": (changed(header=header_of(["scale_only"])), "a projection of type"),
    "normalize": (changed(header=header_of("scalar_affine_plus_low_rank", "yes")), "normalize_input is 'yes'"),
    "model_dim": (changed(header=header_of("scale_only", model_dim="x")), "is not that of selfie_adapter_v1"),
    "model_dim below 0": (changed("scale_only", header=header_of("scale_only", model_dim="-3")), "model_dim is -3; it"),
    "model_dim 0": (
        changed("scale_only", header=header_of("scale_only", model_dim="0")),
        "must be a whole number from 1",
    ),
    "rank no number": (changed(header=of_rank("4")), 'low_rank_rank is "4"; it must be a whole number from 1 on'),
    "rank 0": (changed(header=of_rank(0)), "low_rank_rank is 0; it must be a whole number from 1 on"),
    "another type beside": (
        changed(header=header_of("scalar_affine_plus_low_rank", projection_type="full_rank")),
        "projection_type is 'full_rank', and 'scalar_affine_plus_low_rank' in config_json",
    ),
    "another normalize beside": (
        changed(header=header_of("scalar_affine_plus_low_rank", normalize_input="false")),
        "normalize_input is 'false', and 'true' in config_json",
    ),
    "another rank beside": (
        changed(header=header_of("scalar_affine_plus_low_rank", low_rank_rank="9")),
        "low_rank_rank is '9', and '3' in config_json",
    ),
    "missing": (changed(drop=["V"]), "lacks the tensor V; a projection of type scalar_affine_plus_low_rank has"),
    "one more": (changed(extra=torch.ones(2)), "has a tensor 'extra'"),
    "width": (changed(bias=torch.ones(D + 1)), "bias is of shape (13,); a projection"),
    "rank": (changed(U=torch.ones(D, R + 1)), "U is of shape (12, 4)"),
    "dtype": (changed(bias=torch.ones(D, dtype=torch.int32)), "'bias' is of int32"),
    "not finite": (changed(V=torch.full((D, R), float("nan"))), "V holds NaN or infinity"),
    "scale": (changed(log_scale=HUGE), "log_scale is 1000, too large"),
    "no width": ((tensors_of("scale_only"), {"projection_type": "scale_only"}), "says no model_dim"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_said_in_one_line(fault, tmp_path):
    (tensors, header), said = FAULTS[fault]
    path = saved(tmp_path / "a.safetensors", tensors, header)
    with pytest.raises(LenscopeError) as error:
        read_selfie_adapter(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_that_is_missing_or_damaged_is_refused(tmp_path):
    with pytest.raises(LenscopeError, match="no such file"):
        read_selfie_adapter(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(LenscopeError, match="is damaged"):
        read_selfie_adapter(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("f", "said"),
    [
        (VectorMap(scale=torch.ones(2), layers=(1, 2)), "one map for all"),
        (VectorMap(W=torch.ones(3, D)), "maps 12 numbers to 3"),
        (VectorMap(scale=torch.tensor(-1.0)), "its scale is -1"),
    ],
)
def test_maps_that_the_format_has_no_place_for_are_refused(f, said, tmp_path):
    from lenscope.mappings.selfie_adapters import SelfieAdapter

    with pytest.raises(LenscopeError, match=said):
        write_selfie_adapter(SelfieAdapter(f, D), tmp_path / "a.safetensors")
    with pytest.raises(LenscopeError, match=r"ends in \.safetensors"):
        write_selfie_adapter(SelfieAdapter(VectorMap(scale=torch.tensor(1.0)), D), tmp_path / "a.pt")
