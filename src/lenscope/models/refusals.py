"""Why a model is refused before it runs: its files lack weights, are parts of others, or need code that is not ours.

Knows: what transformers says it did not find in files, parts of split files, adapters.
Does not know: where models come from (loading.py); why one is refused once it has run: its stream is not found or not
causal (residual_stream.py), or its readout does not give its own logits (readout.py).

What a checkpoint lacks, transformers draws at random and says so in its log only: such a model is refused here.
"""

import difflib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lenscope.errors import LenscopeError
from lenscope.files import hub

ADAPTER = "adapter_config.json"
# what every tokenizer writes, and how the names of what others wrote begin or end
TOKENIZER = "tokenizer_config.json"
_TOKENIZERS = ("tokenizer*", "vocab*", "spiece*", "*.model", "*.tiktoken")
# the parts of a split GGUF file, as llama.cpp names them
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})$")
# Buffers of positions and counts, which are made from sizes alone and which older checkpoints do not hold.
_MADE = re.compile(r"(^|\.)(position_ids|token_type_ids|num_batches_tracked|relative_position_index)$")


def require_whole(source: str, model: nn.Module, info: Mapping[str, Any]) -> tuple[str, ...]:
    """Raise LenscopeError unless every weight of `model` came from the files, going by transformers' loading info.

    Returns the names of weights in the files that the model has no place for.
    """
    unused = tuple(sorted(info["unexpected_keys"]))
    missing = sorted(key for key in info["missing_keys"] if not _MADE.search(key))
    shapes = sorted(map(_mismatch, info["mismatched_keys"]))
    if info["error_msgs"]:
        raise LenscopeError(
            f"{source}: its weights cannot be read: {' '.join(str(info['error_msgs'][0]).split())[:300]}"
        )
    if shapes:
        raise LenscopeError(
            f"{source}: {_n_weights(shapes, 'weight')} of other shapes than its configuration says: {_first(shapes)}; "
            "give the configuration that belongs to these weights"
        )
    if missing:
        raise LenscopeError(
            f"{source}: lacks {_n_weights(missing, 'weight')} of {type(model).__name__}, which would be drawn at "
            f"random: {_first(missing)}{_instead(model, missing, unused)}; give the whole checkpoint"
        )
    return unused


def require_whole_below(source: str, model: nn.Module) -> None:
    """Raise LenscopeError where weights below an adapter were drawn: the loading info is then the adapter's alone.

    transformers marks the parameters that it has read from files.
    """
    drawn = [name for name, p in model.named_parameters() if not getattr(p, "_is_hf_initialized", False)]
    if drawn:
        raise LenscopeError(
            f"{source}: the model that this adapter is for lacks {_n_weights(drawn, 'weight')}, which would be drawn "
            f"at random: {_first(drawn)}; give the whole checkpoint"
        )


def _mismatch(key: Any) -> str:
    name, stored, wanted = key if isinstance(key, tuple) and len(key) == 3 else (key, None, None)
    return f"{name} {tuple(stored)} for {tuple(wanted)}" if stored is not None and wanted is not None else str(name)


def _instead(model: nn.Module, missing: list[str], unused: tuple[str, ...]) -> str:
    if unused:
        return f" (it holds {_n_weights(unused, 'weight')} of other names: {_first(unused)})"
    named = getattr(model, "get_output_embeddings", None)
    head = None if named is None else named()
    names = {f"{path}." for path, module in model.named_modules() if module is head}
    return " (the head: it was saved without one)" if all(key.startswith(tuple(names)) for key in missing) else ""


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _n_weights(names: Iterable[str], what: str) -> str:
    n = len(list(names))
    return f"{n} {what}{'' if n == 1 else 's'}"


def require_peft(source: str, folder: Path) -> None:
    """Raise LenscopeError for the folder of an adapter where the package that reads adapters is not installed."""
    if (folder / ADAPTER).is_file() and importlib.util.find_spec("peft") is None:
        raise LenscopeError(
            f"{source}: is the folder of an adapter ({ADAPTER}), which the package peft reads; run: "
            "pip install 'lenscope[peft]', or merge the adapter into its model (merge_and_unload) and save that"
        )


def has_tokenizer(source: str) -> bool:
    """Whether a folder, or a repository of the hub, has a tokenizer of its own."""
    if Path(source).is_dir():
        return (Path(source) / TOKENIZER).is_file()
    return hub.fetch_if_reachable(source, TOKENIZER) is not None


def require_tokenizer(source: str) -> None:
    """Raise LenscopeError for a folder that holds no file of a tokenizer: `save_pretrained` of a model writes none."""
    folder = Path(source)
    if folder.is_dir() and not any(any(folder.glob(name)) for name in _TOKENIZERS):
        raise LenscopeError(
            f"{source}: has no tokenizer beside its weights; save it there, too (tokenizer.save_pretrained), or give "
            "lenscope.load the model and the tokenizer in memory"
        )


def require_one_part(path: Path) -> None:
    """Raise LenscopeError for a part of a split GGUF file, which is read only when it is joined with the others."""
    part = _PART.match(path.stem)
    count = int(part[3]) if part else _split_count(path)
    if count < 2:
        return
    which = f"part {part[2].lstrip('0')} of {count}" if part else f"one of {count} parts"
    if part:
        others = [path.with_name(f"{part[1]}-{n:05d}-of-{part[3]}.gguf") for n in range(1, count + 1)]
        lacking = [other.name for other in others if not other.is_file()]
        if lacking:
            raise LenscopeError(f"{path}: is {which}, and beside it there is no {_first(lacking)}; fetch all parts")
    raise LenscopeError(
        f"{path}: is {which} of a split file; join them: llama-gguf-split --merge FIRST-PART WHOLE.gguf"
    )


def _split_count(path: Path) -> int:
    """How many parts a GGUF file says that its model is split into; 1 where it says nothing."""
    with path.open("rb") as file:
        head = file.read(1 << 25)
    at = head.find(b"split.count\x02\x00\x00\x00")  # the key and the type of its value, two bytes
    return int.from_bytes(head[at + 15 : at + 17], "little") if at >= 0 and len(head) >= at + 17 else 1


def require_own_code(source: str, error: BaseException) -> None:
    """Raise LenscopeError in place of transformers' own error about a model that brings code to be run."""
    if "trust_remote_code" in str(error):
        raise LenscopeError(
            f"{source}: needs code of its own, which lenscope does not run; if you trust it, load it yourself with "
            "trust_remote_code=True and pass (model, tokenizer) to lenscope.load"
        ) from error


def near(name: str, known: Iterable[str]) -> str:
    """What to add to an error about a name that is not known: those most like it, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


# -- folders in the cache
