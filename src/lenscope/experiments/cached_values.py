"""Values that experiments compute as JSON and tensors, and back: what a folder holds is the result itself.

Knows: numbers, texts, lists, tuples, dictionaries, arrays, tensors, and lenscope's dataclasses and named tuples of
them. Does not know: what values mean, where they are kept.
"""

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

# what stands in JSON for a value that JSON has no form for: {mark: its parts}
TUPLE, DICTIONARY, ARRAY, TENSOR, OBJECTS, NUMBER, RECORD = (
    "tuple", "dictionary", "array", "tensor", "objects", "number", "record",
)  # fmt: skip


def encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value in JSON, whose arrays and tensors are put into `tensors` under names of their own.

    Raises TypeError for a value of any other kind, such as a function.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return float(value) if isfinite(value) else {NUMBER: str(value)}
    if isinstance(value, list):
        return [encode(v, tensors) for v in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        return {OBJECTS: [list(value.shape), str(value.dtype), encode(value.reshape(-1).tolist(), tensors)]}
    if isinstance(value, np.ndarray):
        # a copy, since a file of tensors holds no two that share memory
        return {ARRAY: _name_tensor(torch.from_numpy(np.array(value)), tensors)}
    if isinstance(value, Tensor):
        return {TENSOR: _name_tensor(value.detach().cpu().contiguous(), tensors)}
    if isinstance(value, Mapping):
        return {DICTIONARY: [[encode(k, tensors), encode(v, tensors)] for k, v in value.items()]}
    cls = type(value)
    if cls.__module__.startswith("lenscope.") and (is_dataclass(value) or hasattr(value, "_fields")):
        parts = {name: encode(getattr(value, name), tensors) for name in _fields_of(cls)}
        return {RECORD: [cls.__module__, cls.__qualname__, parts]}
    if cls is tuple:
        return {TUPLE: [encode(v, tensors) for v in value]}
    raise TypeError(f"a {cls.__qualname__} is no value that is cached; give numbers, texts, arrays, or records of them")


def decode(document: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `encode` wrote. Raises ValueError, LookupError or TypeError for JSON of anything else."""
    if isinstance(document, list):
        return [decode(v, tensors) for v in document]
    if not isinstance(document, dict):
        return document
    ((mark, parts),) = document.items()
    if mark == NUMBER:
        return float(parts)
    if mark == TENSOR:
        return tensors[parts]
    if mark == ARRAY:
        return tensors[parts].numpy()
    if mark == OBJECTS:
        shape, dtype, values = parts
        flat = np.empty(len(values), dtype=dtype)
        flat[:] = decode(values, tensors)
        return flat.reshape(shape)
    if mark == TUPLE:
        return tuple(decode(v, tensors) for v in parts)
    if mark == DICTIONARY:
        return {decode(k, tensors): decode(v, tensors) for k, v in parts}
    if mark == RECORD:
        module, name, given = parts
        # records of modules that are imported anyhow: a file makes no other code run
        cls = getattr(sys.modules[module], name) if module.startswith("lenscope.") else None
        if cls is None or not (is_dataclass(cls) or hasattr(cls, "_fields")) or {*given} != {*_fields_of(cls)}:
            raise ValueError(f"{module}.{name} is no record of lenscope with {', '.join(given)}")
        return cls(**{part: decode(v, tensors) for part, v in given.items()})
    raise ValueError(f"{mark!r} marks no value")


def _fields_of(cls: Any) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cls) if f.init) if is_dataclass(cls) else cls._fields


def _name_tensor(tensor: Tensor, tensors: dict[str, Tensor]) -> str:
    name = str(len(tensors))
    tensors[name] = tensor
    return name
