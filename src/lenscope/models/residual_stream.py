"""Where a causal LM keeps its residual stream: found by structure and watched in one small run, never by name.

Knows: the module tree, the order in which modules fire, the shape of what flows between blocks.
Does not know: how a state becomes logits (readout.py), tokens, or what anybody wants to do with a state.
"""

import inspect
import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.models.deviations import TOLERANCE, deviation
from lenscope.models.load_options import dtype_name
from lenscope.models.offloaded import OnDisk, offloaded_weights

# Batch and length of the observation run: unlikely sizes for a stream axis, so that a stream of another layout than
# (batch, time, width), such as Gemma 3n's four parallel streams, shows which of its axes is which.
TRIAL_ROWS, TRIAL_TOKENS = 3, 7
# Lengths of the pair of prompts by which padding is measured first.
TRIAL_LENGTHS = 4, 7


@dataclass(frozen=True)
class Stream:
    """The layout of the tensor that flows between blocks; `pack` makes it (B, T, D), `unpack` undoes it."""

    batch: int
    time: int
    rest: tuple[int, ...]

    @property
    def width(self) -> int:
        """D: the size of one hidden state."""
        size = 1
        for n in self.rest:
            size *= n
        return size

    def pack(self, raw: Tensor) -> Tensor:
        """The model's own tensor as (B, T, D)."""
        if (self.batch, self.time) == (0, 1) and len(self.rest) == 1:
            return raw
        return raw.movedim((self.batch, self.time), (0, 1)).flatten(2)

    def unpack(self, h: Tensor) -> Tensor:
        """(B, T, D) as the model's own tensor."""
        if (self.batch, self.time) == (0, 1) and len(self.rest) == 1:
            return h
        return h.unflatten(2, self.rest).movedim((0, 1), (self.batch, self.time))


@dataclass(frozen=True, eq=False, repr=False)
class Anatomy(Brief):
    """A model's blocks and the stream between them, plus what one small run showed.

    `outputs` are what the blocks returned, in whatever container they use; `states` is the stream at layers
    0…n_layers as (B, T, D) tensors and `logits` the model's own (B, T, V). Row 1 is row 0 with its last token changed,
    which is how causality was checked. `tail` are the outermost modules that fired after the last block, in order.
    """

    model: PreTrainedModel
    blocks: tuple[nn.Module, ...]
    name: str
    stream: Stream
    ids: Tensor
    outputs: tuple[Any, ...]
    states: tuple[Tensor, ...]
    logits: Tensor
    tail: tuple[tuple[str, nn.Module], ...]

    @property
    def n_inputs(self) -> int:
        """How many token ids the embedding knows."""
        return embedding(self.model).shape[0]

    @property
    def sizes(self) -> tuple[Any, ...]:
        """What states and logits of this model are made of: numbers of layers, tokens and dimensions, dtype, device."""
        last = self.states[-1]
        return self.n_layers, self.stream, last.dtype, last.device, self.logits.shape, self.n_inputs

    @property
    def n_layers(self) -> int:
        """The number of blocks: layers run from 0 to n_layers."""
        return len(self.blocks)


def input_state(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The stream as a block received it."""
    state = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(state, Tensor):
        raise LenscopeError("the blocks do not take the hidden state as their first argument")
    return state


def with_input_state(
    args: tuple[Any, ...], kwargs: dict[str, Any], state: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A block's arguments with the stream replaced."""
    return ((state, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": state})


def output_state(output: Any) -> Tensor:
    """The stream in what a block returned: a tensor, or the first of a tuple or list."""
    state = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(state, Tensor):
        raise LenscopeError(f"the blocks return {type(output).__name__}, not a tensor or a tuple that starts with one")
    return state


def with_output_state(output: Any, state: Tensor) -> Any:
    """What a block returned, with the stream replaced."""
    if isinstance(output, Tensor):
        return state
    rest = [state, *output[1:]]
    return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)


def forward_kwargs(model: PreTrainedModel, **kwargs: Any) -> dict[str, Any]:
    """Those of `kwargs` that the model's forward takes by name: some refuse what others need."""
    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in kwargs.items() if name in known}


def first_bad_parameter(model: nn.Module) -> str | None:
    """The name of the first parameter or buffer with a NaN or infinity, if any; one pass over the weights.

    Offloaded weights are read for it, those of other processes are not. Buffers may hold -inf, as masks do.
    """
    waiting = offloaded_weights(model)
    for name, p in [*model.named_parameters(), *model.named_buffers()]:
        part = waiting.get(name, p)
        held = part.read() if isinstance(part, OnDisk) else part.detach()
        # what is split among processes, this one's part of it
        values = held.to_local() if hasattr(held, "to_local") else held
        if not values.is_meta and not is_finite(values, buffer=not isinstance(p, nn.Parameter)):
            return name
    return None


def is_finite(t: Tensor, *, buffer: bool = False) -> bool:
    """Whether a tensor holds neither NaN nor infinity; a buffer may hold -inf, as masks do."""
    if not (t.is_floating_point() or t.is_complex()) or not t.numel():
        return True
    # eight bits and complex numbers have no order of their own
    values = t.detach().float() if t.element_size() == 1 else t.detach()
    # 20 times as fast as looking at each number: the ends are NaN where any number is
    ends = torch.aminmax(torch.view_as_real(values.resolve_conj()) if values.is_complex() else values)
    if torch.isfinite(ends.min) and torch.isfinite(ends.max):
        return True
    good = torch.isfinite(values)
    return bool((good | (values == -torch.inf) if buffer else good).all())


def trial_ids(model: PreTrainedModel) -> Tensor:
    """(3, 7) token ids, spread over the vocabulary; row 1 is row 0 with another last token."""
    weight = embedding(model)
    n = weight.shape[0]
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(n // 20, n, (TRIAL_ROWS, TRIAL_TOKENS), generator=draw)
    ids[1] = ids[0]
    ids[1, -1] = (ids[0, -1] + n // 2) % n
    # an offloaded embedding is brought to the right place by accelerate, together with its input
    return ids if weight.is_meta else ids.to(weight.device)


def trial_text(anatomy: "Anatomy", length: int, row: int = 0) -> list[int]:
    """`length` token ids to measure the model with: those of a row of the observation run, or drawn where it is longer.

    Texts of different rows differ; a shorter text is the beginning of a longer one of the same row.
    """
    first = anatomy.ids[row % len(anatomy.ids)].tolist()
    draw = torch.Generator().manual_seed(1 + row)
    more = torch.randint(anatomy.n_inputs // 20, anatomy.n_inputs, (max(0, length - len(first)),), generator=draw)
    return [*first, *more.tolist()][:length]


def embedding(model: PreTrainedModel) -> Tensor:
    """The input embedding, one row per token id."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def observe(model: PreTrainedModel) -> Anatomy:
    """Find the blocks, the stream and the tail of `model` by running it once on a few tokens.

    Raises LenscopeError where there is no residual stream to read: no stack of blocks that fires once each and in
    order, a stream whose axes cannot be told, an attention that looks ahead.
    """
    ids = trial_ids(model)
    candidates = block_lists(model)
    if not candidates:
        raise LenscopeError(f"{type(model).__name__}: found no list of blocks to read between")
    try:
        events, logits = _watch(model, ids, {id(b) for _, blocks, _ in candidates for b in blocks})
    except LenscopeError:
        raise
    except Exception as error:  # whatever a model's own forward raises
        both = getattr(model.config, "is_encoder_decoder", False)
        kind = (
            "is an encoder–decoder, and lenscope reads decoder-only models" if both else "cannot run on plain token ids"
        )
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        dtype = dtype_name(model.dtype)
        raise LenscopeError(f"{type(model).__name__} in {dtype}: {kind} ({reason})") from error
    if not torch.isfinite(logits).all():
        raise LenscopeError(f"{type(model).__name__}: the logits are not finite on a plain run, with finite weights")
    name, blocks = _fired_in_order(model, candidates, events)

    seen = {id(e.module): e for e in events}
    outputs = tuple(seen[id(b)].returned for b in blocks)
    raw = [seen[id(blocks[0])].given, *(output_state(o) for o in outputs)]
    stream = _stream(raw)
    states = tuple(stream.pack(s) for s in raw)
    end = seen[id(blocks[-1])].ended
    after = [e for e in events if e.began > end]
    tail = tuple((e.name, e.module) for e in after if not any(o.began < e.began and e.ended < o.ended for o in after))
    anatomy = Anatomy(model, blocks, name, stream, ids, outputs, states, logits, tail)
    _require_causal(anatomy)
    return anatomy


@dataclass
class _Event:
    name: str
    module: nn.Module
    began: int
    ended: int = -1
    fired: int = 1
    given: Any = None
    returned: Any = None


def block_lists(model: PreTrainedModel) -> list[tuple[str, tuple[nn.Module, ...], int]]:
    """(name, blocks, how much speaks for it) of every list that may be the stack of blocks."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    recorded = tuple(_recorded_classes(model))
    try:
        n_layers = model.config.get_text_config().num_hidden_layers
    except AttributeError:
        n_layers = None
    candidates: list[tuple[str, tuple[nn.Module, ...], int]] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        blocks = tuple(module)
        weight = 2 * (len(blocks) == n_layers)
        weight += 2 * bool(recorded and any(isinstance(b, recorded) for b in blocks))
        weight += all(isinstance(b, GradientCheckpointingLayer) for b in blocks)
        # a list inside a block (experts, heads) may have as many items as there are blocks
        if weight and not any(name.startswith(f"{outer}.") for outer, _, _ in candidates):
            candidates.append((name, blocks, weight))
    return candidates


def likeliest_blocks(model: PreTrainedModel) -> str:
    """The name of the list that is most likely the stack of blocks of a model that has not run yet.

    Of several that are as likely it is the one nearest to the tokens' embedding, then the largest: others are of images
    or sound. Raises LenscopeError where there is none.
    """
    candidates = block_lists(model)
    if not candidates:
        raise LenscopeError(f"{type(model).__name__}: found no list of blocks to read between")
    tokens = model.get_input_embeddings()
    place = next((name for name, module in model.named_modules() if module is tokens), "").split(".")

    def likelihood(candidate: tuple[str, tuple[nn.Module, ...], int]) -> tuple[int, int, int]:
        name, blocks, weight = candidate
        both = zip(name.split("."), place, strict=False)
        shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], both)))
        return weight, shared, sum(p.numel() for block in blocks for p in block.parameters())

    return max(candidates, key=likelihood)[0]


def _recorded_classes(model: PreTrainedModel) -> Iterator[type[nn.Module]]:
    """The block classes that the library itself records hidden states from."""
    for module in model.modules():
        if not isinstance(module, PreTrainedModel):
            continue
        recorders = module.can_record_outputs.get("hidden_states", ())
        for recorder in recorders if isinstance(recorders, list | tuple) else (recorders,):
            target = getattr(recorder, "target_class", recorder)
            if isinstance(target, type) and issubclass(target, nn.Module):
                yield target


def _watch(model: PreTrainedModel, ids: Tensor, blocks: set[int]) -> tuple[list[_Event], Tensor]:
    """Run the model with every module watched; blocks also keep what they were given and what they returned."""
    events: dict[int, _Event] = {}
    clock = iter(range(10**9))

    def begin(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if id(module) in events:
            events[id(module)].fired += 1
            events[id(module)].began = next(clock)
            return
        events[id(module)] = event = _Event(name, module, next(clock))
        if id(module) in blocks:
            event.given = input_state(args, kwargs).clone()

    def end(module: nn.Module, output: Any) -> None:
        event = events[id(module)]
        event.ended = next(clock)
        if id(module) in blocks:
            event.returned = with_output_state(output, output_state(output).clone())

    with ExitStack() as undo, torch.no_grad():
        for name, module in model.named_modules():
            first = module.register_forward_pre_hook(
                lambda m, a, k, name=name: begin(name, m, a, k), with_kwargs=True, prepend=True
            )
            undo.callback(first.remove)
            undo.callback(module.register_forward_hook(lambda m, a, out: end(m, out)).remove)
        output = model(input_ids=ids, **forward_kwargs(model, use_cache=False))
    logits = getattr(output, "logits", None)
    if logits is None or logits.ndim != 3:
        raise LenscopeError(
            f"{type(model).__name__}: returns no next-token logits, so it is not a causal language model"
        )
    return list(events.values()), logits


def _fired_in_order(
    model: PreTrainedModel, candidates: list[tuple[str, tuple[nn.Module, ...], int]], events: list[_Event]
) -> tuple[str, tuple[nn.Module, ...]]:
    seen = {id(e.module): e for e in events}
    loops = idle = None
    for name, blocks, _ in sorted(candidates, key=lambda c: -c[2]):
        fired = [seen[id(b)] for b in blocks if id(b) in seen]
        if len(fired) < len(blocks):
            idle = idle or (name, len(blocks) - len(fired)) if fired else idle
            continue
        if any(e.fired > 1 for e in fired):
            loops = loops or (name, max(e.fired for e in fired))
            continue
        if all(a.ended < b.began for a, b in itertools.pairwise(fired)):
            return name, blocks
    if loops:
        raise LenscopeError(
            f"{type(model).__name__}: the blocks of {loops[0]} run {loops[1]} times in one forward pass, so a layer "
            "number does not name one state: looped models are not supported"
        )
    if idle:
        raise LenscopeError(
            f"{type(model).__name__}: {idle[1]} of the blocks of {idle[0]} do not run on plain text, so there is "
            "no one stream through all layers: not supported"
        )
    raise LenscopeError(f"{type(model).__name__}: no list of blocks runs once each and in order")


def _stream(raw: list[Tensor]) -> Stream:
    """Which axes of the blocks' tensors are batch and time; every block must agree."""
    shapes = {tuple(s.shape) for s in raw}
    if len(shapes) > 1:
        raise LenscopeError(f"the blocks pass on tensors of different shapes: {sorted(shapes)}")
    (shape,) = shapes
    batch = [i for i, n in enumerate(shape) if n == TRIAL_ROWS]
    time = [i for i, n in enumerate(shape) if n == TRIAL_TOKENS]
    if len(batch) != 1 or len(time) != 1 or len(shape) < 3:
        raise LenscopeError(
            f"the blocks see a tensor of shape {shape} for {TRIAL_ROWS} prompts of {TRIAL_TOKENS} tokens: "
            "its positions are not the prompt's"
        )
    rest = tuple(n for i, n in enumerate(shape) if i not in (batch[0], time[0]))
    return Stream(batch[0], time[0], rest)


def require_causal(model: nn.Module, layer: int, changed: Tensor, expected: Tensor) -> None:
    """Raise LenscopeError where states (..., D) before a token differ when that token does."""
    if deviation(changed, expected) > TOLERANCE.get(expected.dtype, 1e-4):
        raise LenscopeError(
            f"{type(model).__name__}: changing the last of {len(expected) + 1} tokens changes earlier states at layer "
            f"{layer}, so it is not a causal language model (an encoder?): lenscope reads decoder-only models"
        )


def _require_causal(anatomy: Anatomy) -> None:
    """Row 1 differs from row 0 in its last token only: nothing before it may differ."""
    for layer, h in enumerate(anatomy.states):
        require_causal(anatomy.model, layer, h[1, :-1], h[0, :-1])
