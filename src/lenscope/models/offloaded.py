"""Weights of a model that are not where it computes: they wait in memory or on disk until a module needs them.

Knows: accelerate's hooks, which bring them in and leave a tensor without numbers ("meta") in their place.
Does not know: what weights are looked at for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class OnDisk:
    """A weight that is read from disk whenever it is needed; `mark` moves with the file that it is in."""

    shape: torch.Size
    dtype: torch.dtype
    mark: tuple[Any, ...]
    read: Callable[[], Tensor]

    def numel(self) -> int:
        """How many numbers it has."""
        return self.shape.numel()


def offloaded_weights(model: nn.Module) -> dict[str, Tensor | OnDisk]:
    """By name, the weights and buffers that stand as meta tensors in a model and wait elsewhere; {} for most models.

    Tied weights have a name each.
    """
    weights: dict[str, Tensor | OnDisk] = {}
    for path, module in model.named_modules():
        for hook in _hooks(getattr(module, "_hf_hook", None)):
            waiting = getattr(hook, "weights_map", None)
            if not getattr(hook, "offload", False) or waiting is None:
                continue
            within = bool(getattr(hook, "place_submodules", False))
            inside = [*module.named_parameters(recurse=within), *module.named_buffers(recurse=within)]
            for name, t in inside:
                if t.is_meta:
                    weights[f"{path}.{name}" if path else name] = _waiting(waiting, name, t)
    return weights


def tied_names(model: nn.Module) -> dict[str, str]:
    """By name, of which other weight a weight is the same, as the model's class says: offloading parts the two."""
    keys = getattr(model, "all_tied_weights_keys", None)
    return dict(keys) if isinstance(keys, dict) else {}


def computes_in_place(module: nn.Module) -> bool:
    """Whether a module computes as its class does, with weights that stay where they are.

    Of what accelerate puts before a forward, that moves inputs to a module's device is allowed.
    """
    own = vars(module)
    if "_hf_hook" in own:
        replaced, hooks = own.get("_old_forward"), _hooks(own["_hf_hook"])
        if any(type(hook).__name__ != "AlignDevicesHook" or hook.offload for hook in hooks):
            return False
    else:
        replaced = own.get("forward")
    return replaced is None or getattr(replaced, "__func__", None) is type(module).forward


def whole_weight(model: nn.Module, module: Any) -> Tensor:
    """The weight of one of a model's modules with its numbers, wherever they are; all processes that share it ask."""
    path = next(name for name, m in model.named_modules() if m is module)
    part = offloaded_weights(model).get(f"{path}.weight", module.weight)
    weight = part.read() if isinstance(part, OnDisk) else part.detach()
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def bring_in(model: nn.Module, module: nn.Module, device: torch.device) -> None:
    """Put the weights of one of a model's modules on a device, for good; those that wait nowhere stay as they are."""
    path = next(name for name, m in model.named_modules() if m is module)
    waiting = {n: part for n, part in offloaded_weights(model).items() if n.startswith(f"{path}.")}
    if not waiting:
        return
    from accelerate.hooks import remove_hook_from_module

    brought = {n: part.read() if isinstance(part, OnDisk) else part for n, part in waiting.items()}
    remove_hook_from_module(module, recurse=True)
    for name, value in brought.items():
        owner, _, last = name.rpartition(".")
        held_by = model.get_submodule(owner)
        if last in held_by._parameters:
            held_by._parameters[last] = nn.Parameter(value.to(device), requires_grad=False)
        else:
            held_by._buffers[last] = value.to(device)


def _hooks(hook: Any) -> list[Any]:
    if hook is None:
        return []
    return [one for inner in hook.hooks for one in _hooks(inner)] if hasattr(hook, "hooks") else [hook]


def _waiting(waiting: Any, name: str, t: Tensor) -> Tensor | OnDisk:
    """What a hook's map has under a name: a tensor in memory, or how it is read."""
    at, place, key = waiting, waiting, name
    while hasattr(place, "dataset") and hasattr(place, "prefix"):
        place, key = place.dataset, place.prefix + key
    in_memory = place if isinstance(place, dict) else getattr(place, "state_dict", {})
    value = in_memory.get(key)
    if isinstance(value, Tensor):
        return value.detach().to(t.dtype)
    about = getattr(place, "index", {}).get(key, {})
    file = about.get("safetensors_file") or Path(getattr(place, "save_folder", None) or ".", f"{key}.dat")
    try:
        status = Path(file).stat()
        mark: tuple[Any, ...] = (
            str(file),
            about.get("weight_name", key),
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
        )
    except OSError:
        mark = (str(file), key)
    return OnDisk(t.shape, t.dtype, mark, lambda: at[name].detach().to(t.dtype))
