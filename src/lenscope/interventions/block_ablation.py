"""Blocks taken out of a model: what one adds to the stream is left out or something else put there, the rest runs on.

Knows: what a block adds, what can be added instead, which blocks need not run again, what is then lost on text.
Does not know: where text comes from, which blocks ought to matter.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from lenscope.contents import Brief
from lenscope.engine.run_above_layer import run_from
from lenscope.errors import LenscopeError
from lenscope.interventions.block_ablation_results import MEASURES, READ, BlockAblations
from lenscope.lenses.lens import Lens
from lenscope.measures.streamed import reduce
from lenscope.models.batches import TOKENS_PER_RUN, Running
from lenscope.models.deviations import deviation
from lenscope.models.edits import EditBlock
from lenscope.models.exactness import is_exact
from lenscope.models.language_model import LM
from lenscope.models.layers import check_layers
from lenscope.models.load_options import dtype_name
from lenscope.models.progress import Progress
from lenscope.models.provenance import provenance
from lenscope.models.readout import is_stubbed
from lenscope.models.residual_stream import input_state, output_state, with_output_state
from lenscope.text.predictions import TextRows, counted_rows, nothing_counts, predictions

# change(update, layer): what is added to the stream in place of what the block that makes `layer` adds, (B, T, D) both
Change = Callable[[Tensor, int], Tensor]


def deletion(update: Tensor, layer: int) -> Tensor:
    """The block is skipped: it adds nothing, and its output is its input."""
    return torch.zeros_like(update)


@final
@dataclass(frozen=True)
class Resampling:
    """Each row gets what the block adds to another row at the same position; no row keeps its own.

    Which row is fixed by the seed and the layer. Raises LenscopeError for a batch of one row.
    """

    seed: int = 0

    def __call__(self, update: Tensor, layer: int) -> Tensor:
        """The rows of `update` (B, T, D) in one cycle of all."""
        if len(update) < 2:
            raise LenscopeError("resampling: one row has no other of its length to take from; give at least two")
        cycle = torch.randperm(len(update), generator=_generator(self.seed, layer)).to(update.device)
        out = torch.empty_like(update)
        out[cycle] = update[cycle.roll(1)]
        return out


@final
@dataclass(frozen=True)
class RandomDirection:
    """A random vector as long as what the block adds, another one at every position: a control."""

    seed: int = 0

    def __call__(self, update: Tensor, layer: int) -> Tensor:
        """Random directions with the norms of `update` (B, T, D)."""
        drawn = torch.randn(update.shape, generator=_generator(self.seed, layer)).to(update)
        return drawn * (update.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True))


@final
@dataclass(frozen=True, eq=False, repr=False)
class MeanUpdate(Brief):
    """The mean of what each block adds, (n_layers, D): the same vector at every position. Made by `mean_update`."""

    means: Tensor

    def __call__(self, update: Tensor, layer: int) -> Tensor:
        """The mean of the block that makes `layer`, in the shape of `update` (B, T, D)."""
        return self.means[layer - 1].to(update).expand_as(update)


def _generator(seed: int, layer: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 10_007 + layer)


def mean_update(lm: LM, rows: TextRows) -> MeanUpdate:
    """What every block adds on average over the predictions of text; `rows` as `ablate_blocks` takes them."""
    total, count = torch.zeros(lm.n_layers, lm.hidden_size, dtype=torch.float64), 0
    for batch in predictions(lm, rows, tuple(range(lm.n_layers + 1)), None):
        total += batch.h.diff(dim=1).sum(0, dtype=torch.float64).cpu()
        count += len(batch.h)
    return MeanUpdate(total / count)


@contextmanager
def ablated(lm: LM, layers: int | Sequence[int], change: Change = deletion) -> Iterator[None]:
    """Run with some blocks of the model changed or left out, within a `with` block.

    `layers` name blocks by the layer each makes, 1…n_layers. `change(update, layer)` gives what is added to the block's
    input (B, T, D) in place of its update, at prompts' and new tokens alike; by default nothing (Veit et al. 2016).
    Whatever else a block hands on (keys, values, states of its own) stays. It holds for what this thread or task reads
    and generates. All hooks are gone after the block, whatever happened in it. Raises LenscopeError for blocks that do
    not exist.
    """
    numbers = _blocks(lm, (layers,) if isinstance(layers, int) else layers)
    with lm.runner.block() as mine, ExitStack() as undo:
        for layer in numbers:
            block = lm.runner.anatomy.blocks[layer - 1]
            register = partial(block.register_forward_hook, _hook_changing(lm, mine, layer, change), with_kwargs=True)
            undo.callback(lm.runner.exclusive.hook(register).remove)
        yield


def _hook_changing(lm: LM, mine: EditBlock, layer: int, change: Change) -> Callable[..., Any]:
    stream = lm.runner.anatomy.stream

    def after(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if is_stubbed(block) or lm.runner.acts(mine) is None:
            return None
        h, out = stream.pack(input_state(args, kwargs)), stream.pack(output_state(output))
        added = _changed(change, out - h, layer)
        return None if added is None else with_output_state(output, stream.unpack(h + added))

    return after


def _changed(change: Change, update: Tensor, layer: int) -> Tensor | None:
    """What is added instead; None for the very update, as then the block is left alone, to the last bit."""
    added = change(update, layer)
    if not isinstance(added, Tensor) or added.shape != update.shape:
        given = f"shape {tuple(added.shape)}" if isinstance(added, Tensor) else type(added).__name__
        raise LenscopeError(f"change at layer {layer}: gave {given} for an update of shape {tuple(update.shape)}")
    return None if added is update else added.to(update)


@torch.no_grad()
def ablate_blocks(
    lm: LM,
    rows: TextRows,
    changes: Mapping[str, Change] | Change = deletion,
    layers: Sequence[int] | int | None = None,
    *,
    lenses: Mapping[str, Callable[..., Any] | None] | None = None,
    read: Sequence[int] = (),
    progress: Progress | None = None,
) -> BlockAblations:
    """Measure what each block is worth to the model: change one block at a time, for every block and change.

    `rows` are texts, rows of token ids, or batches of a corpus (`corpus.batches(tokens=…)`), of which the predictions
    count that `evaluate` counts; those of equal length run together. `changes` by name, or one, are as `ablated` takes
    them; `layers` name the blocks by the layer each makes, by default all. The direct effect keeps what later blocks
    added (h_n plus the change of the update, unembedded); where it exceeds the effect, later blocks make up for the
    missing one (self-repair: McGrath et al. 2023, arXiv 2307.15771). With `lenses` (as `evaluate` takes them) the
    states of the layers `read` are decoded too, for whether the prediction recovers on its way.

    Blocks below the changed one do not run again: they return what they returned, in whatever container they use.
    Whether that gives this model's own numbers is measured when it is first asked for; else the whole model runs with
    hooks. Memory is the states of about a thousand tokens at all layers. Raises LenscopeError for text without a
    prediction, blocks that do not exist, and within `edit`.

    Args:
        lm: the model.
        rows: texts, rows of token ids, or batches of a corpus.
        changes: one change of a block's update, or several by name.
        layers: the layers whose blocks are changed; None: all.
        lenses: mappings by name that decode the states of `read`.
        read: layers that are decoded on the way.
        progress: called with how much is done and how much there is.
    """
    if lm.runner.editing:
        raise LenscopeError("inside edit() or ablated(): blocks are ablated of a model as it is")
    named = {getattr(changes, "__name__", "change"): changes} if callable(changes) else dict(changes)
    numbers = _blocks(
        lm, range(1, lm.n_layers + 1) if layers is None else (layers,) if isinstance(layers, int) else layers
    )
    shown = tuple(sorted({*check_layers(read, lm.n_layers, lm.name)})) if read else ()
    decoders = [Lens(lm, f, name=name) for name, f in (lenses or {}).items()] if shown else []
    if not named:
        raise LenscopeError("changes: none given; name at least one, such as {'deletion': deletion}")
    batches = list(_equal_rows(lm, rows))
    if not batches:
        raise nothing_counts("prediction")
    sums = BlockAblationSums(lm, named, numbers, decoders, shown, 1 + max(int(b.units.max()) for b in batches))
    resumes = _resumes(lm)
    for n, batch in enumerate(batches):
        sums.take(batch, BlockRun(lm, batch.ids, resumes))
        if progress is not None:
            progress(n + 1, len(batches))
    return sums.result({**provenance(lm), "run": "resumed" if resumes else "hooks"})


@dataclass(frozen=True, eq=False)
class EqualRows:
    """Rows of equal length, ids (B, T), and their predictions: row, position and next token (P,), and unit."""

    ids: Tensor
    row: Tensor
    position: Tensor
    units: np.ndarray


def _equal_rows(lm: LM, rows: TextRows) -> Iterator[EqualRows]:
    """All rows, as many of equal length together as fit; never one alone that could run with others."""
    by_length: dict[int, list[tuple[tuple[int, ...], np.ndarray, np.ndarray]]] = {}
    units: dict[tuple[str, int], int] = {}
    for _, item in counted_rows(lm, rows, 1):
        for row in item:
            positions = np.flatnonzero(row.counted)
            own = [units.setdefault((row.kind, unit), len(units)) for unit in row.units[positions].tolist()]
            by_length.setdefault(len(row.prompt), []).append((row.prompt.ids, positions, np.array(own)))
    for length, many in by_length.items():
        most = max(2, TOKENS_PER_RUN // 8 // length)
        parts = max(1, min(-(-len(many) // most), len(many) // 2))
        for part in np.array_split(np.arange(len(many)), parts):
            held = [many[i] for i in part]
            device = lm.runner.input_device
            yield EqualRows(
                torch.tensor([ids for ids, _, _ in held], device=device),
                torch.tensor(np.repeat(np.arange(len(held)), [len(p) for _, p, _ in held]), device=device),
                torch.tensor(np.concatenate([p for _, p, _ in held]), device=device),
                np.concatenate([u for _, _, u in held]),
            )


class BlockRun:
    """One batch's run as it is, and runs that go on from a changed block."""

    def __init__(self, lm: LM, ids: Tensor, resumes: bool) -> None:
        self.lm, self.resumes = lm, resumes
        prompts = [lm.prompt(row) for row in ids.tolist()]
        self.running = Running.of_prompts(prompts, ids.device, without_edits=True)
        self.outputs: list[Any] = []
        self.inputs: list[Tensor] = []
        pack = lm.runner.anatomy.stream.pack

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.inputs.append(pack(input_state(args, kwargs)))
            self.outputs.append(output)

        with lm.runner.exclusive.alone(), ExitStack() as undo:
            for block in lm.runner.anatomy.blocks:
                undo.callback(block.register_forward_hook(keep, with_kwargs=True).remove)
            lm.runner.capture(self.running, {lm.n_layers}, lambda _, h: None)

    def state(self, layer: int) -> Tensor:
        """The state (B, T, D) at a layer of the model as it is."""
        pack = self.lm.runner.anatomy.stream.pack
        return (pack(output_state(self.outputs[layer - 1])) if layer else self.inputs[0]).to(self.lm.device)

    def changed(self, layer: int, change: Change) -> tuple[Tensor, Tensor]:
        """The state at `layer` after the change, and what was added less what the block adds, (B, T, D) each."""
        h, out = self.inputs[layer - 1].to(self.lm.device), self.state(layer)
        update = out - h
        added = _changed(change, update, layer)
        return (out, torch.zeros_like(out)) if added is None else (h + added, added - update)

    def states(self, layer: int, h: Tensor, read: Collection[int]) -> dict[int, Tensor]:
        """The states at the layers `read` where h is that of `layer`, all of them at or above it."""
        states: dict[int, Tensor] = {}
        outputs = self.outputs[:layer] if self.resumes else None
        with run_from(self.lm.runner, layer, h, outputs):
            self.lm.runner.capture(
                self.running, {*read}, lambda at, state: states.update({at: state.to(self.lm.device)})
            )
        return states


class BlockAblationSums:
    """The sums so far."""

    def __init__(
        self, lm: LM, changes: Mapping[str, Change], layers: Sequence[int], lenses: Sequence[Lens],
        read: tuple[int, ...], units: int,
    ) -> None:  # fmt: skip
        self.lm, self.changes, self.layers, self.lenses, self.read = lm, changes, layers, lenses, read
        # what is decoded of a run: of a lens, a layer, each by its number
        self.decoded = [
            (i, m) for i, lens in enumerate(lenses) for m, at in enumerate(read) if at in (*lens.layers, lm.n_layers)
        ]
        shape = len(changes), len(layers)
        self.counts, self.own = np.zeros(units), np.zeros(units)
        self.sums = {name: np.zeros((*shape, units)) for name in MEASURES}
        self.read_sums = {name: np.full((len(lenses), *shape, len(read), units), np.nan) for name in READ}
        self.clean = {name: np.full((len(lenses), len(read), units), np.nan) for name in READ}
        for (i, m), name in product(self.decoded, READ):
            self.clean[name][i, m] = 0
            self.read_sums[name][i, :, [b for b, layer in enumerate(layers) if layer <= read[m]], m] = 0

    def take(self, batch: EqualRows, run: BlockRun) -> None:
        """Add what a batch shows: its run as it is, and with each block changed."""
        last, at = self.lm.n_layers, (batch.row.to(self.lm.device), batch.position.to(self.lm.device))
        final, targets = run.state(last)[at], batch.ids[batch.row, batch.position + 1].to(self.lm.device)
        clean = {m: run.state(m)[at] for m in self.read}
        loss, kl, top = self._reduced([final, *self._mapped(clean, 0)], final, targets)
        own, best = loss[0], top[0]
        np.add.at(self.counts, batch.units, 1)
        np.add.at(self.own, batch.units, own)
        for n, (i, m) in enumerate(self.decoded, 1):
            np.add.at(self.clean["kl"][i, m], batch.units, kl[n])
            np.add.at(self.clean["agreement"][i, m], batch.units, top[n] == best)
        for b, layer in enumerate(self.layers):
            above = [(i, m) for i, m in self.decoded if self.read[m] >= layer]
            h: list[Tensor] = []
            for change in self.changes.values():
                state, apart = run.changed(layer, change)
                states = run.states(layer, state, {last, *(self.read[m] for _, m in above)})
                picked = {m: x[at] for m, x in states.items()}
                h += [picked[last], final + apart[at], *self._mapped(picked, layer)]
            loss, kl, top = self._reduced(h, final, targets)
            for c in range(len(self.changes)):
                n = c * (2 + len(above))
                values = loss[n] - own, kl[n], top[n] == best, loss[n + 1] - own, kl[n + 1], kl[n + 1] - kl[n]
                for name, value in zip(MEASURES, values, strict=True):
                    np.add.at(self.sums[name][c, b], batch.units, value)
                for k, (i, m) in enumerate(above, n + 2):
                    np.add.at(self.read_sums["kl"][i, c, b, m], batch.units, kl[k])
                    np.add.at(self.read_sums["agreement"][i, c, b, m], batch.units, top[k] == best)

    def result(self, about: dict[str, Any]) -> BlockAblations:
        """The sums as a result, with its provenance."""
        names, sums = tuple(lens.name for lens in self.lenses), (self.sums, self.read_sums, self.clean)
        lm, changes, layers = self.lm, tuple(self.changes), tuple(self.layers)
        return BlockAblations(
            lm.name, lm.n_layers, changes, layers, names, self.read, self.counts, self.own, *sums, about
        )

    def _mapped(self, states: Mapping[int, Tensor], least: int) -> list[Tensor]:
        """What is decoded of the states (P, D) of layers from `least` on."""
        decoded = ((self.lenses[i], self.read[m]) for i, m in self.decoded)
        return [lens.map(states[layer], layer) for lens, layer in decoded if layer >= least]

    def _reduced(
        self, h: Sequence[Tensor], final: Tensor, targets: Tensor
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cross-entropy, KL and top token of states (P, D), (n, P) each."""
        r = reduce(self.lm.runner.readout, self.lm.vocab_size, torch.stack([*h]), final, targets, 1, False)
        if r.kl.isnan().any():
            dtype = dtype_name(self.lm.dtype)
            raise LenscopeError(
                f"{self.lm.name}: a measure came out as NaN in {dtype}; load the model with dtype='float32'"
            )
        loss, kl, top = (v.cpu().double().numpy() for v in (r.cross_entropy, r.kl, r.top_ids[..., 0]))
        return loss, kl, top


def _resumes(lm: LM) -> bool:
    """Whether runs that go on from a changed block give what hooks on whole runs give; measured once."""

    def gap() -> float:
        n = lm.n_layers
        plain, resumed = (
            torch.cat(
                [
                    lm.runner.own_logits(run.states(layer, run.changed(layer, deletion)[0], {n})[n].flatten(0, 1))
                    for layer in sorted({1, max(1, n // 2), n})
                ]
            )
            for run in (BlockRun(lm, lm.runner.anatomy.ids, resumes) for resumes in (False, True))
        )
        return deviation(resumed, plain)

    return is_exact(lm.runner, ("from a changed block",), gap)


def _blocks(lm: LM, layers: Sequence[int]) -> tuple[int, ...]:
    numbers = tuple(sorted({*check_layers(layers, lm.n_layers, lm.name)}))
    if numbers[0] < 1:
        raise LenscopeError(f"layer 0: no block makes it; give blocks by the layers they make, 1–{lm.n_layers}")
    return numbers
