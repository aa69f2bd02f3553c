"""Files of SelfIE adapters, read and written: maps of vectors to embeddings, in the format selfie_adapter_v1.

Knows: what stands in a file's header and which tensors each projection has, what its names for them are here.
Does not know: how adapters are trained, prompts, models (patchscopes/ makes a verbaliser of what is read).

A SelfIE adapter (arXiv 2602.10352; agencyenterprise/selfie-adapters, selfie_adapters/inference.py and projection.py)
is a safetensors file of float32 tensors. With x a vector, divided by its length where normalize_input is true:

| projection type | f(x) | tensors |
|---|---|---|
| scale_only | exp(log_scale) x | log_scale (1,) |
| scalar_affine | exp(log_scale) x + bias | log_scale, bias (d,) |
| scalar_affine_plus_low_rank | exp(log_scale) x + V Uᵀ x + bias | log_scale, U (d, r), V (d, r), bias |
| low_rank_only | V Uᵀ x + bias | U, V, bias |
| full_rank | weight x + bias | weight (d, d), bias |

The header has config_json, the configuration of the training: projection {type, normalize_input, low_rank_rank, …},
soft_prompt {template, and sometimes reserved_token}, model {name}, …; else the same in single entries (projection_type,
normalize_input, low_rank_rank). model_dim is d. The authors divide by ‖x‖ + 1e-8, and a `VectorMap` by ‖x‖.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from lenscope._version import __version__
from lenscope.errors import LenscopeError
from lenscope.files.untrusted import checked_reading, escaped, read_safetensors, read_safetensors_header
from lenscope.files.writing import whole_file
from lenscope.mappings.foreign_formats import floating_weight
from lenscope.mappings.vector_map import VectorMap

FILE_FORMAT = "selfie_adapter_v1"
# the token that stands for the vector in the authors' template, and that template
RESERVED_TOKEN = "<|reserved_special_token_0|>"
TENSORS = {
    "scale_only": ("log_scale",),
    "scalar_affine": ("log_scale", "bias"),
    "scalar_affine_plus_low_rank": ("log_scale", "U", "V", "bias"),
    "low_rank_only": ("U", "V", "bias"),
    "full_rank": ("weight", "bias"),
}
# what a VectorMap with a bias is called → the projection
_PROJECTIONS = {
    "scale_only": "scale_only",
    "affine": "scalar_affine",
    "low_rank": "scalar_affine_plus_low_rank",
    "low_rank_only": "low_rank_only",
    "full": "full_rank",
}


@final
@dataclass(frozen=True, eq=False)
class SelfieAdapter:
    """What a file of a SelfIE adapter holds.

    Attributes:
        map: the map of a vector to the embedding that stands for it.
        width: the numbers of a vector, the hidden size of its model.
        template: the prompt that it was trained with, special tokens written out; None where the file has none.
        marker: the token of the template that stands for the vector.
        model: the name of its model; None where the file has none.
        config: the configuration of its training, JSON values.
        header: the other entries of the file's header.
    """

    map: VectorMap
    width: int
    template: str | None = None
    marker: str = RESERVED_TOKEN
    model: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    header: dict[str, str] = field(default_factory=dict)


def holds_selfie_adapter(header: Mapping[str, str]) -> bool:
    """Whether the header of a safetensors file is that of a SelfIE adapter, of this version or another."""
    return header.get("format", "").startswith("selfie_adapter") or "projection_type" in header


def read_selfie_adapter(path: str | os.PathLike[str]) -> SelfieAdapter:
    """Read a SelfIE adapter from a .safetensors file in the format selfie_adapter_v1.

    Raises LenscopeError, in one line, for a file of another format, an unknown projection, tensors that are missing, of
    other shapes or dtypes than the projection has, or not finite, and for a header that contradicts them, or itself.
    """
    path = Path(path)
    header = read_safetensors_header(path)
    if header.get("format", FILE_FORMAT) != FILE_FORMAT or not (
        "config_json" in header or holds_selfie_adapter(header)
    ):
        form = header.get("format")
        raise LenscopeError(
            f"{escaped(path)}: is no SelfIE adapter: its header says "
            f"{f'format {form[:40]!r}' if form else 'no projection'}; this lenscope reads {FILE_FORMAT}"
        )
    with checked_reading(path, f"its header is not that of {FILE_FORMAT}"):
        config, projection = _configuration_in(header)
        kind, normalize = projection.get("type"), projection.get("normalize_input")
        if not isinstance(kind, str) or kind not in TENSORS:
            raise LenscopeError(
                f"{escaped(path)}: has a projection of type {str(kind)[:40]!r}; there are {', '.join(TENSORS)}"
            )
        if not isinstance(normalize, bool):
            raise LenscopeError(
                f"{escaped(path)}: normalize_input is {str(normalize)[:40]!r}; it must be true or false"
            )
        stated = header.get("model_dim")
        width = None if stated is None else int(stated)
        if width is not None and width < 1:
            raise LenscopeError(f"{escaped(path)}: model_dim is {width}; it must be a whole number from 1 on")
        rank = projection.get("low_rank_rank") if "U" in TENSORS[kind] else None
        if rank is not None and (type(rank) is not int or rank < 1):
            raise LenscopeError(
                f"{escaped(path)}: low_rank_rank is {json.dumps(rank)[:40]}; it must be a whole number from 1 on"
            )
        _require_agreement(header, kind, normalize, rank, escaped(path))
    tensors = _checked_tensors(read_safetensors(path), kind, width, rank, escaped(path))
    size = next((int(t.shape[0]) for name, t in tensors.items() if name != "log_scale"), width)
    if size is None:
        raise LenscopeError(f"{escaped(path)}: says no model_dim, and a scale alone does not tell it; add it")
    soft_prompt, model = config.get("soft_prompt"), config.get("model")
    soft_prompt = soft_prompt if isinstance(soft_prompt, dict) else {}
    template, marker = soft_prompt.get("template"), soft_prompt.get("reserved_token", RESERVED_TOKEN)
    name = model.get("name") if isinstance(model, dict) else header.get("model_name")
    return SelfieAdapter(
        map=_map_of_tensors(tensors, normalize),
        width=size,
        template=template if isinstance(template, str) else None,
        marker=marker if isinstance(marker, str) and marker else RESERVED_TOKEN,
        model=name if isinstance(name, str) else None,
        config=config,
        header={key: value for key, value in header.items() if key != "config_json"},
    )


def write_selfie_adapter(adapter: SelfieAdapter, path: str | os.PathLike[str]) -> None:
    """Write a SelfIE adapter as a .safetensors file that the authors' package reads, in float32.

    A low-rank map without a bias gets one of zeros, a full one with a scale has it added to its diagonal. Raises
    LenscopeError for maps with weights for each layer, between two widths, or with a scale that is not above 0, which
    the format has no place for.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise LenscopeError(f"{path}: give a file that ends in .safetensors")
    kind, tensors = _tensors_of_map(adapter.map, adapter.width)
    projection = {
        "init_scale": 30.0,
        "low_rank_init_factor": 0.01,
        **(adapter.config.get("projection") or {}),
        "type": kind,
        "normalize_input": adapter.map.normalize,
        "low_rank_rank": adapter.map.rank,
    }
    config = {**adapter.config, "projection": projection}
    if adapter.template is not None:
        config["soft_prompt"] = {"template": adapter.template, "reserved_token": adapter.marker}
    if adapter.model is not None:
        given = adapter.config.get("model")
        config["model"] = {**(given if isinstance(given, dict) else {}), "name": adapter.model}
    header = {
        "written_by": f"lenscope {__version__}",
        # a rank of its own is in config_json
        **{name: value for name, value in adapter.header.items() if name != "low_rank_rank"},
        "format": FILE_FORMAT,
        "config_json": json.dumps(config, allow_nan=False),
        "model_dim": str(adapter.width),
        "projection_type": kind,
        "normalize_input": str(adapter.map.normalize).lower(),
    }
    import safetensors.torch

    content = safetensors.torch.save(tensors, metadata=header)
    with whole_file(path) as file:
        file.write_bytes(content)


def _configuration_in(header: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration that a header holds, and the part of it about the projection."""
    if "config_json" in header:
        config = json.loads(header["config_json"])
        if not isinstance(config, dict) or not isinstance(config.get("projection"), dict):
            raise ValueError("config_json has no projection")
        return config, config["projection"]
    flat = {
        "type": header["projection_type"],
        "normalize_input": {"true": True, "false": False}.get(header.get("normalize_input", "true").lower()),
        "low_rank_rank": int(header["low_rank_rank"]) if header.get("low_rank_rank") else None,
    }
    return {"projection": flat}, flat


def _require_agreement(header: Mapping[str, str], kind: str, normalize: bool, rank: int | None, where: str) -> None:
    """Raise LenscopeError where a single entry of a header says another projection than what is read of it."""
    taken = {"projection_type": kind, "normalize_input": str(normalize).lower()}
    # where a projection has no rank, or a file does not say it, its entry is empty or a word
    if rank is not None and header.get("low_rank_rank", "").isdecimal():
        taken["low_rank_rank"] = str(rank)
    for name, value in taken.items():
        if header.get(name, value).lower() != value:
            raise LenscopeError(
                f"{where}: in its header {name} is {header[name][:40]!r}, and {value!r} in config_json; "
                "correct the wrong one"
            )


def _checked_tensors(
    tensors: Mapping[str, Tensor], kind: str, width: int | None, rank: Any, where: str
) -> dict[str, Tensor]:
    """The tensors of a projection, in float32 or wider, each of its shape and finite."""
    wanted = TENSORS[kind]
    missing = [name for name in wanted if name not in tensors]
    beside = [name for name in tensors if name not in wanted]
    if missing or beside:
        what = f"lacks the tensor {missing[0]}" if missing else f"has a tensor {escaped(beside[0])[:40]!r}"
        raise LenscopeError(f"{where}: {what}; a projection of type {kind} has {', '.join(wanted)}")
    if width is None and kind != "scale_only":
        named = tensors["bias"]
        width = named.shape[0] if named.ndim == 1 else None
    ranks = tensors["U"].shape[-1] if "U" in wanted and tensors["U"].ndim == 2 else None
    rank = ranks if rank is None else rank
    shapes = {"log_scale": (1,), "bias": (width,), "weight": (width, width), "U": (width, rank), "V": (width, rank)}
    for name in wanted:
        tensor = floating_weight(tensors[name], where, name)
        if tuple(tensor.shape) != shapes[name] or not tensor.numel():
            raise LenscopeError(
                f"{where}: {name} is of shape {tuple(tensor.shape)}; a projection of type {kind} of vectors of {width} "
                f"numbers{f' and rank {rank}' if rank is not None else ''} has {shapes[name]}"
            )
        if not torch.isfinite(tensor).all():
            raise LenscopeError(f"{where}: {name} holds NaN or infinity; fetch the file again")
    if "log_scale" in wanted and not torch.isfinite(tensors["log_scale"].float().exp()).all():
        raise LenscopeError(f"{where}: log_scale is {float(tensors['log_scale']):.4g}, too large for a scale")
    return {name: tensors[name] for name in wanted}


def _map_of_tensors(tensors: Mapping[str, Tensor], normalize: bool) -> VectorMap:
    """x U Vᵀ of rows x is V Uᵀ x: what the format calls U is here the transpose of the second factor."""
    scale, u, v = (tensors.get(name) for name in ("log_scale", "U", "V"))
    return VectorMap(
        scale=None if scale is None else scale[0].double().exp(),
        U=v,
        V=None if u is None else u.T,
        W=tensors.get("weight"),
        bias=tensors.get("bias"),
        normalize=normalize,
    )


def _tensors_of_map(f: VectorMap, width: int) -> tuple[str, dict[str, Tensor]]:
    kind = _PROJECTIONS[f.shape]
    if f.layers is not None:
        raise LenscopeError(f"{f!r}: has weights for each layer, and the format {FILE_FORMAT} one map for all")
    if (f.input_width or width) != width or (f.width or width) != width:
        raise LenscopeError(
            f"{f!r}: maps {f.input_width} numbers to {f.width}; the format {FILE_FORMAT} maps {width} to {width}"
        )
    if f.scale is not None and f.scale <= 0:
        raise LenscopeError(
            f"{f!r}: its scale is {float(f.scale):.4g}, and the format {FILE_FORMAT} has only ones above 0"
        )
    bias = torch.zeros(width) if f.bias is None else f.bias
    tensors: dict[str, Tensor] = {"bias": bias} if kind != "scale_only" else {}
    if f.scale is not None and kind != "full_rank":
        tensors["log_scale"] = f.scale.double().log().reshape(1)
    if f.U is not None and f.V is not None:
        tensors |= {"U": f.V.T, "V": f.U}
    if f.W is not None:
        tensors["weight"] = f.W if f.scale is None else f.W.double() + f.scale.double() * torch.eye(width)
    return kind, {name: t.detach().cpu().float().contiguous().clone() for name, t in tensors.items()}
