"""Models larger than memory: all but the blocks is loaded, and blocks get their weights from files when they run.

Knows: where transformers leaves the blocks' weights, and that accelerate, which would read them, is not asked to.
Does not know: which part of a model stays in memory (loading.py), when weights come and go (weight_stream.py), how
several prompts share a reading (runs_by_block.py).
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from safetensors import safe_open
from transformers import PreTrainedModel

from lenscope.errors import LenscopeError
from lenscope.models import loading
from lenscope.models.identity import coarser_dtypes
from lenscope.models.language_model import LM
from lenscope.models.load_options import require_load_options
from lenscope.models.progress import Progress
from lenscope.models.residual_stream import likeliest_blocks
from lenscope.models.weight_stream import StoredWeight, WeightStream, streamed_slots


def load_streamed(
    source: str | os.PathLike[str] = loading.DEFAULT_MODEL,
    *,
    dtype: torch.dtype | str | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
    identify: bool = False,
) -> LM:
    """Load a causal language model whose blocks stay on disk: memory is what is outside them, two blocks, and states.

    It is an LM like any other, and gives the numbers that it gives in memory, for as many readings of its weights as it
    runs batches; prompts that are read together (`LM.read`, `Lens.trajectory`, `fit` with the recipe "ridge") go
    through each block one after the other, so that all of them take one reading. Loading takes one, on a few tokens,
    during which weights are checked and hashed, and one more for a model with a table of positions.
    `lm.runner.stream.passes` counts. It runs on the CPU.

    Weights that transformers keeps in another form than the files, as experts of most mixtures are, are written once
    more, to the disk of LENSCOPE_CACHE, for as long as the model is loaded.

    Args:
        source: a built-in alias, a hub id, or a folder.
        dtype: None keeps the checkpoint's own.
        attn_implementation: which attention the model computes with.
        revision: a branch, tag or commit on the hub.
        progress: called with the number of the block that was read, and of how many, whenever the model runs.
        identify: hash weights in loading also as they are in coarser dtypes, which a lens that is fitted keeps: later
            that takes a reading of its own.

    Raises LenscopeError as `load` does, and for what cannot be streamed: GGUF files, quantised weights.
    """
    name = os.fspath(source)
    require_load_options({"dtype": dtype, "attn_implementation": attn_implementation})
    if Path(name).suffix == ".gguf":
        raise LenscopeError(f"{name}: a GGUF file becomes whole in memory and cannot be streamed; load it without")

    def take_over(model: PreTrainedModel) -> None:
        stream = _stream_from(model, name)
        stream.progress = progress
        if identify:
            stream.kinds.update(coarser_dtypes(model.dtype))

    with _scratch() as folder, _without_warnings():
        options: dict[str, Any] = {"blocks_on_disk": "cpu", "look": take_over, "offload_folder": folder}
        options |= {} if dtype is None else {"dtype": dtype}
        options |= {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        return loading.load_with(source, None, options, revision)


@contextmanager
def _scratch() -> Iterator[str]:
    """A folder for weights in another form than the files; files in it that are open outlive it."""
    cache = loading.cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=".streaming-", dir=cache)
    except OSError as error:
        raise LenscopeError(f"{cache}: cannot be written to ({error.strerror}); set LENSCOPE_CACHE") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Within the block accelerate does not warn of parameters that are no modules in a map of devices."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following device_map keys")
        yield


def _stream_from(model: PreTrainedModel, name: str) -> WeightStream:
    """Take over the weights that transformers left on disk, and take away what it reads them with."""
    if getattr(model, "hf_quantizer", None) is not None or hasattr(model.config, "quantization_config"):
        raise LenscopeError(f"{name}: its weights are quantised, and cannot be streamed; load it without")
    hooks: list[Any] = [getattr(module, "_hf_hook", None) for module in model.modules()]
    maps = [hook.weights_map for hook in hooks if getattr(hook, "offload", False)]
    index: dict[str, Any] = next((one.dataset.index for one in maps if hasattr(one, "dataset")), {})
    remove_hook_from_module(model, recurse=True)
    for module in model.modules():
        own = vars(module)
        if getattr(own.get("forward"), "__func__", None) is type(module).forward:
            del own["forward"]
    # what warns against moving a model that is offloaded
    for move in ("to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa", "neuron"):
        vars(model).pop(move, None)
    path = likeliest_blocks(model)
    files: dict[str, Any] = {}
    stored = []
    for n, block in enumerate(model.get_submodule(path).children()):
        slots = streamed_slots(block, f"{path}.{n}")
        lacking = next((key for key in slots if key not in index), None)
        if lacking is not None:
            raise LenscopeError(f"{name}: {lacking} is shared with what is no block, so blocks cannot be streamed")
        places = {key: index[key] for key in slots}
        for place in places.values():
            if place["safetensors_file"] not in files:
                files[place["safetensors_file"]] = safe_open(place["safetensors_file"], framework="pt", device="cpu")
        stored.append(
            {
                key: StoredWeight(files[at["safetensors_file"]], at["weight_name"], getattr(torch, at["dtype"]))
                for key, at in places.items()
            }
        )
    return WeightStream(model, name, path, stored)
