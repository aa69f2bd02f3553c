"""What a model carries from token to token, block by block: keys and values, convolution and recurrent states.

Knows: where each model keeps it (a cache, a list of states, its own modules), how a run is given it and how rows of it
are picked.
Does not know: which rows go on from what, whether going on from it gives what reading anew gives (exactness is measured
by whoever uses it).
"""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

from lenscope.models.deviations import FAILURES, deviation
from lenscope.models.exactness import tolerance
from lenscope.models.residual_stream import forward_kwargs
from lenscope.models.runner import Runner
from lenscope.models.single_tokens import single_tokens_as_texts

# names under which a model's forward takes what it carries, the usual first
CACHE_NAMES = ("past_key_values", "cache_params")


class CarriedStates(ABC):
    """What the rows of a batch carry from the tokens that were read to the next ones."""

    # names and places of the blocks' arguments that hold it: nobody else is to arrange their rows
    arguments: tuple[str | int, ...] = ()

    def __init__(self, model: PreTrainedModel, blocks: Sequence[nn.Module]) -> None:
        self.model, self.blocks = model, blocks
        # tokens of every row that were read
        self.seen = 0

    @property
    @abstractmethod
    def layers(self) -> list[Any]:
        """What each block carries, as far as there is a list of it."""

    @abstractmethod
    def twin(self) -> "CarriedStates":
        """One that goes on from here, block by block as `arrange` is called, and leaves this one as it is."""

    @abstractmethod
    def arrange(self, block: int, layers: Sequence[int], pick: Callable[[Any], Any]) -> None:
        """Replace what a block carries by what `pick` makes of it: a tensor, or an object that holds tensors.

        `layers` are those of the cache that the block writes.
        """

    @abstractmethod
    def passed(self, ids: Tensor) -> AbstractContextManager[dict[str, Any]]:
        """Within the `with` block the model reads `ids` (B, S), and this is read and written; gives its arguments."""


class CacheStates(CarriedStates):
    """A cache of transformers' own kind, and what blocks keep in their own modules beside it.

    `counts` says whether the model counts positions on from a cache; else it is told them (Bamba).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: Sequence[nn.Module],
        cache: Any,
        inside: "KeptInModules | None",
        counts: bool,
    ) -> None:
        super().__init__(model, blocks)
        self.cache, self.inside, self.counts = cache, inside, counts
        known = inspect.signature(model.forward).parameters
        self.name = next((name for name in CACHE_NAMES if name in known), CACHE_NAMES[0])

    @property
    def layers(self) -> list[Any]:
        """The layers of the cache."""
        layers: list[Any] = self.cache.layers
        return layers

    def twin(self) -> "CacheStates":
        """A cache whose lists are its own."""
        cache = copy.copy(self.cache)
        for name, value in vars(cache).items():
            if type(value) is list:
                setattr(cache, name, list(value))
        one = self.with_cache(cache, self.seen)
        one.inside = None if self.inside is None else self.inside.twin()
        return one

    def with_cache(self, cache: Any, seen: int) -> "CacheStates":
        """The same with another cache, in which there are `seen` tokens."""
        one = CacheStates(self.model, self.blocks, cache, self.inside, self.counts)
        one.seen = seen
        return one

    def arrange(self, block: int, layers: Sequence[int], pick: Callable[[Any], Any]) -> None:
        """As of every kind: the block's layers of the cache, and its entries in other lists of it."""
        for n in layers:
            if n < len(self.cache.layers):
                self.cache.layers[n] = pick(self.cache.layers[n])
        for value in vars(self.cache).values():
            # MiniMax has a list of recurrent states beside the layers, empty ones where a block has none
            if type(value) is list and block < len(value) and isinstance(value[block], Tensor):
                value[block] = pick(value[block])
        if self.inside is not None:
            self.inside.states[block] = pick(self.inside.states[block])

    @contextmanager
    def passed(self, ids: Tensor) -> Iterator[dict[str, Any]]:
        """As of every kind."""
        for layer in self.cache.layers:
            # the same positions for all rows, with the rows on the second axis (Qwen 4)
            positions = getattr(layer, "indexer_position_ids", None)
            if positions is not None:
                layer.indexer_position_ids = positions[:, :1].expand(-1, len(ids), -1)
        with ExitStack() as undo:
            undo.enter_context(single_tokens_as_texts(self.blocks))
            if self.inside is not None:
                undo.enter_context(self.inside.in_place(self.blocks))
            given = {self.name: self.cache}
            if not self.counts:
                given["position_ids"] = torch.arange(self.seen, self.seen + ids.shape[1], device=ids.device)[None]
            yield forward_kwargs(self.model, use_cache=True, **given)
        self.seen += ids.shape[1]


class KeptInModules:
    """Tensors that blocks keep in their own modules between runs (RecurrentGemma), as a dictionary for each block."""

    def __init__(self, names: Sequence[tuple[tuple[str, str], ...]]) -> None:
        self.names = names
        self.states: list[dict[tuple[str, str], Tensor | None]] = [dict.fromkeys(names_of) for names_of in names]

    def twin(self) -> "KeptInModules":
        """One whose list of dictionaries is its own."""
        one = KeptInModules(self.names)
        one.states = list(self.states)
        return one

    @contextmanager
    def in_place(self, blocks: Sequence[nn.Module]) -> Iterator[None]:
        """Within the `with` block each block finds its tensors when it runs; afterwards the modules are as before."""
        before = [
            [getattr(block.get_submodule(m), a) for m, a in ns] for block, ns in zip(blocks, self.names, strict=True)
        ]

        def bring(number: int, block: nn.Module) -> None:
            for (module, name), value in self.states[number].items():
                setattr(block.get_submodule(module), name, value)

        def take(number: int, block: nn.Module) -> None:
            self.states[number] = {(m, a): getattr(block.get_submodule(m), a) for m, a in self.names[number]}

        with ExitStack() as undo:
            for n, block in enumerate(blocks):
                if self.names[n]:
                    undo.callback(block.register_forward_pre_hook(lambda b, _, n=n: bring(n, b)).remove)
                    # ahead of whoever ends the run here
                    undo.callback(block.register_forward_hook(lambda b, *_, n=n: take(n, b), prepend=True).remove)
            try:
                yield
            finally:
                for block, names, values in zip(blocks, self.names, before, strict=True):
                    for (module, name), value in zip(names, values, strict=True):
                        setattr(block.get_submodule(module), name, value)


class ArgumentStates(CarriedStates):
    """Recurrent states that blocks are given and give back: one list for all (RWKV), or each its own (xLSTM).

    Every block has its tensors (B, …) here. The model makes states of its own as at the beginning of a text; what
    a block is given is replaced on the way.
    """

    arguments = ("state", 1)

    def __init__(self, model: PreTrainedModel, blocks: Sequence[nn.Module]) -> None:
        super().__init__(model, blocks)
        self.states: list[tuple[Tensor, ...] | None] = [None] * len(blocks)

    @property
    def layers(self) -> list[Any]:
        """None: there is no cache."""
        return []

    def twin(self) -> "ArgumentStates":
        """One whose list of tensors is its own."""
        one = ArgumentStates(self.model, self.blocks)
        one.states, one.seen = list(self.states), self.seen
        return one

    def arrange(self, block: int, layers: Sequence[int], pick: Callable[[Any], Any]) -> None:
        """As of every kind."""
        if self.states[block] is not None:
            self.states[block] = pick(self.states[block])

    @contextmanager
    def passed(self, ids: Tensor) -> Iterator[dict[str, Any]]:
        """As of every kind."""
        own: list[Any] = [None] * len(self.blocks)

        def bring(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            named = "state" in kwargs
            own[number] = state = kwargs["state"] if named else args[1]
            fed = args[0]
            tensors = self.states[number]
            if type(state) is list:
                # one list for all blocks, which stand on the last axis; written in place
                if tensors is None:
                    tensors = tuple(t[:1, ..., number].repeat(len(fed), *[1] * (t.ndim - 2)) for t in state)
                self.states[number] = tensors
                given: Any = [t[..., None].expand(*t.shape, state[0].shape[-1]) for t in tensors]
            elif tensors is None:
                given = tuple(t[:1].expand(len(fed), *t.shape[1:]) for t in state)
            else:
                given = tensors
            return (args, {**kwargs, "state": given}) if named else ((fed, given, *args[2:]), kwargs)

        def take(number: int, output: Any) -> Any:
            if type(own[number]) is not list:
                self.states[number] = tuple(output[1])
            # the model goes on with what it gave, whose rows are as many as it knows of
            return type(output)((output[0], own[number], *output[2:]))

        with ExitStack() as undo:
            for n, block in enumerate(self.blocks):
                before = block.register_forward_pre_hook(lambda _, a, k, n=n: bring(n, a, k), with_kwargs=True)
                undo.callback(before.remove)
                undo.callback(block.register_forward_hook(lambda *a, n=n: take(n, a[-1]), prepend=True).remove)
            # last, to see what is given here
            undo.enter_context(single_tokens_as_texts(self.blocks))
            yield {"use_cache": True}
        self.seen += ids.shape[1]


def nothing_read(runner: Runner) -> CarriedStates:
    """What the model carries at the beginning of a text; raises what a model that keeps nothing raises."""
    return _nothing_read(runner, runner.measured.once(("counts positions",), lambda: _counts_positions(runner)))


def _nothing_read(runner: Runner, counts: bool) -> CarriedStates:
    kind, names = runner.measured.once(("carried states",), lambda: _how_carried(runner))
    model, blocks = runner.model, runner.anatomy.blocks
    if kind is None:
        return ArgumentStates(model, blocks)
    known = inspect.signature(kind).parameters
    cache = kind(config=model.config) if "config" in known else kind()
    inside = KeptInModules(names) if any(names) else None
    return CacheStates(model, blocks, cache, inside, counts)


def _counts_positions(runner: Runner) -> bool:
    """Whether a model counts positions on from what it carries: not if only telling it gives its own logits."""
    if "position_ids" not in inspect.signature(runner.model.forward).parameters:
        return True
    gaps = []
    for counts in (True, False):
        carried = _nothing_read(runner, counts)
        try:
            logits = [
                _logits_after(runner, carried, ids) for ids in (runner.anatomy.ids[:, :5], runner.anatomy.ids[:, 5:6])
            ]
            gaps.append(deviation(logits[1][:, -1], runner.anatomy.logits[:, 5]))
        except FAILURES:
            gaps.append(float("inf"))
    return not (gaps[1] <= tolerance(runner) < gaps[0])


def _logits_after(runner: Runner, carried: CarriedStates, ids: Tensor) -> Tensor:
    with runner.exclusive.alone(), torch.no_grad(), carried.passed(ids) as given:
        logits: Tensor = runner.model(input_ids=ids, **given).logits
    return logits


def _how_carried(runner: Runner) -> tuple[type[Any] | None, tuple[tuple[tuple[str, str], ...], ...]]:
    """The class of the cache to give a model (None: it takes none), and the names of what blocks keep in modules."""
    model, blocks = runner.model, runner.anatomy.blocks
    known = inspect.signature(model.forward).parameters
    ids = runner.anatomy.ids[:, :2]
    before = [dict(_tensors_in_modules(block)) for block in blocks]
    with runner.exclusive.alone(), torch.no_grad():
        output = model(input_ids=ids, **forward_kwargs(model, use_cache=True))
    names = []
    for block, old in zip(blocks, before, strict=True):
        now = dict(_tensors_in_modules(block))
        # what the run has changed, with a row for each text
        names.append(tuple(key for key, t in now.items() if t is not old.get(key) and len(t) == len(ids)))
        for module, name in names[-1]:
            setattr(block.get_submodule(module), name, old.get((module, name)))
    own = next((c for c in (getattr(output, name, None) for name in CACHE_NAMES) if c is not None), None)
    if (own is None and "state" in known) or (own is not None and not isinstance(own, Cache)):
        return None, tuple(names)
    its_own = isinstance(own, DynamicCache) and not isinstance(own, EncoderDecoderCache)
    return (type(own) if its_own else DynamicCache), tuple(names)


def _tensors_in_modules(block: nn.Module) -> Iterator[tuple[tuple[str, str], Tensor]]:
    for path, module in block.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.ndim > 1:
                yield (path, name), value


def picked_rows(carried: Any, index: Tensor, size: int | None = None) -> Any:
    """A copy of tensors, or of an object with tensors, with rows arranged by `index`; `size`: how many (None: any)."""
    if isinstance(carried, Tensor):
        return carried[index.to(carried.device)] if carried.ndim > 1 and size in (None, carried.shape[0]) else carried
    if type(carried) is dict:
        return {k: picked_rows(v, index, size) for k, v in carried.items()}
    if type(carried) in (tuple, list):
        return type(carried)(picked_rows(v, index, size) for v in carried)
    if not hasattr(carried, "__dict__"):
        return carried
    picked = copy.copy(carried)
    for name, value in vars(carried).items():
        if name != "indexer_position_ids" and isinstance(value, Tensor | dict | tuple | list):
            setattr(picked, name, picked_rows(value, index, size))
    return picked
