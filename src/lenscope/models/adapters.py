"""Adapters on a model, as the package peft has them: the same weights with small layers of their own between.

Knows: how a model gets a second tree of modules around the same weights, and how an adapter becomes layers of it.
Does not know: what is in an adapter's files (adapter_files.py), what a model with an adapter is read for.

A model with an adapter is a model of its own: nothing is switched on and off in the modules of the plain one, so that
what was measured of either, and what runs there now, is never the other's.
"""

import copy
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lenscope.errors import LenscopeError
from lenscope.models.adapter_files import AdapterFiles, read_adapter, require_kind
from lenscope.models.adapter_layers import adapter_layers, is_adapter_layer, module_below
from lenscope.models.deviations import TOLERANCE, deviation
from lenscope.models.exclusive_runs import share_lock
from lenscope.models.identity import model_hash
from lenscope.models.language_model import LM
from lenscope.models.offloaded import offloaded_weights
from lenscope.models.residual_stream import Anatomy

# what PEFT puts before the names of a model's own weights
_PREFIX = "base_model.model."
_NAME = "default"
# ways of making a LoRA that take a part out of the weights below, some of them in place
_CHANGE_WEIGHTS = ("pissa", "olora", "corda", "loftq")
# kinds that leave the weights below as they are
_LEAVE_WEIGHTS = {
    *("LORA", "IA3", "ADALORA", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "VBLORA", "HRA", "FOURIERFT", "LN_TUNING"),
    "TRAINABLE_TOKENS",
}
# by what was observed of a plain model, which is another after a change, and by adapter
_models: WeakKeyDictionary[Anatomy, WeakValueDictionary[str, LM]] = WeakKeyDictionary()
# where the weights of the plain model lay in memory
_places: WeakKeyDictionary[LM, tuple[int, ...]] = WeakKeyDictionary()


def with_adapter(lm: LM, adapter: "str | os.PathLike[str] | LM", *, revision: str | None = None) -> LM:
    """The model with an adapter on: an LM of its own, which shares all weights with `lm`.

    `lm` stays as it is, and memory grows by the adapter. Adapters that `lm` has already are off in the result.

    Args:
        lm: the model.
        adapter: the folder of an adapter that peft saved, its hub id, the name of one that is loaded in a model in
            memory, or what this function returned for the same model.
        revision: a branch, tag or commit of an adapter on the hub.

    Raises LenscopeError where the adapter is not one for this model, or is of a kind that is more than layers; where
    weights are not all in memory; and inside an edit of `lm`.
    """
    if isinstance(adapter, LM):
        if adapter.plain is not plain_model(lm):
            raise LenscopeError(
                f"adapter {adapter.name}: is not {lm.name} with an adapter; give lenscope.models.with_adapter of it, "
                "or a folder"
            )
        return adapter
    plain = plain_model(lm)
    _require_shareable(plain, f"adapter {os.fspath(adapter)}")
    # verified anew where adapters of the model were switched
    with plain.runner.exclusive.alone():
        known = _models.setdefault(plain.runner.anatomy, WeakValueDictionary())
        if adapter in (getattr(plain.model, "peft_config", None) or {}):
            return _with_loaded(plain, str(adapter), known)
        files = read_adapter(adapter, revision)
        adapted = known.get(files.digest)
        if adapted is not None and _still_shares(adapted, plain):
            return adapted
        known[files.digest] = adapted = with_files(plain, files, plain.tokenizer, f"{plain.name} + {files.name}")
        return adapted


def plain_model(lm: LM) -> LM:
    """The model that a model with an adapter was made of; else the model itself."""
    return lm if lm.plain is None else lm.plain


def with_files(plain: LM, files: AdapterFiles, tokenizer: Any, name: str) -> LM:
    """A plain model with an adapter on, which was read, and a tokenizer and a name of its own."""
    _require_shareable(plain, files.place)
    before = model_hash(plain.model)
    model = _second_tree(plain.model)
    _take_out(model, f"adapter {files.place}")
    put_in(model, files)
    adapted = _as_lm(plain, model, tokenizer, name, files.place)
    if model_hash(plain.model) != before:
        raise LenscopeError(f"{files.place}: PEFT changed the weights of {plain.name} itself; load it again")
    return adapted


def _with_loaded(plain: LM, name: str, known: WeakValueDictionary[str, LM]) -> LM:
    """The model with one of the adapters on that are loaded in it."""
    require_readable(plain.model, name)
    adapted = known.get(f"loaded {name}")
    if adapted is not None and _still_shares(adapted, plain):
        return adapted
    model = _second_tree(plain.model)
    for layer in adapter_layers(model):
        if layer.merged_adapters:
            raise LenscopeError(f"adapter {name}: {', '.join(layer.merged_adapters)} is merged; unmerge it first")
        layer._disable_adapters = False
        # PEFT's own way also sets which weights are trained
        layer._active_adapter = [name]
    known[f"loaded {name}"] = adapted = _as_lm(plain, model, plain.tokenizer, f"{plain.name} + {name}", name)
    return adapted


def _as_lm(plain: LM, model: PreTrainedModel, tokenizer: Any, name: str, place: str) -> LM:
    share_lock(model, plain.model)
    adapted = LM(model, tokenizer, name, plain.source, plain.revision)
    adapted.adapter, adapted.plain, adapted.unused = place, plain, plain.unused
    adapted.runner.plain = plain.runner
    _places[adapted] = _places_of(plain.model)
    return adapted


def model_in_adapters(model: Any) -> tuple[Any, Any]:
    """What wraps a model in adapters (None where nothing does), and the model with its adapters' layers inside."""
    if isinstance(model, PreTrainedModel) or not hasattr(model, "peft_config"):
        return None, model
    require_readable(model)
    inside = model.get_base_model() if hasattr(model, "get_base_model") else getattr(model.base_model, "model", None)
    return (model, inside) if isinstance(inside, PreTrainedModel) else (None, model)


def require_same_forward(lm: LM, wrapper: Any) -> None:
    """Raise LenscopeError where what wraps a model gives other logits than the model with its layers inside."""
    anatomy = lm.runner.anatomy
    with lm.lock, torch.no_grad():
        logits = wrapper(input_ids=anatomy.ids).logits
    same = logits.shape == anatomy.logits.shape
    if not same or not deviation(logits, anatomy.logits) <= TOLERANCE.get(logits.dtype, 1e-4):
        raise LenscopeError(
            f"load: {type(wrapper).__name__} gives other logits than the {lm.name} that it wraps; lenscope reads "
            "adapters that change a model's layers alone; give (model.merge_and_unload(), tokenizer)"
        )


def require_readable(model: Any, name: str | None = None) -> None:
    """Raise LenscopeError for a model with adapters in it that are more than layers; `name`: of this one alone."""
    for own, config in dict(getattr(model, "peft_config", None) or {}).items():
        if name in (None, own):
            kind = getattr(config.peft_type, "value", config.peft_type)
            require_kind(
                f"adapter {own}", str(kind), {"alora_invocation_tokens": _field(config, "alora_invocation_tokens")}
            )


def _field(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


def _require_shareable(plain: LM, what: str) -> None:
    """Raise LenscopeError for a model whose weights are not all in memory, in this process."""
    model = plain.model
    if plain.runner.stream is not None or offloaded_weights(model):
        raise LenscopeError(f"{what}: the weights of {plain.name} are not all in memory; load it whole, or merge it")
    if any(hasattr(p, "to_local") or p.is_meta for p in model.parameters()):
        raise LenscopeError(
            f"{what}: the weights of {plain.name} are split among processes; load it whole, or merge it"
        )
    if plain.runner.editing:
        raise LenscopeError(f"{what}: inside an edit of {plain.name}, which would not act there; leave the block first")


# -- a second tree of modules


def _second_tree(model: PreTrainedModel) -> Any:
    """A copy of a model's modules and configuration, around the same numbers."""
    memo: dict[int, Any] = {}

    def share(value: Any, depth: int = 0) -> None:
        if isinstance(value, Tensor):
            memo[id(value)] = _same_numbers(value)
            # what a quantised weight is made whole with
            if type(value) not in (Tensor, nn.Parameter):
                share(vars(value), depth + 1)
        elif isinstance(value, nn.Module) or depth > 3:
            return
        elif isinstance(value, dict):
            for one in value.values():
                share(one, depth + 1)
        elif isinstance(value, list | tuple):
            for one in value:
                share(one, depth + 1)

    for module in model.modules():
        share(vars(module))
    try:
        tree = copy.deepcopy(model, memo)
    except Exception as error:  # whatever a module that is not made to be copied raises
        raise LenscopeError(f"{type(model).__name__}: its modules cannot be copied ({error}); load it again") from error
    for module in tree.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if _is_own(hook)]:
                del hooks[key]
    return tree


def _is_own(hook: Any) -> bool:
    """Whether a hook is one of lenscope, which acts for as long as a run or a block of edits lasts."""
    return str(getattr(getattr(hook, "func", hook), "__module__", "")).startswith("lenscope.")


def _same_numbers(value: Tensor) -> Tensor:
    """A parameter of its own with the same numbers in the same place, so that another one can be put there."""
    if type(value) is not nn.Parameter:
        return value
    own = nn.Parameter(value.detach(), requires_grad=False)
    vars(own).update(vars(value))
    return own


def _still_shares(adapted: LM, plain: LM) -> bool:
    """Whether the weights of the plain model are where they were when a model was made of it."""
    return _places[adapted] == _places_of(plain.model)


def _places_of(model: nn.Module) -> tuple[int, ...]:
    return tuple(p.data_ptr() for p in model.parameters())


def _take_out(model: nn.Module, what: str) -> None:
    """Take the layers of all adapters out of a model, which is plain then."""
    layers = adapter_layers(model)
    for own, config in dict(getattr(model, "peft_config", None) or {}).items():
        start = str(_field(config, "init_lora_weights")).lower()
        if start.startswith(_CHANGE_WEIGHTS) or _field(config, "bias") not in (None, "none"):
            raise LenscopeError(f"{what}: the model's adapter {own} changes the weights below it; give the plain model")
    if any(layer.merged_adapters for layer in layers):
        raise LenscopeError(
            f"{what}: the model has adapters merged into its weights; unmerge them, or give the plain model"
        )

    def plain(module: nn.Module) -> None:
        for name, child in module.named_children():
            while is_adapter_layer(child):
                below = module_below(child)
                assert below is not None
                child = below
            module._modules[name] = child
            plain(child)

    if layers:
        plain(model)
        vars(model).pop("peft_config", None)
        vars(model).pop("_hf_peft_config_loaded", None)


# -- an adapter's layers


def put_in(model: PreTrainedModel, files: AdapterFiles) -> None:
    """Put an adapter's layers into a plain model; raises LenscopeError where they are not for it."""
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    weights = dict(files.tensors)
    with _refusing_misfits(files, type(model).__name__):
        _part_weights(model, files)
        below = {id(p) for p in (*model.parameters(), *model.buffers())}
        peft_model = PeftModel(model, files.config, _NAME)
        own = dict(peft_model.named_parameters(remove_duplicate=False))
        for key in list(weights):
            # what else an adapter's file holds, such as biases: not written into weights that others share
            if key in own and id(own[key]) in below:
                if own[key].shape == weights[key].shape and torch.equal(
                    own[key].cpu(), weights[key].to(own[key].dtype)
                ):
                    del weights[key]
                else:
                    owner, _, last = key.rpartition(".")
                    peft_model.get_submodule(owner)._parameters[last] = nn.Parameter(own[key].clone(), False)
        loaded: Any = set_peft_model_state_dict(peft_model, weights, _NAME)
        state = peft_model.state_dict(keep_vars=True)
        saved = get_peft_model_state_dict(peft_model, state, _NAME)
    # what several layers share is in the file once
    read = below | {id(t) for name, t in state.items() if name not in set(loaded.missing_keys)}
    missing = [name for name, t in saved.items() if id(t) not in read]
    unexpected = sorted(loaded.unexpected_keys)
    if unexpected:
        raise LenscopeError(
            f"{files.place}: has {_several(unexpected)} that {type(model).__name__} has no place for: "
            f"{_first_two(unexpected)}; {_for_which(files)}"
        )
    if missing:
        raise LenscopeError(
            f"{files.place}: lacks {_several(missing)} of its layers, which would be drawn at random: "
            f"{_first_two(missing)}; {_for_which(files)}"
        )


def _part_weights(model: nn.Module, files: AdapterFiles) -> None:
    """Give a model weights of its own in the modules of an adapter that changes them as it is put in."""
    start = str(_field(files.config, "init_lora_weights")).lower()
    if str(files.config.peft_type.value) in _LEAVE_WEIGHTS and not start.startswith(_CHANGE_WEIGHTS):
        return
    modules = dict(model.named_modules())
    for key in files.tensors:
        parts = key.removeprefix(_PREFIX).split(".")
        owner = next((m for n in range(len(parts), 0, -1) if (m := modules.get(".".join(parts[:n])))), None)
        if owner is not None:
            for name, p in list(owner.named_parameters(recurse=False)):
                owner._parameters[name] = nn.Parameter(p.detach().clone(), False)


def _several(names: list[str]) -> str:
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}"


def _first_two(names: list[str]) -> str:
    short = [name.removeprefix(_PREFIX).replace(f".{_NAME}", "") for name in names]
    return ", ".join(short[:2]) + (", …" if len(short) > 2 else "")


def _for_which(files: AdapterFiles) -> str:
    return f"it is for {files.base}" if files.base else "give the model that it was made for"


@contextmanager
def _refusing_misfits(files: AdapterFiles, model: str) -> Iterator[None]:
    """Within the block PEFT's many errors become one line, without its warnings, which are looked into."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:
            shape = re.search(
                r"size mismatch for (\S+): .*?shape torch\.Size\((.*?)\).*?torch\.Size\((.*?)\)", str(error)
            )
            if shape:
                name, own, here = shape.groups()
                reason = f"{_first_two([name])} is {own} in its file, and {here} in the model"
            elif isinstance(error, KeyError):
                reason = f"it lacks {_first_two([str(error.args[0])])}" if error.args else "it lacks a tensor"
            else:
                reason = " ".join(str(error).split())[:240] or type(error).__name__
            raise LenscopeError(f"{files.place}: does not fit {model} ({reason}); {_for_which(files)}") from error
