"""Whether a model is the one it was: a hash of all that moves its logits, kept until something moves.

Knows: how bytes are hashed, and how a change is seen without hashing anew.
Does not know: what makes a model's numbers (constituents.py), lenses, results, who asks.
"""

import functools
import hashlib
import math
import secrets
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lenscope.models.constituents import absent, settings, stored, tensors

Sum = Tensor | int

# dtypes that weights are rounded to, to be compared with the same weights in that dtype
ROUNDED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Tensors up to this many bytes are summed by a checksum that knows the order of all bytes.
SMALL = 1 << 20
# Larger ones by sums of runs of this many 8-byte words, each with its place; at a glance only from this many bytes on.
RUN, GLANCED = 61, 1 << 16


@dataclass
class _Known:
    """What was seen of a model when it was last hashed: tensors' places, sums and digests, settings, hashes."""

    marks: dict[str, tuple[Any, ...]]
    settings: tuple[str, ...]
    sums: dict[str, int]
    glances: dict[str, int]
    digests: dict[str, bytes]
    hashes: dict[str, str] = field(default_factory=dict)


_known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def model_hash(model: nn.Module) -> str:
    """The identity of a model: "sha256:" and the SHA-256 of its tensors, by name, shape, dtype and byte, and settings.

    It moves with whatever moves the logits, changes under `.data` or by numpy among them: every call reads all tensors
    once (20 ms for 500 MB) and hashes them only where a sum has moved. Weights that are not in memory, offloaded or
    split among processes, cannot be compared: the identity is then a word of its own that no other model has.
    """
    return _hashes(model, _sum_of_tensor, {"own": None})[0]


def rounded_hash(model: nn.Module, dtype: str) -> str:
    """As `model_hash`, with tensors rounded to a dtype of `ROUNDED`: the same for two loads of a checkpoint.

    Whoever loads a checkpoint in two dtypes gets weights of which the finer, rounded, equal the coarser bit for bit.
    So weights are known again across dtypes, and one changed weight is seen unless the coarser dtype cannot hold it.
    """
    return _hashes(model, _sum_of_tensor, {dtype: lambda: _rounded(model, dtype)})[0]


def stored_hash(model: nn.Module, dtype: str = "own") -> str:
    """As `model_hash`, of what a checkpoint stores alone, in the model's own dtype or rounded to one of `ROUNDED`."""
    return _hashes(model, _sum_of_tensor, {f"stored {dtype}": functools.partial(_stored, model, dtype)})[0]


def head_hash(model: nn.Module) -> str | None:
    """The SHA-256 of the output embedding's parameters; None where the model names none or they are not in memory."""
    return describe_weights(model)["head_hash"]


def describe_weights(model: nn.Module, dtypes: Sequence[str] = ()) -> dict[str, Any]:
    """`model_hash`, `head_hash` and, by dtype, `rounded_hash` and `stored_hash` of a model, from one look at it."""
    return _describe_with(model, _sum_of_tensor, dtypes)


def glanced(model: nn.Module) -> dict[str, Any]:
    """`model_hash` and `head_hash` for those who ask at every run: large tensors are sampled in each row and column.

    A change of single numbers under `.data` in a large tensor may be missed here; one made in the usual way is not.
    """
    hashes = _describe_with(model, _glance, ())
    return {name: hashes[name] for name in ("model_hash", "head_hash")}


def parameters_hash(model: nn.Module, dtype: str | None = None) -> str | None:
    """The identity in files of version 0.1.0: of parameters alone, rounded to a dtype if one is given."""
    parameters = dict(model.named_parameters())
    if any(map(absent, parameters.values())):
        return None
    make = functools.partial(_hash, parameters, ROUNDED[dtype] if dtype else None, ())
    return _hashes(model, _sum_of_tensor, {f"parameters {dtype}": make})[0]


def _describe_with(model: nn.Module, look: Callable[[Tensor], Sum], dtypes: Sequence[str]) -> dict[str, Any]:
    named = getattr(model, "get_output_embeddings", None)
    head = None if named is None else named()
    parameters = dict(head.named_parameters()) if isinstance(head, nn.Module) else {}
    wanted: dict[str, Callable[[], str] | None] = {"own": None}
    if parameters and not any(map(absent, parameters.values())):
        wanted["head"] = functools.partial(_hash, parameters, None, ())
    wanted |= {dtype: functools.partial(_rounded, model, dtype) for dtype in dtypes}
    named_in = ["own", *dtypes] if dtypes else []
    wanted |= {f"stored {dtype}": functools.partial(_stored, model, dtype) for dtype in named_in}
    hashes = dict(zip(wanted, _hashes(model, look, wanted), strict=True))
    rounded = {dtype: hashes[dtype] for dtype in dtypes}
    stored_hashes = {dtype: hashes[f"stored {dtype}"] for dtype in named_in}
    return {"model_hash": hashes["own"], "head_hash": hashes.get("head"), "rounded": rounded, "stored": stored_hashes}


def _rounded(model: nn.Module, dtype: str) -> str:
    return _hash(tensors(model), ROUNDED[dtype], settings(model))


def _stored(model: nn.Module, dtype: str) -> str:
    return _hash(stored(model), ROUNDED.get(dtype), ())


def _hashes(
    model: nn.Module, look: Callable[[Tensor], Sum], wanted: Mapping[str, Callable[[], str] | None]
) -> list[str]:
    """Hashes by name, kept while marks, settings and what `look` sees of each tensor stay as they were."""
    parts, acting = tensors(model), settings(model)
    marks = {name: _mark(name, t) for name, t in parts.items()}
    known = _known.get(model)
    same = known is not None and known.marks == marks and known.settings == acting
    if known is None or not same or _looked(parts, look) != (known.sums if look is _sum_of_tensor else known.glances):
        known = _known[model] = _seen(model, parts, marks, acting)
    for name, make in wanted.items():
        if name not in known.hashes:
            known.hashes[name] = _combined(parts, known.digests, {}, acting) if make is None else make()
    return [known.hashes[name] for name in wanted]


def _seen(
    model: nn.Module, parts: dict[str, Tensor], marks: dict[str, tuple[Any, ...]], acting: tuple[str, ...]
) -> _Known:
    """All that is kept of a model; digests of tensors that have not moved are those of before."""
    before = _known.get(model)
    sums, glances = _looked(parts, _sum_of_tensor), _looked(parts, _glance)
    unmoved = {}
    if before is not None:
        unmoved = {
            n: d
            for n, d in before.digests.items()
            if n in sums and (before.marks[n], before.sums[n]) == (marks[n], sums[n])
        }
    fresh = _digests({n: t for n, t in parts.items() if n not in unmoved}, None)
    return _Known(marks, acting, sums, glances, {**unmoved, **fresh})


# -- how bytes are looked at


def _mark(name: str, t: Tensor) -> tuple[Any, ...]:
    """Where a tensor is and how often it was changed in the usual way."""
    # parts that are made from packed weights when they are looked at, and weights elsewhere, have no place
    if "#" in name or absent(t):
        return t.shape, t.dtype, t.device
    version = None if t.is_inference() else t._version
    return t.shape, t.dtype, t.device, t.stride(), t.data_ptr(), version


def _flat(t: Tensor) -> Tensor:
    return t.detach().contiguous().reshape(-1).view(torch.uint8)


def _looked(parts: dict[str, Tensor], look: Callable[[Tensor], Sum]) -> dict[str, int]:
    """What `look` says of every tensor, as integers, brought from each device at once."""
    seen = {n: 0 if absent(t) or not t.numel() else look(t) for n, t in parts.items()}
    whole = {n: s for n, s in seen.items() if isinstance(s, int)}
    for device in {s.device for s in seen.values() if isinstance(s, Tensor)}:
        here = {n: s for n, s in seen.items() if isinstance(s, Tensor) and s.device == device}
        whole.update(zip(here, torch.stack(list(here.values())).tolist(), strict=True))
    return whole


def _sum_of_tensor(t: Tensor) -> Sum:
    """A sum that moves with every byte, and with their order but for that within runs of large tensors."""
    data = _flat(t)
    if t.device.type == "cpu" and len(data) <= SMALL:
        return zlib.crc32(data.numpy().data)
    before = -data.storage_offset() % 8
    runs = (len(data) - before) // (8 * RUN)
    end = before + runs * 8 * RUN
    rest = torch.cat([data[:before], data[end:]]).long()
    total = (rest * torch.arange(1, len(rest) + 1, device=data.device)).sum()
    if runs:
        sums = data[before:end].view(torch.int64).view(runs, RUN).sum(1)
        total = total + (sums * torch.arange(1, runs + 1, device=data.device)).sum() * 257
    return total


def _glance(t: Tensor) -> Sum:
    """As `_sum`, of a number in every row and every column of a large tensor on the CPU; elsewhere reading is cheap."""
    if t.device.type != "cpu" or t.ndim < 2 or t.numel() * t.element_size() <= GLANCED or not t.is_contiguous():
        return _sum_of_tensor(t)
    columns = t.shape[-1]
    step = max(1, min(columns, t.numel() // columns) - 1)
    while math.gcd(step, columns) > 1:
        step -= 1
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(t.element_size(), torch.int64)
    return t.detach().view(whole).view(-1)[::step].sum()


# -- how bytes are hashed


def _hash(parts: Mapping[str, Tensor], dtype: torch.dtype | None, acting: Iterable[str]) -> str:
    kinds = {n: dtype for n, t in parts.items() if dtype is not None and t.is_floating_point()}
    return _combined(parts, _digests(parts, dtype), kinds, acting)


def _combined(
    parts: Mapping[str, Tensor], digests: dict[str, bytes], kinds: dict[str, torch.dtype], acting: Iterable[str]
) -> str:
    total = hashlib.sha256()
    for name in sorted(parts):
        t = parts[name]
        total.update(f"{name} {tuple(t.shape)} {kinds.get(name, t.dtype)} ".encode() + digests[name])
    for line in acting:
        total.update(f"{line}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _digests(parts: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, bytes]:
    with ThreadPoolExecutor() as pool:
        return dict(zip(parts, pool.map(lambda t: _digest(t, dtype), parts.values()), strict=True))


def _digest(t: Tensor, dtype: torch.dtype | None) -> bytes:
    if absent(t):  # equal to nothing else
        return secrets.token_bytes(32)
    total = hashlib.sha256()
    kind = dtype if dtype is not None and t.is_floating_point() else t.dtype
    for piece in _byte_views(t.detach(), kind):
        total.update(piece)
    return total.digest()


def _byte_views(t: Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    # in pieces, so that a tensor on an accelerator, with gaps or of another dtype is never copied whole
    for piece in t.contiguous().reshape(-1).split(1 << 24) if t.numel() else ():
        yield memoryview(piece.to(dtype).view(torch.uint8).cpu().numpy())
