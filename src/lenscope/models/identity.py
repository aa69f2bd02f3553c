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
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lenscope.models.constituents import Part, absent, parameters, settings, stored, tensors
from lenscope.models.offloaded import OnDisk

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
# hashes of models that say nothing of themselves any more, since their weights are split among processes
_lasting: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()


class Elsewhere(Protocol):
    """Who knows the digests of weights that come to a model only for as long as they are needed."""

    def resting(self) -> AbstractContextManager[None]:
        """A block within which none of them are there."""
        ...

    def digests(self, names: Iterable[str], dtype: torch.dtype | None) -> dict[str, bytes]:
        """The SHA-256 of those of `names` that it knows, in their own dtype or rounded."""
        ...


_elsewhere: WeakKeyDictionary[nn.Module, Elsewhere] = WeakKeyDictionary()


def weights_elsewhere(model: nn.Module, source: Elsewhere) -> None:
    """From now on what of the weights of a model is not in memory is what `source` says that it is."""
    _elsewhere[model] = source


def coarser_dtypes(dtype: torch.dtype) -> list[str]:
    """The dtypes that weights of a dtype are known again in."""
    return [name for name in ROUNDED if name != "float32" or dtype in (torch.float32, torch.float64)]


# digests by name of tensors, rounded to a dtype or not (None)
Digests = Callable[[Mapping[str, Part], torch.dtype | None], dict[str, bytes]]


def model_hash(model: nn.Module) -> str:
    """The identity of a model: "sha256:" and the SHA-256 of its tensors, by name, shape, dtype and byte, and settings.

    It moves with whatever moves the logits, changes under `.data` or by numpy among them: every call reads all tensors
    once (20 ms for 500 MB) and hashes them only where a sum has moved. Weights that wait on disk are read once, and
    again where their file has changed; those that are streamed from files are hashed as they pass by. Those that are
    split among processes are what they were when `keep_hashes` was told of it; else the identity is a word of its own
    that no other model has.
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
    return _hashes(model, _sum_of_tensor, {f"parameters {dtype}": lambda: _of_parameters(model, dtype)})[0] or None


def keep_hashes(model: nn.Module, digests: Digests | None = None) -> None:
    """From now on all hashes of a model are those of now, whatever becomes of its weights.

    For a model whose weights are about to be split among processes, or are: then `digests` knows how they are hashed.
    """
    parts, whole, acting = tensors(model), parameters(model), settings(model)
    head = _head_parameters(model)
    every = {**parts, **whole, **{f"#head {n}": t for n, t in head.items()}}
    wide = any(t.dtype in (torch.float32, torch.float64) for t in parts.values())
    hashes: dict[str, str] = {}
    for name in (None, *(d for d in ROUNDED if d != "float32" or wide)):
        dtype = ROUNDED[name] if name else None
        done, kinds = (digests or partial(_digests, model))(every, dtype), _rounded_kinds(every, dtype)
        hashes[name or "own"] = _combined(parts, done, kinds, acting)
        hashes[f"stored {name or 'own'}"] = _combined(stored(model), done, kinds, ())
        hashes[f"parameters {name}"] = _combined(whole, done, kinds, ())
        if name is None and head:
            hashes["head"] = _combined(head, {n: done[f"#head {n}"] for n in head}, {}, ())
    _lasting[model] = hashes


def hashes_are_kept(model: nn.Module) -> bool:
    """Whether a model's hashes are those of the time before its weights were split (`keep_hashes`)."""
    return model in _lasting


def _describe_with(model: nn.Module, look: Callable[[Tensor], Sum], dtypes: Sequence[str]) -> dict[str, Any]:
    wanted: dict[str, Callable[[], str] | None] = {"own": None, "head": lambda: _of_head(model)}
    wanted |= {dtype: functools.partial(_rounded, model, dtype) for dtype in dtypes}
    named_in = ["own", *dtypes] if dtypes else []
    wanted |= {f"stored {dtype}": functools.partial(_stored, model, dtype) for dtype in named_in}
    hashes = dict(zip(wanted, _hashes(model, look, wanted), strict=True))
    rounded = {dtype: hashes[dtype] for dtype in dtypes}
    stored_hashes = {dtype: hashes[f"stored {dtype}"] for dtype in named_in}
    head = hashes["head"] or None
    return {"model_hash": hashes["own"], "head_hash": head, "rounded": rounded, "stored": stored_hashes}


def _rounded(model: nn.Module, dtype: str) -> str:
    return _hash(model, tensors(model), ROUNDED[dtype], settings(model))


def _stored(model: nn.Module, dtype: str) -> str:
    return _hash(model, stored(model), ROUNDED.get(dtype), ())


def _of_head(model: nn.Module) -> str:
    """The hash of the output embedding's parameters; "" where there are none, or nothing says what they are."""
    own = _head_parameters(model)
    return "" if not own or any(map(absent, own.values())) else _hash(model, own, None, ())


def _head_parameters(model: nn.Module) -> dict[str, Part]:
    named = getattr(model, "get_output_embeddings", None)
    head = None if named is None else named()
    return parameters(model, head) if isinstance(head, nn.Module) else {}


def _of_parameters(model: nn.Module, dtype: str | None) -> str:
    own = parameters(model)
    return "" if any(map(absent, own.values())) else _hash(model, own, ROUNDED[dtype] if dtype else None, ())


def _hashes(
    model: nn.Module, look: Callable[[Tensor], Sum], wanted: Mapping[str, Callable[[], str] | None]
) -> list[str]:
    """Hashes by name, kept while marks, settings and what `look` sees of each tensor stay as they were."""
    if model in _lasting:
        return [_lasting[model].get(name, "") for name in wanted]
    source = _elsewhere.get(model)
    with nullcontext() if source is None else source.resting():
        return _hashes_at_rest(model, look, wanted)


def _hashes_at_rest(
    model: nn.Module, look: Callable[[Tensor], Sum], wanted: Mapping[str, Callable[[], str] | None]
) -> list[str]:
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
    model: nn.Module, parts: dict[str, Part], marks: dict[str, tuple[Any, ...]], acting: tuple[str, ...]
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
    fresh = _digests(model, {n: t for n, t in parts.items() if n not in unmoved}, None)
    return _Known(marks, acting, sums, glances, {**unmoved, **fresh})


# -- how bytes are looked at


def _mark(name: str, t: Part) -> tuple[Any, ...]:
    """Where a tensor is and how often it was changed in the usual way."""
    if isinstance(t, OnDisk):
        return t.shape, t.dtype, t.mark
    # parts that are made from packed weights when they are looked at, and weights elsewhere, have no place
    if "#" in name or absent(t):
        return t.shape, t.dtype, t.device
    version = None if t.is_inference() else t._version
    return t.shape, t.dtype, t.device, t.stride(), t.data_ptr(), version


def _flat(t: Tensor) -> Tensor:
    return t.detach().contiguous().reshape(-1).view(torch.uint8)


def _looked(parts: dict[str, Part], look: Callable[[Tensor], Sum]) -> dict[str, int]:
    """What `look` says of every tensor in memory, as integers, brought from each device at once."""
    here = {n: t for n, t in parts.items() if isinstance(t, Tensor) and not absent(t) and t.numel()}
    seen: dict[str, Sum] = {n: look(here[n]) if n in here else 0 for n in parts}
    whole = {n: s for n, s in seen.items() if isinstance(s, int)}
    for device in {s.device for s in seen.values() if isinstance(s, Tensor)}:
        there = {n: s for n, s in seen.items() if isinstance(s, Tensor) and s.device == device}
        whole.update(zip(there, torch.stack(list(there.values())).tolist(), strict=True))
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
    """As `_sum_of_tensor`, of a number in every row and every column of a large tensor.

    Also on an accelerator, which would else read all bytes of a large model before each trajectory.
    """
    if t.ndim < 2 or t.numel() * t.element_size() <= GLANCED or not t.is_contiguous():
        return _sum_of_tensor(t)
    columns = t.shape[-1]
    step = max(1, min(columns, t.numel() // columns) - 1)
    while math.gcd(step, columns) > 1:
        step -= 1
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(t.element_size(), torch.int64)
    return t.detach().view(whole).view(-1)[::step].sum()


# -- how bytes are hashed


def _hash(model: nn.Module, parts: Mapping[str, Part], dtype: torch.dtype | None, acting: Iterable[str]) -> str:
    return _combined(parts, _digests(model, parts, dtype), _rounded_kinds(parts, dtype), acting)


def _rounded_kinds(parts: Mapping[str, Part], dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    return {n: dtype for n, t in parts.items() if dtype is not None and t.dtype.is_floating_point}


def _combined(
    parts: Mapping[str, Part], digests: dict[str, bytes], kinds: dict[str, torch.dtype], acting: Iterable[str]
) -> str:
    total = hashlib.sha256()
    for name in sorted(parts):
        t = parts[name]
        total.update(f"{name} {tuple(t.shape)} {kinds.get(name, t.dtype)} ".encode() + digests[name])
    for line in acting:
        total.update(f"{line}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _digests(model: nn.Module, parts: Mapping[str, Part], dtype: torch.dtype | None) -> dict[str, bytes]:
    source, away = _elsewhere.get(model), [n for n, t in parts.items() if absent(t)]
    known = source.digests(away, dtype) if source is not None and away else {}
    here = {n: t for n, t in parts.items() if isinstance(t, Tensor) and n not in known}
    with ThreadPoolExecutor() as pool:
        done = known | dict(zip(here, pool.map(lambda t: digest_of(t, dtype), here.values()), strict=True))
    # one at a time: memory does not hold all those that wait on disk
    return {n: done[n] if n in done else digest_of(t, dtype) for n, t in parts.items()}


def digest_of(part: Part, dtype: torch.dtype | None) -> bytes:
    """The SHA-256 of a tensor's bytes, rounded to `dtype` where it has fractions; of what is absent a random one."""
    if absent(part):  # equal to nothing else
        return secrets.token_bytes(32)
    t = part.read() if isinstance(part, OnDisk) else part
    total = hashlib.sha256()
    kind = dtype if dtype is not None and t.is_floating_point() else t.dtype
    for piece in _byte_views(t.detach(), kind):
        total.update(piece)
    return total.digest()


def _byte_views(t: Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    # in pieces, so that a tensor on an accelerator, with gaps or of another dtype is never copied whole
    for piece in t.contiguous().reshape(-1).split(1 << 24) if t.numel() else ():
        yield memoryview(piece.to(dtype).view(torch.uint8).cpu().numpy())
