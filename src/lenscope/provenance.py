"""What a number came from: versions, model, weights, dtype, attention backend, readout.

Knows: how to name a model and its weights so that two results can be told to be of the same model.
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

_hashes: WeakKeyDictionary[nn.Module, tuple[tuple[tuple[int, int], ...], str]] = WeakKeyDictionary()


def provenance(lm: "LM") -> dict[str, Any]:
    """Everything a reader needs to make the same numbers again, as JSON values."""
    return {
        "lenscope": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": lm.name,
        "source": lm.source,
        "revision": lm.revision,
        "model_hash": model_hash(lm.model),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "device": str(lm.device),
        "attention": getattr(lm.model.config.get_text_config(), "_attn_implementation", None),
        "readout": lm.readout.description,
        "readout_deviation": lm.verified.deviation,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def model_hash(model: nn.Module) -> str | None:
    """SHA-256 over every byte of every parameter, with names, shapes and dtypes; None where weights are offloaded.

    Kept until a weight changes: tensors count their in-place changes.
    """
    parameters = dict(model.named_parameters())
    if any(p.is_meta for p in parameters.values()):
        return None
    state = tuple((p.data_ptr(), p._version) for p in parameters.values())
    if model not in _hashes or _hashes[model][0] != state:
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(_digest, parameters.values()))
        total = hashlib.sha256()
        for (name, p), digest in sorted(zip(parameters.items(), digests, strict=True), key=lambda item: item[0][0]):
            total.update(f"{name} {tuple(p.shape)} {p.dtype} ".encode() + digest)
        _hashes[model] = (state, f"sha256:{total.hexdigest()}")
    return _hashes[model][1]


def _digest(p: Tensor) -> bytes:
    total = hashlib.sha256()
    for piece in _bytes(p.detach()):
        total.update(piece)
    return total.digest()


def _bytes(p: Tensor) -> Iterator[memoryview]:
    # in pieces, so that a tensor on an accelerator or with gaps is never copied whole
    flat = p.contiguous().reshape(-1).view(torch.uint8) if p.numel() else p.new_empty(0, dtype=torch.uint8)
    for piece in flat.split(1 << 26):
        yield memoryview(piece.cpu().numpy())
