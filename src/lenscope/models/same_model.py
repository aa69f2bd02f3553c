"""Whether a model is the one that a file was made for, also in another dtype, and on another machine.

Knows: what is kept of a model in files, since when; how two descriptions are compared. Does not know: what is in files.
"""

import platform
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers

from lenscope.models.deviations import TOLERANCE, deviation
from lenscope.models.identity import (
    ROUNDED,
    coarser_dtypes,
    describe_weights,
    hashes_are_kept,
    model_hash,
    parameters_hash,
    rounded_hash,
    stored_hash,
)
from lenscope.models.language_model import LM
from lenscope.models.load_options import dtype_name

# how models are identified: by parameters alone until 0.1.0, which said nothing of it; since then as in identity.py
IDENTITY = 2
# logits that are kept of each of two short texts
COMPARED_LOGITS = 24
# how far they may be off where the dtypes differ, in standard deviations
ACROSS = 0.2


def model_identity(lm: LM) -> dict[str, Any]:
    """What is kept of a model to know it again, also in another dtype, as JSON values: see `is_same_model`."""
    return {
        "model": lm.name,
        "identity": IDENTITY,
        **describe_weights(lm.model, coarser_dtypes(lm.dtype)),
        "environment": _environment(lm),
        "probe": _some_logits(lm),
        "dtype": dtype_name(lm.dtype),
        "hidden_size": lm.hidden_size,
        "n_layers": lm.n_layers,
    }


def is_same_model(known: Mapping[str, Any], lm: LM) -> bool:
    """Whether what is kept of a model, by `model_identity` or by version 0.1.0, is of `lm`, in its dtype or another.

    Names and sizes are no evidence: where no hash was kept, the answer is no. Another
    version of transformers or torch, or another processor, may name settings anew and round what is made of them, such
    as RoPE's frequencies: there the stored weights must be equal, and the logits of two short texts.
    """
    current = known.get("identity") == IDENTITY
    hashed, rounded = known.get("model_hash"), known.get("rounded")
    if not hashed:
        return False
    own: Callable[..., str | None] = model_hash if current else parameters_hash
    if hashed == own(lm.model):
        return True
    dtypes = {str(known.get("dtype")), dtype_name(lm.dtype)}
    # the coarser of two; of the two 16-bit ones the checkpoint's own, which is not known
    coarse = dtypes & {"bfloat16", "float16"} or {"float32"}
    across = len(dtypes) > 1 and dtypes <= {*ROUNDED, "float64"}
    if across and isinstance(rounded, dict):
        here: Callable[..., str | None] = rounded_hash if current else parameters_hash
        if any(rounded.get(d) is not None and rounded[d] == here(lm.model, d) for d in coarse):
            return True
    stored = known.get("stored")
    if not current or not isinstance(stored, dict) or known.get("environment") == _environment(lm):
        return False
    # "own" is of the model's dtype
    names = coarse if across else {"own"} if len(dtypes) == 1 else set()
    if not any(stored.get(n) is not None and stored[n] == stored_hash(lm.model, n) for n in names):
        return False
    expected = torch.as_tensor(known.get("probe"), dtype=torch.float64)
    tolerance = ACROSS if across else 10 * TOLERANCE.get(lm.dtype, 1e-4)
    return deviation(torch.tensor(_some_logits(lm), dtype=torch.float64), expected) <= tolerance


def sizes_of(lm: LM) -> dict[str, Any]:
    """What tells a model at hand from another one in a message, without the whole of `model_identity`."""
    sizes = {"hidden_size": lm.hidden_size, "n_layers": lm.n_layers}
    return {"model": lm.name, "model_hash": model_hash(lm.model), "dtype": dtype_name(lm.dtype), **sizes}


def in_words(model: Mapping[str, Any] | None) -> str:
    """A model's name, the beginning of its hash, dtype and sizes, in a few words; None: a source that is not known."""
    if model is None:
        return "an unknown source"
    known = str(model.get("model_hash") or "weights not known").removeprefix("sha256:")[:17]
    dtype = f"{model['dtype']}; " if model.get("dtype") else ""
    return f"{model['model']} ({known}; {dtype}{model['n_layers']} layers of {model['hidden_size']})"


def _environment(lm: LM) -> str:
    """What may make other numbers of the same weights and settings."""
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"transformers {transformers.__version__}, torch {torch.__version__}, {processor}, {lm.device.type}"


def _some_logits(lm: LM) -> list[float]:
    """Some logits of two short texts, to three digits.

    Those of a model that is split among processes are what they were when first asked for: one process may ask alone.
    Those of a model that is streamed from disk are of the run that it was observed in, since another reads all weights.
    """
    if hashes_are_kept(lm.model):
        return lm.runner.measured.once(("some logits",), lambda: _read_some_logits(lm))
    return _read_some_logits(lm)


def _read_some_logits(lm: LM) -> list[float]:
    step = max(1, lm.vocab_size // COMPARED_LOGITS)
    anatomy, two = lm.runner.anatomy, (0, 2)
    if lm.runner.stream is None:
        both = [lm.unembed(lm.runner.read_plain(anatomy.ids[row].tolist())[-1]) for row in two]
    else:
        both = [lm.unembed(anatomy.states[-1][row, -1]) for row in two]
    logits = torch.cat([row[::step][:COMPARED_LOGITS] for row in both])
    return [float(f"{value:.3g}") for value in logits.tolist()]
