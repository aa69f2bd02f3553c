"""A model as a chain of blocks that are differentiated one at a time, each from what it was given in a run of a row.

Knows: what each block was given beside the stream, that nothing of it depends on states, that a block run by itself
gives what it gave, that gradients through the chain are finite differences of the model's runs.
Does not know: in which order cotangents go down, what Jacobians are for (streamed_jacobian.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lenscope.errors import LenscopeError
from lenscope.fitting.jacobian_passes import GAPS, LOW_ROUNDING, alike, batched_gradients, near_enough
from lenscope.models.attention_implementations import eager_attention
from lenscope.models.deviations import FAILURES, deviation
from lenscope.models.exactness import tolerance
from lenscope.models.language_model import LM
from lenscope.models.precision import half_precision
from lenscope.models.residual_stream import forward_kwargs, input_state, output_state, with_input_state
from lenscope.models.runner import EnoughRead
from lenscope.models.runs_by_block import take_turns

# relative steps of finite differences: at which rounding and curvature are both small is not known beforehand
STEPS = (1e-4, 1e-3, 1e-2, 3e-2)


@dataclass(frozen=True, eq=False)
class KeptRow:
    """A run of a row: `given`, the arguments of each block, and `states`, (1, T, D) of each layer up to the last."""

    given: list[tuple[tuple[Any, ...], dict[str, Any]]]
    states: list[Tensor]


@dataclass(frozen=True, eq=False)
class BlockGraph:
    """One block's run: the states `entered` (1, T, D) of tokens from some on, and what became of them, `left`."""

    entered: Tensor
    left: Tensor

    def gradients(self, cotangents: Tensor, stacked: bool) -> Tensor:
        """The gradients (K, T, D) of the states that entered, for cotangents (K, T, D) of those that left."""
        return batched_gradients(self.left, [self.entered], cotangents[:, None], stacked)[0]


@dataclass(eq=False)
class _Trial:
    """A run with other states at a layer: what it gives last, and what its blocks are given beside the stream."""

    layer: int
    states: Tensor
    last: list[Tensor] = field(default_factory=list)
    beside: list[dict[str, Any]] = field(default_factory=list)


# the trial that runs in this thread
_on_trial: ContextVar[_Trial | None] = ContextVar("lenscope_on_trial", default=None)


class BlockChain:
    """Runs a row once and gives the graph of each of its blocks by itself.

    Args:
        lm: the model, in eval mode, whose weights are streamed.
        target_layer: the layer whose states are differentiated.
        low: the 16-bit dtype in which products are made where that changes gradients little, None: the model's own.
    """

    def __init__(self, lm: LM, target_layer: int, low: torch.dtype | None) -> None:
        assert lm.runner.stream is not None
        self.lm, self.target_layer, self.low, self.weights = lm, target_layer, low, lm.runner.stream
        self.blocks: Sequence[nn.Module] = lm.runner.anatomy.blocks[:target_layer]
        # fused attention takes cotangents one by one, as in jacobian_passes.py
        self.eager = low is not None and lm.device.type == "cpu"
        self.stacked = True
        self._measured = False

    def of_row(self, ids: Sequence[int], start: int) -> KeptRow:
        """Run a row whose tokens before `start` need no gradient.

        The first row is measured: raises LenscopeError where blocks are no chain, or gradients through it are not
        those of finite differences.
        """
        if self._measured:
            return self._run(ids)
        row = self._measure(ids, start)
        self._measured = True
        return row

    def graph(self, row: KeptRow, number: int, start: int) -> BlockGraph:
        """The graph of a block, for tokens from `start` on; LenscopeError where it gives other states than in the run.

        Its weights have to be in their places, or come there.
        """
        runner, stream = self.lm.runner, self.lm.runner.anatomy.stream
        h = row.states[number]
        entered = h[:, start:].detach().clone().requires_grad_()
        with runner.exclusive.alone(), torch.enable_grad(), self._way():
            whole = torch.cat([h[:, :start], entered], 1)
            args, kwargs = with_input_state(*row.given[number], stream.unpack(whole))
            left = stream.pack(output_state(self.blocks[number](*args, **kwargs)))
        if not deviation(left[0].detach(), row.states[number + 1][0]) <= self._rounding:
            raise LenscopeError(self._no_chain(f"block {number} gives other states when it is run by itself"))
        return BlockGraph(entered, left[:, start:])

    @contextmanager
    def _way(self) -> Iterator[None]:
        """Within the block products and attention are those of this chain."""
        eager = eager_attention(self.lm.model) if self.eager else nullcontext()
        with eager, half_precision(self.lm, self.low):
            yield

    @property
    def _rounding(self) -> float:
        return tolerance(self.lm.runner) if self.low is None else LOW_ROUNDING

    def _no_chain(self, why: str) -> str:
        return (
            f"{self.lm.name}: {why}, so that a Jacobian cannot be had block by block as weights are streamed; load the "
            "model without streaming, or split it among processes"
        )

    # -- runs

    def _run(self, ids: Sequence[int]) -> KeptRow:
        runner, row = self.lm.runner, KeptRow([], [])
        stream = runner.anatomy.stream

        def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            h = stream.pack(input_state(args, kwargs)).detach()
            if row.states and not torch.equal(h, row.states[-1]):
                raise LenscopeError(
                    self._no_chain(f"between blocks {len(row.given) - 1} and {len(row.given)} it does more")
                )
            if not row.states:
                row.states.append(h.clone())
            # the states are kept once
            empty = h.new_empty(0)
            row.given.append(with_input_state(args, dict(kwargs), empty))

        with runner.exclusive.alone(), ExitStack() as undo, torch.no_grad(), self._way():
            for block in self.blocks:
                registered = partial(block.register_forward_pre_hook, enter, with_kwargs=True)
                undo.callback(runner.exclusive.hook(registered).remove)
            for layer in range(1, self.target_layer + 1):
                undo.callback(runner.hook(layer, lambda h: row.states.append(h.detach().clone())).remove)
            undo.callback(runner.hook(self.target_layer, _stop_reading).remove)
            self._model(ids)
        runner.require_finite(row.states[-1], self.target_layer)
        return row

    def _model(self, ids: Sequence[int]) -> None:
        model = self.lm.model
        given = forward_kwargs(model, use_cache=False)
        try:
            model(input_ids=torch.tensor([list(ids)], device=self.lm.runner.input_device), **given)
        except EnoughRead:
            pass

    def _try_all(self, ids: Sequence[int], trials: Sequence[_Trial]) -> None:
        """Run the row with other states, all trials in one reading of the weights."""
        runner = self.lm.runner

        def put(layer: int, h: Tensor) -> Tensor | None:
            trial = _on_trial.get()
            return trial.states.to(h) if trial is not None and trial.layer == layer else None

        def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            trial = _on_trial.get()
            if trial is not None:
                trial.beside.append(dict(_beside(args, kwargs)))

        def end(h: Tensor) -> None:
            trial = _on_trial.get()
            assert trial is not None
            trial.last.append(h)
            raise EnoughRead

        def job(trial: _Trial) -> None:
            _on_trial.set(trial)
            self._model(ids)

        with runner.exclusive.alone(), ExitStack() as undo, self._way():
            for block in self.blocks:
                registered = partial(block.register_forward_pre_hook, enter, with_kwargs=True)
                undo.callback(runner.exclusive.hook(registered).remove)
            for layer in {trial.layer for trial in trials}:
                undo.callback(runner.hook(layer, partial(put, layer)).remove)
            undo.callback(runner.hook(self.target_layer, end).remove)
            take_turns(self.weights, [partial(job, trial) for trial in trials])

    # -- what is measured

    def _measure(self, ids: Sequence[int], start: int) -> KeptRow:
        """See on a row that blocks are a chain, that gradients are the model's own, and in which ways they are so.

        Returns the row as this chain runs it from now on: each run reads all weights.
        """
        low, eager = self.low, self.eager
        # finite differences mean something with the model's own products
        self.low, self.eager = None, False
        row = self._run(ids)
        last = row.states[-1]
        draw = torch.Generator().manual_seed(0)
        z = torch.randn(2, self.lm.hidden_size, generator=draw).to(last)
        # its own states, and others of their size
        same, other = (_Trial(0, row.states[0].roll(by, 1)) for by in (0, 1))
        layers = sorted({0, self.target_layer // 2, self.target_layer - 1})
        directions = [self._direction(row, layer, start) for layer in layers]
        moved = [
            _Trial(layer, row.states[layer] + sign * step * direction)
            for layer, direction in zip(layers, directions, strict=True)
            for step in STEPS * (self.lm.dtype in GAPS)
            for sign in (1, -1)
        ]
        self._try_all(ids, [same, other, *moved])
        self._require_plain(same, other)
        own = self._gradients(row, start, z)
        for layer, direction in zip(layers, directions, strict=True):
            ends = [trial.last[0][0, start:] @ z[0] for trial in moved if trial.layer == layer]
            self._require_differences(layer, own[layer][0], direction[0, start:], ends)
        if low is None:
            return row
        self.eager = eager and self._gives_the_same_eagerly(ids, start, z, own, last)
        self.low = low
        row = self._run(ids)
        if near_enough(self._gradients(row, start, z), own):
            return row
        self.low = None
        return self._run(ids)

    def _gives_the_same_eagerly(
        self, ids: Sequence[int], start: int, z: Tensor, own: Sequence[Tensor], last: Tensor
    ) -> bool:
        """Whether the model has the same states and gradients where attention is plain products of matrices."""
        self.eager = True
        try:
            row = self._run(ids)
            gradients = self._gradients(row, start, z)
        except FAILURES as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False
        return deviation(row.states[-1][0], last[0]) <= self._rounding and alike(gradients, own, self._rounding)

    def _direction(self, row: KeptRow, layer: int, start: int) -> Tensor:
        h = row.states[layer]
        direction = torch.randn(h.shape, generator=torch.Generator().manual_seed(1)).to(h) * h.abs().mean()
        direction[:, :start] = 0
        return direction

    def _require_plain(self, same: _Trial, other: _Trial) -> None:
        """Raise LenscopeError where what blocks are given beside the stream is another for other states."""
        for number, (own, beside) in enumerate(zip(same.beside, other.beside, strict=True)):
            for name in {**own, **beside}:
                if not _equal_parts(own.get(name), beside.get(name)):
                    why = f"what block {number} is given as {name} depends on states of earlier blocks"
                    raise LenscopeError(self._no_chain(why))

    def _gradients(self, row: KeptRow, start: int, z: Tensor) -> list[Tensor]:
        """The gradients (2, T, D) of Σ z · h_last over tokens from `start` on, by layer; and how cotangents may go."""
        down: list[Tensor] = [z[:, None].expand(-1, row.states[-1].shape[1] - start, -1)]
        with self.weights.backwards():
            for number in reversed(range(self.target_layer)):
                graph = self.graph(row, number, start)
                plain = graph.gradients(down[0], False)
                try:
                    stacked = graph.gradients(down[0], True)
                    self.stacked = self.stacked and alike([stacked], [plain], self._rounding)
                except FAILURES as error:
                    if isinstance(error, torch.OutOfMemoryError):
                        raise
                    self.stacked = False
                down.insert(0, plain)
        return down

    def _require_differences(self, layer: int, gradient: Tensor, direction: Tensor, ends: Sequence[Tensor]) -> None:
        """Raise LenscopeError unless a gradient (T, D) along a direction is what states that are moved so give."""
        if not ends:
            # in 16 bits differences are lost in rounding
            return
        sums = [float(end.double().sum()) for end in ends]
        pairs = zip(STEPS, sums[::2], sums[1::2], strict=True)
        steps = [(up - down) / (2 * step) for step, up, down in pairs]
        along = float((gradient.double() * direction.double()).sum())
        size = float(gradient.double().norm() * direction.double().norm()) / direction.numel() ** 0.5
        gap = min(abs(step - along) for step in steps) / max(size, abs(along), 1e-30)
        if not gap <= GAPS[self.lm.dtype]:
            why = f"the gradient at layer {layer} is not the finite difference (apart by {gap:.2g} of its size)"
            raise LenscopeError(self._no_chain(why))


def _stop_reading(_: Tensor) -> None:
    raise EnoughRead


def _beside(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a block is given beside the stream: tensors and plain values in whatever holds them, by their names."""
    for number, value in enumerate(args[1:], 1):
        yield from _named_parts(f"argument {number}", value, set())
    for name, value in kwargs.items():
        if args or name != "hidden_states":
            yield from _named_parts(name, value, set())


def _named_parts(name: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor | int | float | str | torch.dtype):
        yield name, value
    elif value is None or isinstance(value, nn.Module) or id(value) in seen:
        return
    else:
        seen.add(id(value))
        inside: Mapping[Any, Any] = {}
        if isinstance(value, Mapping):
            inside = value
        elif isinstance(value, list | tuple):
            inside = dict(enumerate(value))
        elif hasattr(value, "__dict__"):
            inside = vars(value)
        for key, part in inside.items():
            yield from _named_parts(f"{name}.{key}", part, seen)


def _equal_parts(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)
