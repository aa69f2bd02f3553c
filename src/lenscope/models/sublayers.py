"""What each block adds to the residual stream, and which of its modules give that: found by structure, never by name.

Knows: which outputs of a block's modules sum to what the block adds, by which factors, in one small run; which of them
look at other positions (attention and its kin) and which do not (the MLP), in runs with another first state.
Does not know: heads (attention_heads.py), how sublayers of a prompt are read (sublayer_states.py), logits.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lenscope.errors import LenscopeError
from lenscope.models.batches import Running
from lenscope.models.residual_stream import (
    forward_kwargs,
    input_state,
    output_state,
    with_input_state,
    with_output_state,
)
from lenscope.models.runner import Runner

# Half the distance of neighbouring numbers, relative to them, by dtype: what one operation rounds.
ROUNDING = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# How many such roundings a sum of three may be off; and how few a factor may be, or it is none.
ROUNDINGS, LEAST = 8, 0.02
# The share of its spread by which an output moves where it looks at a position whose state is another one.
MOVED = {torch.float64: 1e-6, torch.float32: 1e-4}


@dataclass(frozen=True)
class Addition:
    """The output of a module of a block, times a factor, which is added to the stream."""

    module: str
    factor: float


@dataclass(frozen=True)
class BlockAdditions:
    """What one block does to the stream: h_out = keep · h_in + Σ factor · output, over `attention` and `mlp`.

    h_mid = (keep · h_in + Σ over `attention`) / after is the stream after attention; where the block is `parallel` no
    module reads it. `after` is what the block multiplies it with later, 1 in nearly every model, as `keep` is.
    """

    attention: tuple[Addition, ...]
    mlp: tuple[Addition, ...]
    keep: float = 1.0
    after: float = 1.0
    parallel: bool = False

    @property
    def additions(self) -> tuple[Addition, ...]:
        """Those of attention, then those of the MLP."""
        return (*self.attention, *self.mlp)

    def attention_state(self, given: Tensor, outputs: dict[str, Tensor]) -> Tensor:
        """The stream after attention was added, of the block's input and its modules' outputs, (B, T, D) each."""
        h = self._sum(given, self.attention, outputs)
        return h if self.after == 1 else h / self.after

    def mlp_state(self, given: Tensor, outputs: dict[str, Tensor]) -> Tensor:
        """The stream after the MLP: the block's output, or in a parallel block its input and what the MLP adds."""
        return self._sum(given, self.mlp if self.parallel else self.additions, outputs)

    def _sum(self, given: Tensor, additions: Sequence[Addition], outputs: dict[str, Tensor]) -> Tensor:
        h = given if self.keep == 1 else given * self.keep
        for one in additions:
            added = outputs[one.module].to(h.device)
            h = h + (added if one.factor == 1 else added * one.factor)
        return h.to(given.dtype)


def require_sum(
    runner: Runner, number: int, block: BlockAdditions, given: Tensor, outputs: dict[str, Tensor], output: Tensor
) -> None:
    """Raise LenscopeError where the output (..., D) of a block is not its input and what was found to be added."""
    factors = [block.keep, *(one.factor for one in block.additions)]
    terms = [given, *(outputs[one.module] for one in block.additions)]
    if _roundings([t.detach().to("cpu", torch.float64) for t in terms], factors, output) > ROUNDINGS:
        raise LenscopeError(
            f"{runner.name}: block {number} adds to this prompt something that is neither its attention's nor its "
            "MLP's output; its sublayers cannot be read apart"
        )


def find_sublayers(runner: Runner) -> tuple[BlockAdditions, ...]:
    """What each block adds to the stream, block by block; looked for once, in three small runs.

    Each block's output must be its input plus outputs of two of its modules (three where attention or the MLP has two
    parts side by side), each times a factor, to the rounding of the model's own sums. Which of them is attention is
    seen: the state of the first position is changed, and attention's output moves at others. Raises LenscopeError for
    a model in which a block adds something else, or one thing only, as Mamba does.
    """
    return runner.measured.once(("sublayers",), lambda: _find_all(runner))


@dataclass
class _Seen:
    """What was seen of a block in the small run: its input and output, its modules' inputs and outputs (B, T, D)."""

    given: Tensor
    output: Tensor
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def _find_all(runner: Runner) -> tuple[BlockAdditions, ...]:
    if len(runner.anatomy.stream.rest) > 1:
        raise LenscopeError(
            f"{runner.name}: its stream has several parts side by side, so that no one sum is what a block adds; its "
            "attention and MLP cannot be read apart"
        )
    recipes: list[BlockAdditions] = []
    held: list[_Seen] = []

    def look(number: int, seen: _Seen) -> None:
        recipes.append(_recipe(runner, number, seen, recipes[-1] if recipes else None))
        names = [one.module for one in recipes[-1].additions]
        # of the rest nothing is asked again, but for what may be the stream between attention and MLP
        held.append(replace(seen, outputs={name: seen.outputs[name] for name in names}))

    _watch_blocks(runner, look)
    return tuple(_kinds_of_additions(runner, recipes, held))


def _watch_blocks(runner: Runner, look: Callable[[int, _Seen], None]) -> None:
    """Run the model on its trial texts; `look` gets every block's number and what was seen of it."""
    pack = runner.anatomy.stream.pack
    shared = _shared_modules(runner)
    with ExitStack() as undo:
        for number, block in enumerate(runner.anatomy.blocks):
            seen = _Seen(torch.empty(0), torch.empty(0), {}, {})

            def begin(_: nn.Module, args: Any, kwargs: Any, seen: _Seen = seen) -> None:
                seen.given = pack(input_state(args, kwargs)).clone()

            def end(_: nn.Module, __: Any, output: Any, seen: _Seen = seen, number: int = number) -> None:
                seen.output = pack(output_state(output)).clone()
                look(number, seen)
                seen.inputs, seen.outputs = {}, {}

            def inner(name: str, args: Any, kwargs: Any, output: Any, seen: _Seen = seen) -> None:
                first = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
                for store, value in ((seen.inputs, first), (seen.outputs, _first_tensor(output))):
                    state = None if value is None else as_stream(value, seen.given)
                    if state is not None:
                        # a module that runs twice gives no one output
                        store[name] = torch.full_like(state, torch.nan) if name in store else state.clone()

            undo.callback(block.register_forward_pre_hook(begin, with_kwargs=True).remove)
            undo.callback(block.register_forward_hook(end).remove)
            for name, module in block.named_modules():
                if name and module not in shared:
                    hook = partial(_called, partial(inner, name))
                    undo.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        run_trial(runner)


def _called(look: Callable[[Any, Any, Any], None], module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    look(args, kwargs, output)


def run_trial(runner: Runner) -> None:
    """Run the model on its trial texts (`Anatomy.ids`), whatever edits are in force."""
    model, ids = runner.model, runner.anatomy.ids
    with runner.running(Running.of_ids(ids)):
        model(input_ids=ids, **forward_kwargs(model, use_cache=False))


def _shared_modules(runner: Runner) -> set[nn.Module]:
    """Modules that are in several blocks: what they give is not one block's."""
    seen: set[nn.Module] = set()
    twice: set[nn.Module] = set()
    for block in runner.anatomy.blocks:
        here = set(block.modules())
        twice |= seen & here
        seen |= here
    return twice


def _first_tensor(output: Any) -> Tensor | None:
    try:
        return output_state(output)
    except LenscopeError:
        return None


def as_stream(value: Tensor, like: Tensor) -> Tensor | None:
    """A module's tensor as (B, T, D), also where it has all tokens in one axis; None where it is none of the stream."""
    if value.numel() != like.numel() or value.shape[-1] != like.shape[-1] or not value.is_floating_point():
        return None
    return value.reshape(like.shape)


# -- which outputs are added


def _recipe(runner: Runner, number: int, seen: _Seen, before: BlockAdditions | None) -> BlockAdditions:
    """The outputs that a block adds; all of them as `mlp` so far, in the order in which they were computed."""
    wide = {name: out.to("cpu", torch.float64) for name, out in seen.outputs.items() if bool(torch.isfinite(out).all())}
    # where several modules give the same, the last is the outermost
    names = [
        name
        for n, name in enumerate(wide)
        if not any(torch.equal(wide[name], wide[other]) for other in list(wide)[n + 1 :])
    ]
    fit = partial(_fitted_sum, runner, seen, wide)
    usual = None if before is None else [one.module for one in before.additions]
    if usual is not None and set(usual) <= set(wide) and (additions := fit([tuple(usual)])):
        return _in_order(runner, seen, wide, additions)
    for count in (1, 2, 3):
        additions = fit(list(itertools.combinations(names, count)))
        if additions and count == 1:
            raise LenscopeError(
                f"{runner.name}: block {number} adds one thing to the stream ({additions[1][0].module}), and not what "
                "attention and an MLP give; its sublayers cannot be read apart"
            )
        if additions:
            return _in_order(runner, seen, wide, additions)
    raise LenscopeError(
        f"{runner.name}: block {number} adds something that is neither its attention's nor its MLP's output (it is not "
        "the sum of its input and of what modules in it give); its sublayers cannot be read apart"
    )


def _fitted_sum(
    runner: Runner, seen: _Seen, wide: dict[str, Tensor], sets: list[tuple[str, ...]]
) -> tuple[float, list[Addition]] | None:
    """The set of modules whose outputs, times factors, and the input, times one, give the output; None if none does."""
    given, output = seen.given.to("cpu", torch.float64), seen.output.to("cpu", torch.float64)
    names = list(dict.fromkeys(name for one in sets for name in one))
    # single numbers of a state may be a hundred times the others: each counts by what it can round
    weight = 1 / (given.abs() + output.abs() + 1e-30)
    columns = torch.stack([(t * weight).reshape(-1) for t in (given, *(wide[n] for n in names), output)])
    gram = columns @ columns.T
    at = {name: n + 1 for n, name in enumerate(names)}
    picks = torch.tensor([[0, *(at[name] for name in one)] for one in sets])
    square = gram[picks[:, :, None], picks[:, None, :]]
    target = gram[picks, -1]
    factors = torch.linalg.lstsq(square, target[..., None], driver="gelsd").solution[..., 0]
    left = (gram[-1, -1] - (factors * target).sum(-1)).abs() / gram[-1, -1]
    unit = ROUNDING.get(seen.given.dtype, 2.0**-8)
    possible = (left < max(1e-9, (64 * unit) ** 2)) & (factors.abs() >= LEAST).all(-1)
    best: tuple[float, list[float], int] | None = None
    for n in possible.nonzero()[:, 0].tolist():
        terms = [given, *(wide[name] for name in sets[n])]
        # squares lose half of the digits
        precise = torch.linalg.lstsq(columns[picks[n]].T, columns[-1][:, None], driver="gelsd").solution[:, 0]
        exact = _nearest_plain(runner, terms, precise.tolist(), seen.output)
        gap = _roundings(terms, exact, seen.output)
        if gap <= ROUNDINGS and (best is None or gap < best[0]):
            best = gap, exact, n
    if best is None:
        return None
    _, exact, n = best
    return exact[0], [Addition(name, factor) for name, factor in zip(sets[n], exact[1:], strict=True)]


def _nearest_plain(runner: Runner, terms: list[Tensor], factors: list[float], output: Tensor) -> list[float]:
    """The factors that these are but for rounding: 1, or a number of the configuration; else as they were fitted."""
    config = runner.model.config.get_text_config().to_dict().values()
    numbers = [float(v) for v in config if isinstance(v, int | float) and not isinstance(v, bool) and v]
    near = [next((v for v in (1.0, *numbers) if abs(f / v - 1) < 1e-3), f) for f in factors]
    return near if _roundings(terms, near, output) <= ROUNDINGS else factors


def _roundings(terms: Sequence[Tensor], factors: Sequence[float], output: Tensor) -> float:
    """How far Σ factor · term is from an output, at worst, in roundings of the numbers that are summed."""
    parts = [t * f for t, f in zip(terms, factors, strict=True)]
    truth = output.detach().to("cpu", torch.float64)
    total, size = sum(parts), sum(p.abs() for p in parts) + truth.abs()
    unit = ROUNDING.get(output.dtype, 2.0**-8)
    assert isinstance(total, Tensor)
    gap = ((total - truth).abs() / (unit * size + 1e-300)).nan_to_num(torch.inf)
    return float(gap.max()) if gap.numel() else 0.0


# -- which of them are attention's, and where the stream stands between


def _in_order(
    runner: Runner, seen: _Seen, wide: dict[str, Tensor], fitted: tuple[float, list[Addition]]
) -> BlockAdditions:
    """What was fitted, in the order of computation, all of it as `mlp` so far."""
    keep, additions = fitted
    order = list(wide)
    return BlockAdditions((), tuple(sorted(additions, key=lambda one: order.index(one.module))), keep)


def _kinds_of_additions(runner: Runner, recipes: list[BlockAdditions], held: list[_Seen]) -> Iterator[BlockAdditions]:
    """The additions of each block as those that look at other positions, and those that do not."""
    most = max(len(one.additions) for one in recipes)
    looking = [_look_around(runner, recipes, held, n) for n in range(most)]
    for number, recipe in enumerate(recipes):
        around = [looking[n][number] for n in range(len(recipe.additions))]
        if all(around) or not any(around):
            what = "look" if all(around) else "do not look"
            raise LenscopeError(
                f"{runner.name}: block {number} adds {len(around)} things that {what} at other positions ("
                f"{', '.join(one.module for one in recipe.additions)}); attention and MLP cannot be told apart"
            )
        attention = tuple(one for one, yes in zip(recipe.additions, around, strict=True) if yes)
        mlp = tuple(one for one, yes in zip(recipe.additions, around, strict=True) if not yes)
        after = _read_between(runner, replace(recipe, attention=attention, mlp=mlp), held[number])
        yield replace(recipe, attention=attention, mlp=mlp, after=after or 1.0, parallel=after is None)


def _read_between(runner: Runner, recipe: BlockAdditions, seen: _Seen) -> float | None:
    """What h_mid is multiplied with after a module read it; None where none reads it: attention and MLP in parallel."""
    terms = [t.to("cpu", torch.float64) for t in (seen.given, *(seen.outputs[one.module] for one in recipe.attention))]
    factors = [recipe.keep, *(one.factor for one in recipe.attention)]
    mid = sum(t * f for t, f in zip(terms, factors, strict=True))
    assert isinstance(mid, Tensor)
    for state in seen.inputs.values():
        read = state.to("cpu", torch.float64)
        weight = (mid.abs() + read.abs() + 1e-30).square()
        share = float((mid * read / weight).sum() / (mid * mid / weight).sum())
        if abs(share) >= LEAST and _roundings(terms, [f * share for f in factors], state) <= ROUNDINGS:
            return next((v for v in (1.0, recipe.keep) if abs(share * v - 1) < 1e-3), 1 / share)
    return None


def _look_around(runner: Runner, recipes: list[BlockAdditions], held: list[_Seen], n: int) -> list[bool]:
    """Whether the n-th addition of each block moves at other positions when the block's first state is another one.

    What is added before it stays as it was, so that a sequential MLP reads a stream that moved at one position only.
    """
    moved = [False] * len(recipes)
    unpack = runner.anatomy.stream.unpack
    draw = torch.Generator().manual_seed(0)
    with ExitStack() as undo:
        for number, (block, recipe, seen) in enumerate(zip(runner.anatomy.blocks, recipes, held, strict=True)):
            noise = torch.randn(seen.given[:, 0].shape, generator=draw).to(seen.given)
            other = seen.given.clone()
            other[:, 0] += noise * seen.given[:, 0].std()

            def begin(_: nn.Module, args: Any, kwargs: Any, other: Tensor = other) -> Any:
                return with_input_state(args, kwargs, unpack(other).to(input_state(args, kwargs)))

            def stay(_: nn.Module, __: Any, output: Any, before: Tensor) -> Any:
                now = output_state(output)
                return with_output_state(output, before.reshape(now.shape).to(now))

            def compare(_: nn.Module, __: Any, output: Any, before: Tensor, number: int = number) -> None:
                now = output_state(output).reshape(before.shape)[:, 1:]
                gap = (now.double() - before[:, 1:].double()).abs().max()
                moved[number] = bool(gap > MOVED.get(now.dtype, 1e-2) * before[:, 1:].double().std())

            undo.callback(block.register_forward_pre_hook(begin, with_kwargs=True).remove)
            for place, one in enumerate(recipe.additions[: n + 1]):
                act = partial(compare if place == n else stay, before=seen.outputs[one.module])
                undo.callback(block.get_submodule(one.module).register_forward_hook(act).remove)
        run_trial(runner)
    return moved
