"""The layers that the package peft puts into a model: which adapters act in each, and what is below them.

Knows: how PEFT's layers and wrappers say which adapters they hold, which are on and which are merged; the package is
not imported. Does not know: how adapters are loaded (adapters.py), what is done with a model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

# what a layer says of all its adapters together
_SWITCHES = ("_active_adapter", "_disable_adapters", "merged_adapters")


@dataclass(frozen=True)
class ActingModule:
    """A module that takes part in what a model computes now.

    Attributes:
        path: its name in the model.
        name: its name where layers of adapters that do nothing are left out.
        module: the module.
        adapters: in a layer of adapters, the numbers by which those that act go, by their names; None elsewhere.
        idle: the names of those that do not act.
        group: whether what the module has is named after adapters.
    """

    path: str
    name: str
    module: nn.Module
    adapters: dict[str, str] | None = None
    idle: frozenset[str] = frozenset()
    group: bool = False

    def called(self, own: str) -> str | None:
        """What something of the module is called; None where it belongs to an adapter that does not act."""
        if not self.group or self.adapters is None:
            return own
        return None if own in self.idle else self.adapters.get(own, own)

    def attributes(self) -> dict[str, Any]:
        """The module's attributes but those of adapters that do not act, and without its switches."""
        own = vars(self.module)
        if self.adapters is None or self.group:
            return own
        known = {*self.adapters, *self.idle}
        chosen = {}
        for name, value in own.items():
            if name in _SWITCHES:
                continue
            if isinstance(value, dict) and value and known >= set(value):
                value = {self.adapters[key]: one for key, one in value.items() if key in self.adapters}
            chosen[name] = value
        return chosen


def adapter_layers(model: nn.Module) -> list[Any]:
    """The layers and wrappers of adapters in a model, in order; [] for most models."""
    return [module for module in model.modules() if is_adapter_layer(module)]


def is_adapter_layer(module: nn.Module) -> bool:
    """Whether a module is one of PEFT's, around a module of the model."""
    return hasattr(type(module), "adapter_layer_names") and module_below(module) is not None


def module_below(layer: nn.Module) -> nn.Module | None:
    """The module that a layer of adapters is around, which may be such a layer too."""
    return layer._modules.get(_place_below(layer))


def _place_below(layer: nn.Module) -> str:
    places = ("base_layer", "token_adapter", "original_module")
    return next((name for name in places if layer._modules.get(name) is not None), "")


def held_adapters(layer: Any) -> set[str]:
    """The names of the adapters that a layer has weights of."""
    groups: list[Any] = [getattr(layer, name, None) for name in layer.adapter_layer_names]
    return {name for group in groups if hasattr(group, "keys") for name in list(group.keys())}


def acting_adapters(layer: Any) -> list[str]:
    """The names of the adapters that a layer applies when it runs; merged ones are weights, and are not applied."""
    if layer._disable_adapters or layer.merged_adapters:
        return []
    active = _names(layer._active_adapter)
    held = held_adapters(layer)
    if _place_below(layer) == "original_module" and not held.issuperset(active):
        return []
    return [name for name in active if name in held]


def state_of_adapters(layers: list[Any]) -> str:
    """Which adapters are on in these layers, in words; the same text as long as none is switched or merged."""
    states = [
        (layer._disable_adapters, *map(_names, (layer._active_adapter, layer.merged_adapters))) for layer in layers
    ]
    kinds = list(dict.fromkeys(states))
    words = [
        f"{'+'.join(active) or 'none'} {'off' if disabled else 'on'}"
        + (f", {'+'.join(merged)} merged" if merged else "")
        for disabled, active, merged in kinds
    ]
    # which layer is in which state
    which = f" {[kinds.index(state) for state in states]}" if len(kinds) > 1 else ""
    return (" or ".join(words) or "none") + which


def _names(adapters: Any) -> tuple[str, ...]:
    return (adapters,) if isinstance(adapters, str) else tuple(adapters)


def acting_modules(model: nn.Module) -> Iterator[ActingModule]:
    """Every module that takes part in what a model computes now, once each, in order.

    A layer whose adapters are off, or merged, is the module below it, by the layer's name. Adapters that act go by
    numbers: what they are called moves nothing.
    """
    if not any(hasattr(type(module), "adapter_layer_names") for module in model.modules()):
        yield from (ActingModule(path, path, module) for path, module in model.named_modules())
        return
    seen: set[int] = set()

    def walk(one: ActingModule) -> Iterator[ActingModule]:
        module = one.module
        if is_adapter_layer(module):
            acting, held = acting_adapters(module), held_adapters(module)
            place = _place_below(module)
            copies = module._modules.get("modules_to_save")
            if acting and isinstance(copies, nn.ModuleDict):
                place = f"modules_to_save.{acting[0]}"
            elif acting and place == "base_layer":
                numbers = {name: str(n) for n, name in enumerate(acting)}
                one = ActingModule(one.path, one.name, module, numbers, frozenset(held - set(acting)))
                place = ""
            if place:
                yield from walk(ActingModule(_join(one.path, place), one.name, module.get_submodule(place)))
                return
        if id(module) in seen:
            return
        seen.add(id(module))
        yield one
        for child, below in module._modules.items():
            called = one.called(child)
            if below is None or called is None:
                continue
            path, name = _join(one.path, child), _join(one.name, called)
            groups = () if one.adapters is None or one.group else _groups(module)
            if child in groups:
                yield from walk(ActingModule(path, name, below, one.adapters, one.idle, True))
            else:
                yield from walk(ActingModule(path, name, below))

    yield from walk(ActingModule("", "", model))


def _groups(layer: Any) -> tuple[str, ...]:
    return (*layer.adapter_layer_names, *layer.other_param_names)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
