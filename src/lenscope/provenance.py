"""What a number came from: versions, model, weights, dtype, attention backend, readout.

Knows: how to name a model and its weights so that two results can be told to be of the same model, in any dtype.
Does not know: what was computed.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import Tensor, nn

from lenscope._version import __version__

if TYPE_CHECKING:
    from lenscope.model import LM

# dtypes that weights are rounded to, to be compared with the same weights in that dtype
ROUNDED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_State = tuple[tuple[int, int], ...]
_hashes: WeakKeyDictionary[nn.Module, tuple[_State, dict[str, str]]] = WeakKeyDictionary()


def provenance(lm: "LM") -> dict[str, Any]:
    """Everything a reader needs to make the same numbers again, as JSON values."""
    # another thread's run may have put its own attention in place of the model's
    with lm.lock:
        attention = getattr(lm.model.config.get_text_config(), "_attn_implementation", None)
    return {
        "lenscope": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": lm.name,
        "source": lm.source,
        "revision": lm.revision,
        "model_hash": model_hash(lm.model),
        "head_hash": head_hash(lm.model),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "device": str(lm.device),
        "attention": attention,
        "readout": lm.readout.description,
        "readout_deviation": lm.verified.deviation,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def model_hash(model: nn.Module) -> str | None:
    """SHA-256 over every byte of every parameter, with names, shapes and dtypes; None where weights are offloaded.

    Kept until a weight changes: tensors count their in-place changes.
    """
    return _kept(model, model, "own", None)


def head_hash(model: nn.Module) -> str | None:
    """As `model_hash`, of the output embedding alone; None where the model names none."""
    named = getattr(model, "get_output_embeddings", None)
    head = None if named is None else named()
    return _kept(model, head, "head", None) if isinstance(head, nn.Module) else None


def rounded_hash(model: nn.Module, dtype: str) -> str | None:
    """As `model_hash`, of the weights rounded to a dtype of `ROUNDED`: what `model_hash` would be in that dtype.

    Whoever loads a checkpoint in two dtypes gets weights of which the finer, rounded, equal the coarser bit for bit.
    So weights are known again across dtypes, and one changed weight is seen unless the coarser dtype cannot hold it.
    """
    rounded = ROUNDED[dtype]
    if all(p.dtype == rounded or not p.is_floating_point() for p in model.parameters()):
        return model_hash(model)
    return _kept(model, model, dtype, rounded)


def _kept(model: nn.Module, part: nn.Module, name: str, dtype: torch.dtype | None) -> str | None:
    parameters = dict(model.named_parameters())
    if any(p.is_meta for p in (*parameters.values(), *part.parameters())):
        return None
    state = tuple((p.data_ptr(), p._version) for p in parameters.values())
    if model not in _hashes or _hashes[model][0] != state:
        _hashes[model] = (state, {})
    known = _hashes[model][1]
    if name not in known:
        known[name] = _hash(dict(part.named_parameters()), dtype)
    return known[name]


def _hash(parameters: dict[str, Tensor], dtype: torch.dtype | None) -> str:
    kinds = {name: dtype if dtype and p.is_floating_point() else p.dtype for name, p in parameters.items()}
    with ThreadPoolExecutor() as pool:
        digests = dict(zip(parameters, pool.map(_digest, parameters.values(), kinds.values()), strict=True))
    total = hashlib.sha256()
    for name in sorted(parameters):
        total.update(f"{name} {tuple(parameters[name].shape)} {kinds[name]} ".encode() + digests[name])
    return f"sha256:{total.hexdigest()}"


def _digest(p: Tensor, dtype: torch.dtype) -> bytes:
    total = hashlib.sha256()
    for piece in _bytes(p.detach(), dtype):
        total.update(piece)
    return total.digest()


def _bytes(p: Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    # in pieces, so that a tensor on an accelerator, with gaps or of another dtype is never copied whole
    for piece in p.contiguous().reshape(-1).split(1 << 24) if p.numel() else ():
        yield memoryview(piece.to(dtype).view(torch.uint8).cpu().numpy())
