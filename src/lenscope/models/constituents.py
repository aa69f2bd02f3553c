"""What of a model makes its numbers: tensors, and what acts beside them.

Knows: parameters, buffers, packed and quantised weights; the numbers of configurations and modules (scales, windows,
soft caps, RoPE), their classes and functions, adapters and whether they are on. Does not know: hashes.

Not counted are the dtype that is computed in, the device, the attention backend, names and paths, and hooks, which edit
runs rather than the model.
"""

import functools
import hashlib
import re
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from lenscope.models.adapter_layers import acting_modules
from lenscope.models.offloaded import OnDisk, offloaded_weights, tied_names

# a tensor, or one that is read from disk when its numbers are looked at
Part = Tensor | OnDisk

# Attributes of modules and fields of configurations that move no logits ...
_NO_SETTING = {
    *("training", "name_or_path", "_name_or_path", "generation_config", "gradient_checkpointing", "kernel_config"),
    *("loss_type", "loss_function", "all_tied_weights_keys", "hf_quantizer", "hf_device_map", "warnings_issued"),
    *("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method", "model_tags", "peft_config"),
    *("transformers_version", "architectures", "auto_map", "tokenizer_class", "dtype", "torch_dtype", "use_cache"),
    *("return_dict", "output_attentions", "output_hidden_states", "output_router_logits", "id2label", "label2id"),
    *("problem_type", "task_specific_params", "chunk_size_feed_forward", "tie_word_embeddings"),
    *("num_embeddings", "embedding_dim", "in_features", "out_features"),
    # ... or that runs move: RWKV's weights and BigBird's way of attention, by what ran last
    *("layers_are_rescaled", "attention_type", "recurrent_states", "conv1d_state"),
}
_NO_SETTING_LIKE = re.compile(r"_(attn|experts)_implementation|.*_token_id$|.*_cached?$|_is_|_hf_|_old_")
# RoPE that changes with the length of what ran last; what it was at the start stands beside it, as original_inv_freq.
_CHANGING = ("dynamic", "longrope")
# what accelerate puts in place of a model's methods: to bring weights in, and to warn those who move it
_MOVES = {"forward", "to", "cuda", "npu", "mlu", "sdaa", "musa", "xpu", "neuron"}
_PLAIN = (nn.Linear, nn.ModuleList, nn.ModuleDict, nn.Sequential, nn.Identity, nn.Dropout, nn.ParameterList)


def parameters(model: nn.Module, within: nn.Module | None = None) -> dict[str, Part]:
    """The parameters of a model, or of a module of it by its own names, wherever they are."""
    waiting = offloaded_weights(model)
    path = next((n for n, m in model.named_modules() if m is within), "")
    at = f"{path}." if path else ""
    own = {n: waiting.get(at + n, p) for n, p in (within or model).named_parameters()}
    # the same weight under another name
    again = {n for n, one in (tied_names(model) if waiting else {}).items() if n in own and one in own}
    return {n: p for n, p in own.items() if n not in again}


def stored(model: nn.Module) -> dict[str, Part]:
    """As `tensors`, without the buffers that checkpoints do not store."""
    computed = {
        f"{one.name}.{one.called(name)}" if one.name else name
        for one in acting_modules(model)
        for name in one.module._non_persistent_buffers_set
    }
    return {name: t for name, t in tensors(model).items() if name not in computed}


def tensors(model: nn.Module) -> dict[str, Part]:
    """All tensors that a model's numbers come from, by name, each once: parameters, buffers, parts of packed weights.

    Buffers that runs set anew, as RoPE does that changes with the length, are left out for what they are made from.
    Offloaded weights are those that wait elsewhere. Adapters that are off are left out.
    """
    by_name: dict[str, Part] = {}
    seen: set[int | str] = set()
    # a tensor that is made when it is looked at is kept here: the next one would get its place, and with it its id
    held: list[Tensor] = []
    waiting = offloaded_weights(model)
    ties = tied_names(model) if waiting else {}

    def add(name: str, value: Any, depth: int = 0, path: str | None = None) -> None:
        path = name if path is None else path
        if path in waiting:
            # the same weight under another name
            one = ties.get(path, path)
            if one not in seen:
                seen.add(one)
                by_name[name] = waiting[path]
            return
        if isinstance(value, Tensor):
            if id(value) in seen:
                return
            seen.add(id(value))
            held.append(value)
            for part, tensor in _plain_parts(value):
                by_name[name + part] = tensor
            more = {n: v for n, v in vars(value).items() if n[0] != "_"} if type(value) is not Tensor else {}
        elif depth > 3 or isinstance(value, str | int | float | bool | nn.Module | None | type):
            return
        elif isinstance(value, dict):
            more = {str(n): v for n, v in value.items()}
        elif isinstance(value, list | tuple):
            more = {str(n): v for n, v in enumerate(value)}
        else:
            # such as the state that a 4-bit weight is made whole with
            more = {n: v for n, v in getattr(value, "__dict__", {}).items() if n[0] != "_"} if depth else {}
        for n, v in more.items():
            add(f"{name}.{n}", v, depth + 1)

    for acting in acting_modules(model):
        module = acting.module
        at, place = (f"{path}." if path else "" for path in (acting.name, acting.path))
        changing = _changing(module)
        buffers = {name: b for name, b in module._buffers.items() if name not in changing}
        for name, t in {**module._parameters, **buffers}.items():
            called = acting.called(name)
            if called is not None:
                add(at + called, t, 0, place + name)
        if not _known_class(module):
            for name, value in acting.attributes().items():
                if name[0] != "_" and not _NO_SETTING_LIKE.match(name) and name not in _NO_SETTING:
                    add(at + name, value, 1)
        if type(module)._save_to_state_dict is not nn.Module._save_to_state_dict or (
            type(module).get_extra_state is not nn.Module.get_extra_state
        ):
            own: dict[str, Any] = {}
            module._save_to_state_dict(own, at, False)
            for name, value in own.items():
                if name not in by_name and name.removeprefix(at) not in {**module._parameters, **module._buffers}:
                    add(f"{name}#", value, 1)
    return by_name


def _known_class(module: nn.Module) -> bool:
    """Whether a module is one of torch or transformers, whose tensors are all parameters and buffers."""
    return type(module).__module__.startswith(("torch.nn.", "transformers."))


def _changing(module: nn.Module) -> set[str]:
    kinds = getattr(module, "rope_type", None)
    if kinds is None:
        return set()
    by_layer = kinds.items() if isinstance(kinds, dict) else [("", kinds)]
    prefixes = [f"{n}_" if n else "" for n, kind in by_layer if any(c in str(kind) for c in _CHANGING)]
    return {f"{prefix}inv_freq" for prefix in prefixes if hasattr(module, f"{prefix}original_inv_freq")}


def _plain_parts(value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor as plain ones: those of a wrapper, or the numbers and scales of a quantised one."""
    value = value.detach()
    if value.is_quantized:
        yield "#", value.int_repr()
        per_channel = value.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams)
        yield "#scale", value.q_per_channel_scales() if per_channel else torch.tensor(value.q_scale())
        yield "#zero", value.q_per_channel_zero_points() if per_channel else torch.tensor(value.q_zero_point())
    elif value.layout != torch.strided:
        yield "#", value.to_dense()
    elif hasattr(value, "__tensor_flatten__") and not hasattr(value, "to_local"):
        names, _ = value.__tensor_flatten__()
        for name in names:
            for part, tensor in _plain_parts(getattr(value, name)):
                yield f".{name}{part}", tensor
    else:
        yield "", value


def absent(tensor: Part) -> bool:
    """Whether nothing here says what a tensor's numbers are: it has none, or they are split among processes."""
    return isinstance(tensor, Tensor) and (tensor.is_meta or hasattr(tensor, "to_local"))


def settings(model: nn.Module) -> tuple[str, ...]:
    """What acts beside the tensors: each module's class and plain attributes, each configuration's fields."""
    lines = []
    configs: dict[int, PreTrainedConfig] = {}
    for acting in acting_modules(model):
        module, own = acting.module, acting.attributes()
        replaced = own.get("_old_forward" if "_hf_hook" in own else "forward")
        # or by transformers, which divides products among processes
        by_library = str(getattr(replaced, "__module__", "")).startswith("transformers.")
        if by_library or getattr(replaced, "__func__", None) is type(module).forward:
            replaced = None
        line = f"{acting.name} {type(module).__qualname__}" + (
            f" forward {_setting_text(replaced)}" if replaced else ""
        )
        if type(module) not in _PLAIN:
            public = _known_class(module)
            for name, value in sorted(own.items()):
                if isinstance(value, PreTrainedConfig):
                    configs.setdefault(id(value), value)
                elif (
                    value is not None
                    and name not in _NO_SETTING
                    and not (name in _MOVES if "_hf_hook" in own else name == "forward" and replaced is None)
                    and not (name[0] == "_" and (public or name in _MODULE))
                    and not isinstance(value, Tensor | torch.device | torch.dtype)
                    and not _NO_SETTING_LIKE.match(name)
                ):
                    line += f" {name} {_setting_text(value)}"
        lines.append(line)
    return (*lines, *(_setting_text(config) for config in configs.values()))


# what every module has
_MODULE = {*vars(nn.Module())}


def _setting_text(value: Any) -> str:
    """A setting as text that is the same in every process."""
    if value is None or isinstance(value, str | bool | int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_setting_text, value))}]"
    if isinstance(value, set | frozenset):
        return f"[{', '.join(sorted(map(_setting_text, value)))}]"
    if isinstance(value, PreTrainedConfig):
        value = value.to_dict()
    if isinstance(value, dict):
        fields = {str(n): v for n, v in value.items() if v is not None and n not in _NO_SETTING}
        fields = {n: v for n, v in fields.items() if not _NO_SETTING_LIKE.match(n)}
        return f"{{{', '.join(f'{n}: {_setting_text(v)}' for n, v in sorted(fields.items()))}}}"
    if isinstance(value, functools.partial):
        return f"partial({_setting_text(value.func)}, {_setting_text(value.args)}, {_setting_text(value.keywords)})"
    if isinstance(value, types.MethodType):
        return _setting_text(value.__func__)
    if isinstance(value, types.FunctionType) and str(value.__module__).split(".")[0] not in ("torch", "transformers"):
        cells = [c.cell_contents for c in value.__closure__ or ()]
        inside = [c for c in cells if isinstance(c, str | bool | int | float)]
        code = hashlib.sha256(value.__code__.co_code + repr(value.__code__.co_names).encode()).hexdigest()
        constants = [c for c in value.__code__.co_consts if isinstance(c, str | bool | int | float)]
        return f"{value.__qualname__} {code} {constants} {inside}"
    named = getattr(value, "__qualname__", None)
    return str(named if isinstance(named, str) else type(value).__qualname__)
