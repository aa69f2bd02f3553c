"""Lenses in the format of the package tuned-lens, read and written; and how a file of any package names its model.

Knows: what stands in its files, how it names layers and models. Does not know: where files lie (lens_files.py), the
files of Jacobian lenses (jacobian_files.py).

tuned-lens (Belrose et al. 2023; its nn/lenses.py, versions 0.0.x to 0.2.0): a folder with config.json and params.pt,
a state dict of `{l}.weight` W (D, D) and `{l}.bias` b (D) for the layers 0…n_layers-1, with A = I + W. Before 0.1 the
keys were `input_translator.…` for layer 0 and `layer_translators.{l-1}.…` for layer l ("probe" or "adapter" still
earlier), beside the model's own norm and unembedding. On the hub: the space AlignmentResearch/tuned-lens, folder
lens/MODEL.
"""

import hashlib
import json
import os
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.errors import LenscopeError, naming_place
from lenscope.files.kinds import CONFIG
from lenscope.files.writing import whole_file
from lenscope.mappings.mapping import Affine, LowRank, Pair, PairMapping, Scale
from lenscope.models.language_model import LM
from lenscope.models.load_options import dtype_name
from lenscope.models.loading import BUILT_IN
from lenscope.models.same_model import model_identity

PARAMS = ("params.pt", "params.safetensors")
# what the files of tuned-lens before 0.1 hold beside translators: copies of the model's own readout
_READOUT = ("layer_norm.", "unembedding.")


def export_tuned_lens(mapping: PairMapping, folder: str | os.PathLike[str]) -> None:
    """Write a fitted lens as config.json and params.pt, which the package tuned-lens 0.2.0 loads.

    There W = A - I and b, in float32. Raises LenscopeError unless the mapping goes from every layer of a model, but the
    last, to its last.
    """
    n_layers, size = mapping.source["n_layers"], mapping.source["hidden_size"]
    translators = [mapping.weights.get((layer, n_layers), mapping.weights.get(None)) for layer in range(n_layers)]
    lacking = [layer for layer, weights in enumerate(translators) if weights is None]
    if mapping.source != mapping.target or lacking:
        reason = f"none from layer {lacking[0]}" if lacking else "one between two models"
        raise LenscopeError(
            f"{mapping!r}: {reason}; tuned-lens has translators from every layer 0–{n_layers - 1} to {n_layers}"
        )
    state: OrderedDict[str, Tensor] = OrderedDict()
    for layer, weights in enumerate(translators):
        assert weights is not None
        state[f"{layer}.weight"] = _residual_weight(mapping, weights, size).float()
        state[f"{layer}.bias"] = weights[-1].detach().cpu().clone()
    config = {
        "base_model_name_or_path": mapping.source["model"],
        "d_model": size,
        "num_hidden_layers": n_layers,
        "bias": True,
        "base_model_revision": None,
        "unembed_hash": None,
        "lens_type": "linear_tuned_lens",
    }
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / CONFIG) as text, whole_file(folder / PARAMS[0]) as tensors:
            text.write_text(json.dumps(config), encoding="utf-8")
            torch.save(state, tensors)
    except (OSError, RuntimeError) as error:
        raise LenscopeError(f"{folder}: cannot be written ({' '.join(str(error).split())[:200]})") from error


def _residual_weight(mapping: PairMapping, weights: tuple[Tensor, ...], size: int) -> Tensor:
    """W (D, D) of h + W h + b, in float64."""
    first, second, *_ = (w.detach().cpu().double() for w in weights)
    if isinstance(mapping, Affine):
        return first - torch.eye(size, dtype=first.dtype)
    if isinstance(mapping, LowRank):
        return first @ second.T
    assert isinstance(mapping, Scale)
    return (first - 1) * torch.eye(size, dtype=first.dtype)


def describes_tuned_lens(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of a lens of the package tuned-lens."""
    # the config of a model may have d_model too
    return "d_model" in config and "model_type" not in config and bool({"num_hidden_layers", "num_layers"} & {*config})


def floating_weight(value: Tensor, where: str, key: Any) -> Tensor:
    """A tensor of weights in one of the usual dtypes of floating point, else LenscopeError."""
    if value.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        dtype = dtype_name(value.dtype)
        raise LenscopeError(f"{where}: {key!r} is of {dtype}; save it in float32, float16 or bfloat16")
    return value


def read_tuned_lens(config: dict[str, Any], state: dict[Any, Any], lm: LM, where: str) -> Affine:
    """A lens of the package tuned-lens from its config and its tensors, for `lm`; layers it lacks are the identity.

    Raises LenscopeError, about `where`, for one of another model or size, and for tensors that are no translators.
    """
    n_layers = lm.n_layers
    _check_sizes(where, lm, config["d_model"], config.get("num_hidden_layers", config.get("num_layers")))
    other = [k for k in ("extra_layers", "rank", "mlp_hidden_sizes", "sublayers", "share_weights") if config.get(k)]
    if other or config.get("reuse_unembedding") is False:
        feature = other[0] if other else "reuse_unembedding false"
        raise LenscopeError(
            f"{where}: has {feature}, of an early tuned-lens: more than one affine translator per layer"
        )
    base = config.get("base_model_name_or_path")
    known = _compare_unembedding(config.get("unembed_hash"), lm)
    if known != "equal":
        check_model_name(where, lm, base)
    translators: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        if str(key).startswith(_READOUT):
            continue
        layer, part = _layer_and_part(str(key))
        if layer is None or part not in ("weight", "bias") or not isinstance(value, Tensor) or layer >= n_layers:
            raise LenscopeError(f"{where}: its tensors include {key!r}, which is no translator of {n_layers} layers")
        translators.setdefault(layer, {})[part] = floating_weight(value, where, key)
    if not translators or any("weight" not in t for t in translators.values()):
        raise LenscopeError(f"{where}: lacks the weight of a translator; fetch it again")
    missing = [layer for layer in range(n_layers) if layer not in translators]
    size = lm.hidden_size
    weights: dict[Pair, tuple[Tensor, ...]] = {}
    for layer in range(n_layers):
        translator = translators.get(layer, {"weight": torch.zeros(size, size)})
        w, b = translator["weight"], translator.get("bias", torch.zeros(size))
        if w.shape != (size, size) or b.shape != (size,):
            raise LenscopeError(
                f"{where}: layer {layer} has a translator of shapes {tuple(w.shape)} and {tuple(b.shape)}; "
                f"{lm.name} needs {(size, size)} and {(size,)}"
            )
        weights[layer, n_layers] = (w.double() + torch.eye(size, dtype=torch.float64), b)
    report = {
        "lens": "tuned lens",
        "format": "tuned-lens",
        "base_model": base,
        "base_revision": config.get("base_model_revision"),
        "unembed_hash": known,
        "identity": missing,
    }
    return affine_of_file(weights, report, lm, where)


def _layer_and_part(key: str) -> tuple[int | None, str]:
    """The layer and the part that a key of a state dict names."""
    modern = re.fullmatch(r"(\d+)\.(\w+)", key)
    if modern:
        return int(modern[1]), modern[2]
    early = re.fullmatch(
        r"(?:input_(?:translator|probe|adapter)|layer_(?:translator|probe|adapter)s\.(\d+))\.(\w+)", key
    )
    if early:
        return (0 if early[1] is None else int(early[1]) + 1), early[2]
    return None, ""


def _compare_unembedding(hashed: Any, lm: LM) -> str:
    """Whether the hash of an unembedding is that of `lm`: "equal", "different" or "unknown".

    tuned-lens hashes what numpy prints of the matrix, which is its corners to one digit; another dtype or another
    version of that package can give another hash for the same weights, so only "equal" is evidence.
    """
    head = lm.model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if not isinstance(hashed, str) or not isinstance(weight, Tensor) or weight.is_meta or weight.ndim != 2:
        return "unknown"
    with np.printoptions(threshold=1000, edgeitems=3, linewidth=75):
        printed = np.array_str(weight.detach().float().cpu().numpy(), precision=1)
    return "equal" if hashlib.sha256(printed.encode()).hexdigest() == hashed else "different"


def affine_of_file(weights: dict[Pair, tuple[Tensor, ...]], report: dict[str, Any], lm: LM, where: str) -> Affine:
    """A lens of `lm` with weights that were read; LenscopeError, about `where`, for what is no such lens."""
    model = model_identity(lm)
    with naming_place(where):
        return Affine(weights, model, model, report)


def _check_sizes(where: str, lm: LM, size: Any, n_layers: Any) -> None:
    if (size, n_layers) != (lm.hidden_size, lm.n_layers):
        raise LenscopeError(
            f"{where}: was fitted for {n_layers} layers of {size}; {lm.name} has {lm.n_layers} of {lm.hidden_size}"
        )


def names_of_model(lm: LM) -> set[str]:
    """The names that a lens file may call a model, without its owner, in small letters."""
    built_in = BUILT_IN[lm.name].hub_id if lm.name in BUILT_IN else ""
    given = (lm.name, lm.source, built_in, lm.model.name_or_path)
    return {name.rstrip("/").rsplit("/", 1)[-1].lower() for name in given if name}


def check_model_name(where: str, lm: LM, base: Any) -> None:
    """Raise LenscopeError, about `where`, unless `base` is a name of `lm`."""
    if not isinstance(base, str) or base.rstrip("/").rsplit("/", 1)[-1].lower() not in names_of_model(lm):
        raise LenscopeError(
            f"{where}: was fitted for {base!r}, and {lm.name} is another model or another name of it; load the lens "
            "with that model, and move it with transferred(lm)"
        )
