"""The arguments of loading, seen before any file is read: number formats, devices that this machine has, and so on.

Knows: which values transformers and this machine take. Does not know: files, how models are loaded (loading.py).
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch

from lenscope.errors import LenscopeError
from lenscope.visible_text import printable

DTYPES = ("float32", "float64", "bfloat16", "float16")
# what people write for them
_OTHER_NAMES = {
    "fp32": "float32", "single": "float32", "fp64": "float64", "bf16": "bfloat16", "fp16": "float16",
    "f16": "float16", "f32": "float32", "f64": "float64", "half": "float16", "float": "float32", "double": "float64",
}  # fmt: skip
# ways of spreading a model over all devices, as accelerate has them
SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")


def require_load_options(options: Mapping[str, Any]) -> None:
    """Raise LenscopeError for an argument of loading that no model takes, or whose device this machine lacks."""
    checks = {
        "dtype": require_dtype,
        "device_map": require_device_map,
        "max_memory": _require_max_memory,
        "attn_implementation": _require_attention,
        "quantization_config": _require_quantization,
    }
    for name, check in checks.items():
        if options.get(name) is not None:
            check(options[name])


def require_dtype(dtype: Any) -> None:
    """Raise LenscopeError for a number format that weights are not loaded in, naming the one that was meant."""
    if isinstance(dtype, Mapping):  # of a model of several parts, by part
        for one in dtype.values():
            require_dtype(one)
        return
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype == "auto" or (isinstance(named, torch.dtype) and dtype_name(named) in DTYPES):
        return
    raise LenscopeError(dtype_refusal(dtype))


def dtype_name(dtype: torch.dtype) -> str:
    """What a number format is called in settings and files, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def dtype_refusal(dtype: Any) -> str:
    """Give the line that says that weights are not loaded in a number format, with the one that was meant."""
    shown = printable(str(dtype))[:40]
    plain = shown.removeprefix("torch.").lower()
    close = get_close_matches(plain, DTYPES, 1, 0.7)
    meant = _OTHER_NAMES.get(plain) or (plain if plain in DTYPES else close[0] if close else None)
    near = f"; did you mean {meant}?" if meant else ""
    return f"dtype {shown}: give {', '.join(DTYPES[:-1])} or {DTYPES[-1]}{near}"


def require_device_map(places: Any) -> None:
    """Raise LenscopeError for places of weights that are none, or that this machine does not have."""
    if isinstance(places, str) and places in SPREADS:
        return
    if isinstance(places, Mapping):
        for name, place in places.items():
            if not isinstance(name, str):
                raise LenscopeError(f"device_map {str(name)[:40]!r}: give places by the names of modules")
            if place != "disk":
                _require_device(place)
        return
    if not isinstance(places, str | int | torch.device) or isinstance(places, bool):
        kind = type(places).__name__
        raise LenscopeError(f"device_map: is a {kind}; give {_devices()}, 'auto', or a place by the name of a module")
    _require_device(places)


def _require_device(place: Any) -> None:
    """LenscopeError unless weights can lie on this device."""
    shown = str(place)[:40]
    try:
        device = torch.device("cuda", place) if type(place) is int else torch.device(place)
    except (RuntimeError, TypeError, ValueError) as error:
        raise LenscopeError(f"device {shown}: there is no such device; give {_devices()} or auto") from error
    if device.type == "meta":
        raise LenscopeError(f"device {shown}: holds no numbers; give {_devices()} or auto")
    if device.type == "cpu":
        return
    backend: Any = getattr(torch, device.type, getattr(torch.backends, device.type, None))
    if not hasattr(backend, "is_available") or not backend.is_available():
        raise LenscopeError(
            f"device {shown}: this machine, or this build of torch, has none; give {_devices()} or auto"
        )
    count = backend.device_count() if hasattr(backend, "device_count") else 1
    if device.index is not None and not 0 <= device.index < count:
        raise LenscopeError(f"device {shown}: this machine has {count}, numbered from 0; give {_devices()} or auto")


def _devices() -> str:
    """The kinds of devices that there are here, in words."""
    others = [name for name in ("cuda", "xpu", "mps") if _available(name)]
    return " or ".join(["cpu", *others])


def _available(name: str) -> bool:
    backend: Any = torch.backends.mps if name == "mps" else getattr(torch, name, None)
    return backend is not None and bool(backend.is_available())


def _require_max_memory(limits: Any) -> None:
    """LenscopeError for what is no memory by device."""
    if not isinstance(limits, Mapping):
        raise LenscopeError(
            f"max_memory {str(limits)[:40]}: give memory by device, such as {{0: '20GB', 'cpu': '60GB'}}"
        )
    for place, size in limits.items():
        if not isinstance(place, int) and place not in ("cpu", "mps", "disk"):
            raise LenscopeError(f"max_memory {str(place)[:40]!r}: give numbers of devices, 'cpu' or 'mps'")
        known = isinstance(size, str) and re.fullmatch(r"\d+(\.\d+)?\s*[KMGT]?i?B", size, re.IGNORECASE)
        if not known and not (type(size) is int and size >= 0):
            raise LenscopeError(
                f"max_memory {place!r}: {str(size)[:40]!r} is no size; give bytes, or a text such as '20GB'"
            )


def _require_attention(name: Any) -> None:
    if not isinstance(name, str) or not name.strip():
        raise LenscopeError(f"attn_implementation {str(name)[:40]!r}: give a name, such as 'eager' or 'sdpa'")


def _require_quantization(config: Any) -> None:
    if not isinstance(config, Mapping) and not hasattr(config, "quant_method"):
        raise LenscopeError(
            f"quantization_config: is a {type(config).__name__}; give one of transformers, such as BitsAndBytesConfig"
        )
