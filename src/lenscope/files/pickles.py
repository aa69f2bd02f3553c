"""Files of `torch.save`, read without running them: tensors in dictionaries and lists, nothing else.

Knows: the few pickle instructions that such files have (what `weights_only=True` of torch.load knows), where torch puts
the numbers: entries of a zip, or the end of a file before torch 1.6. Does not know: what tensors are for.

torch.load itself allocates what a file declares (ten gigabytes for a pickle of a kilobyte), reads past an entry that is
shorter than declared, and checks no checksums.
"""

import io
import os
import pickletools
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.files.untrusted import checked_reading, escaped

# What the entries of a zip may take in all, unpacked: so many bytes, or so many times the file's.
_SMALL, _TIMES = 1 << 28, 4
# values of a tensor that repeats those of its storage
_REPEATED = 1 << 20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_OTHER_TENSORS = {
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_sparse_csr_tensor": "sparse",
    "_rebuild_qtensor": "quantised",
    "_rebuild_meta_tensor_no_storage": "meta",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_wrapper_subclass": "wrapped",
    "_rebuild_from_type_v2": "wrapped",
    "_rebuild_device_tensor_from_numpy": "device",
    "_rebuild_device_tensor_from_cpu_tensor": "device",
}
_STORAGES = {
    f"{name}Storage": dtype
    for name, dtype in (
        ("Double", torch.float64),
        ("Float", torch.float32),
        ("Half", torch.float16),
        ("BFloat16", torch.bfloat16),
        ("Long", torch.int64),
        ("Int", torch.int32),
        ("Short", torch.int16),
        ("Char", torch.int8),
        ("Byte", torch.uint8),
        ("Bool", torch.bool),
        ("ComplexFloat", torch.complex64),
        ("ComplexDouble", torch.complex128),
        ("Untyped", torch.uint8),
    )
}


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` wrote: tensors, on the CPU, and plain values in dictionaries, lists and tuples; runs no code.

    Raises LenscopeError for a file that holds anything else, that is damaged, or that declares more than it holds.
    """
    path = Path(path)
    with checked_reading(path, "is damaged, or no file of tensors; fetch it again"):
        try:
            if zipfile.is_zipfile(path):
                return _zipped(path)
            return _legacy(path)
        except _CodeError as error:
            raise LenscopeError(
                f"{escaped(path)}: is a pickle that holds more than tensors and could run code; it was not loaded "
                f"({error})"
            ) from error
        except _KindError as error:
            raise LenscopeError(
                f"{escaped(path)}: holds a {error} tensor; save it as a dense one on the CPU"
            ) from error


class _CodeError(ValueError):
    """A pickle that asks for more than state dictionaries do."""


class _KindError(ValueError):
    """A tensor that is not dense, or not there."""


@dataclass(frozen=True)
class _Global:
    """Something that a pickle names; it is never looked up."""

    module: str
    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class _View:
    """A tensor to be made of a storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


def _zipped(path: Path) -> Any:
    with zipfile.ZipFile(path) as file:
        entries = {e.filename: e for e in file.infolist()}
        total, size = sum(e.file_size for e in entries.values()), path.stat().st_size
        if len(entries) != len(file.infolist()) or total > max(_SMALL, _TIMES * size):
            raise ValueError(f"its entries say that they hold {total:,} bytes, and the file has {size:,}")
        (name,) = (n for n in entries if n.endswith("data.pkl") and n.count("/") <= 1)
        prefix = name.removesuffix("data.pkl")
        if f"{prefix}byteorder" in entries and file.read(f"{prefix}byteorder") != b"little":
            raise ValueError("its numbers are in another order of bytes")
        contents: dict[str, bytearray] = {}

        def raw(storage: _Storage) -> bytearray:
            # reading an entry to its end checks its checksum
            if storage.key not in contents:
                contents[storage.key] = bytearray(file.read(f"{prefix}data/{storage.key}"))
            return contents[storage.key]

        content = _resolved(_unpickled(io.BytesIO(file.read(name))), raw)
        unused = file.testzip()
        if unused is not None:
            raise ValueError(f"the checksum of {unused} is wrong")
        return content


def _legacy(path: Path) -> Any:
    content = io.BytesIO(path.read_bytes())
    if _unpickled(content) != _LEGACY_MAGIC or _unpickled(content) != 1001:
        raise ValueError("it is none of torch.save")
    if _unpickled(content).get("little_endian") is not True:
        raise ValueError("its numbers are in another order of bytes")
    tree = _unpickled(content)
    storages: dict[str, _Storage] = {}
    _resolved(tree, lambda storage: storages.setdefault(storage.key, storage) and None)
    contents: dict[str, bytearray] = {}
    for key in _unpickled(content):
        count = int.from_bytes(content.read(8), "little", signed=True)
        storage = storages[key]
        if count != storage.count:
            raise ValueError("a storage of it has another size than its tensors say")
        contents[key] = bytearray(content.read(count * storage.dtype.itemsize))
    return _resolved(tree, lambda storage: contents[storage.key])


def _resolved(value: Any, raw: Any) -> Any:
    """A tree with tensors in place of what describes them."""
    if isinstance(value, dict):
        return {k: _resolved(v, raw) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_resolved(v, raw) for v in value)
    if isinstance(value, _View):
        return _tensor(value, raw(value.storage))
    if isinstance(value, _Global | _Storage):
        raise _CodeError(f"it holds {value}")
    return value


def _tensor(view: _View, content: bytearray | None) -> Tensor | None:
    storage, size, stride = view.storage, view.size, view.stride
    held = storage.count * storage.dtype.itemsize
    count = held // view.dtype.itemsize
    sound = len(size) == len(stride) <= 16 and min((*size, *stride, view.offset, storage.count)) >= 0
    last = view.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if sound else 0
    values = prod(size) if sound else 0
    if not sound or values > max(count, _REPEATED) or (values and last >= count):
        raise ValueError("a tensor of it is larger than its storage")
    if content is None:
        return None
    if len(content) != held:
        raise ValueError(f"a storage of it has {len(content):,} bytes, not {held:,}")
    if not values:
        return torch.empty(size, dtype=view.dtype)
    return torch.frombuffer(content, dtype=view.dtype).as_strided(size, stride, view.offset)


def _unpickled(file: io.BytesIO) -> Any:
    """What the next pickle of a file holds; nothing that it names is called."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    marks: list[int] = []

    def since() -> list[Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    for code, argument, _ in pickletools.genops(file):
        name, arg = code.name, cast(Any, argument)
        if name in _PLAIN:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            # what is held twice by reference can be small and still be without end to whoever goes through it
            if not _simple(memo[arg]):
                raise _CodeError("a list or dictionary that is in it twice")
            stack.append(memo[arg])
        elif name in _TUPLES:
            stack[len(stack) - _TUPLES[name] :] = [tuple(stack[len(stack) - _TUPLES[name] :])]
        elif name == "TUPLE":
            stack.append(tuple(since()))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else since()
            _require_type(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else since()
            _require_type(stack[-1], dict).update(zip(map(_dict_key, items[::2]), items[1::2], strict=True))
        elif name == "GLOBAL":
            module, _, attribute = arg.partition(" ")
            stack.append(_global_named(module, attribute))
        elif name == "BINPERSID":
            stack.append(_storage_named(stack.pop()))
        elif name == "REDUCE":
            arguments = _require_type(stack.pop(), tuple)
            stack.append(_rebuilt(stack.pop(), arguments))
        elif name == "BUILD":
            # what torch says beside a state dictionary: the versions of its modules
            stack.pop()
            _require_type(stack[-1], dict)
        elif name == "STOP":
            (value,) = stack
            return value
        elif name != "PROTO":
            raise _CodeError(f"the instruction {name}")
    raise ValueError("it ends too early")


_PLAIN = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")
_CONSTANTS: dict[str, Any] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _simple(value: Any) -> bool:
    if isinstance(value, tuple):
        return len(value) <= 16 and all(_simple(v) and not isinstance(v, tuple) for v in value)
    return not isinstance(value, list | dict)


def _require_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise _CodeError(f"a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _dict_key(value: Any) -> Any:
    if not isinstance(value, str | int | float | None):
        raise _CodeError(f"a key that is a {type(value).__name__}")
    return value


def _global_named(module: str, name: str) -> Any:
    """What a pickle may name, as a token."""
    if module.startswith("torch") and name in _STORAGES:
        return _Global("torch", name)
    if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter"):
        return _Global(module, name)
    if (module, name) in (("collections", "OrderedDict"), ("torch", "Size")):
        return _Global(module, name)
    if module in ("torch._utils", "torch._tensor") and name in _OTHER_TENSORS:
        raise _KindError(_OTHER_TENSORS[name])
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    raise _CodeError(escaped(f"{module}.{name}")[:80])


def _storage_named(identity: Any) -> _Storage:
    what, kind, key, _, count = _require_type(identity, tuple)[:5]
    if what != "storage" or not isinstance(kind, _Global) or type(key) is not str or type(count) is not int:
        raise _CodeError("a storage that is none of torch.save")
    if identity[5:] not in ((), (None,)):
        raise ValueError("a storage that is a part of another; save it again with torch 1.6 or newer")
    return _Storage(key, _STORAGES[kind.name], count)


def _rebuilt(what: Any, arguments: tuple[Any, ...]) -> Any:
    name = what.name if isinstance(what, _Global) else ""
    if name == "OrderedDict":
        return {_dict_key(k): v for k, v in arguments[0]} if arguments else {}
    if name == "Size":
        return _require_type(arguments[0], tuple)
    if name == "_rebuild_parameter":
        return arguments[0]
    if name not in ("_rebuild_tensor_v2", "_rebuild_tensor_v3"):
        raise _CodeError(f"a call of {what!r:.60}")
    storage, offset, size, stride = arguments[:4]
    if not isinstance(storage, _Storage) or not all(type(n) is int for n in (offset, *size, *stride)):
        raise _CodeError("a tensor that is none of torch.save")
    dtype = arguments[6] if name.endswith("3") else storage.dtype
    if not isinstance(dtype, torch.dtype):
        raise _CodeError("a tensor without a dtype")
    return _View(storage, offset, tuple(size), tuple(stride), dtype)
