"""The closed form of a model that is larger than memory: all states to disk in one reading of its weights, then layers.

Knows: what lies on disk, in which order layers are solved, where a killed run goes on.
Does not know: how weights come (models.weight_stream), the sums (closed_form.py), what a fitted lens says of itself
(tuned_lens.py).

The run is that of tuned_lens_run.py for a recipe without steps, layer by layer. In memory are one layer's moments and
solutions; on disk, for as long as the run lasts, the states of all layers, which are at most two thirds of the size of
the weights (8 D tokens make a closed form), and the translators that are done.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from math import isfinite
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch import Tensor

from lenscope.distributed.layer_owners import LayerOwners
from lenscope.distributed.processes import Group
from lenscope.errors import LenscopeError
from lenscope.files.mapped import mapped_tensor, require_room_on_disk
from lenscope.files.untrusted import read_json
from lenscope.files.writing import write_text
from lenscope.fitting.closed_form import SecondMoments, with_constant
from lenscope.fitting.held_out import COMPARED_COLUMNS, HeldOut, layer_rows
from lenscope.fitting.larger_than_memory import TensorsOnDemand, require_streamed_fit
from lenscope.fitting.recipes import Recipe
from lenscope.fitting.schedule import ROWS_TOGETHER, Schedule
from lenscope.fitting.state_block import StateBlock, masked_rows
from lenscope.mappings.mapping import Pair
from lenscope.measures.sampled_kl import SampledKL
from lenscope.models.batches import Running
from lenscope.models.identity import digest_of
from lenscope.models.language_model import LM
from lenscope.models.precision import half_precision
from lenscope.models.progress import Progress
from lenscope.models.runner import Capture
from lenscope.text.corpus import Corpus, TokenBatch

# tokens of which the mean distribution is taken
MEAN_TOKENS = 512
READ, SOLVED = "read.json", "solved.json"


class StreamedRidge:
    """Translators of all layers by ridge regression, from states on disk."""

    step = 0

    def __init__(
        self, lm: LM, corpus: Corpus, schedule: Schedule, measuring: Sequence[TokenBatch], *, seed: int,
        low: torch.dtype | None, progress: Progress | None,
    ) -> None:  # fmt: skip
        """A run that has read nothing yet.

        Args:
            lm: the model whose states are translated; its weights are streamed.
            corpus: the text that is fitted.
            schedule: what is read.
            measuring: the rows of the text that measures, read together with all others.
            seed: of the order of tokens and of the columns of the vocabulary.
            low: the dtype in which the model's products are made, None: its own.
            progress: told how much of the work is done.
        """
        self.lm, self.corpus, self.schedule, self.measuring = lm, corpus, schedule, measuring
        self.seed, self.low, self.progress = seed, low, progress
        self.loss: list[float | None] = []
        self.constants: list[float] = []
        self.spent: dict[str, float] = {}

    # -- the whole

    def go(self, choosing: Sequence[TokenBatch], settings: dict[str, Any], folder: Path | None) -> HeldOut:
        """Read all text in one reading of the weights, unless a run with these settings did; gives what chooses.

        Raises LenscopeError where the disk has no room for states and lens, and for a folder of another run.
        """
        assert folder is not None
        self.folder, settings = folder, json.loads(json.dumps(settings))
        known = read_json(folder / READ) if (folder / READ).is_file() else None
        if known is not None and known["settings"] != settings:
            raise LenscopeError(f"{folder}: is of another run; remove it to begin anew")
        self.batches, self.choosing = list(self._batches()), choosing
        tokens = sum(batch.ids.numel() for batch in self.batches)
        held = [sum(int(batch.counted.sum()) for batch in part) for part in (choosing, self.measuring)]
        if known is None:
            rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            require_room_on_disk(folder, self._bytes(tokens + sum(held)), "states of all layers and the lens")
        self.fitted = self._block("fitted", tokens, self.low)
        self.chosen = self._block("choosing", held[0], self.low)
        self.measured = self._block("measuring", held[1], None)
        self._number_rows()
        if known is None or known["digests"] != self._digests():
            (folder / SOLVED).unlink(missing_ok=True)
            if self.lm.runner.stream is not None:
                self.lm.runner.stream.progress = self._half
            with self.timed("reading"):
                self._read()
            write_text(folder / READ, json.dumps({"settings": settings, "digests": self._digests()}))
        return _held_out(self.lm, self.chosen, choosing)

    def choose(
        self, select: HeldOut, measuring: Sequence[TokenBatch]
    ) -> tuple[Sequence[Tensor], list[dict[str, Any]], HeldOut]:
        """The weights (D + 1, D) that each layer keeps, a row of the report for each layer, and the text that measured.

        Layers that are solved are on disk at once: a killed run goes on with the next.
        """
        lm = self.lm
        compare = SampledKL(lm, self._mean(), COMPARED_COLUMNS, self.seed, self.low)
        plain = torch.eye(lm.hidden_size + 1, lm.hidden_size)
        done = self._solved()
        for layer in range(lm.n_layers):
            if layer >= len(done):
                constant = self._constant(layer)
                with self.timed("closed form"):
                    start = self._solve(layer, constant, select.block)
                with self.timed("choosing"):
                    kl = _one_layer(select, layer).sampled_kl([[plain], [start]], [constant], compare)
                    best = ("identity", "start")[int(kl.nan_to_num(torch.inf, torch.inf).argmin(0))]
                weights = start if best == "start" else plain
                stored = self._translator(layer)
                stored[0].copy_(weights[:-1].T)
                stored[1].copy_(weights[-1])
                digests = [digest_of(t, None).hex() for t in stored]
                done.append({"constant": constant, "kept": best, "digests": digests})
                write_text(self.folder / SOLVED, json.dumps(done))
            if self.progress is not None:
                self.progress(lm.n_layers + layer + 1, 2 * lm.n_layers)
        self.constants = [one["constant"] for one in done]
        measure = _held_out(lm, self.measured, self.measuring)
        names, every = [one["kept"] for one in done], TensorsOnDemand(self._weights, lm.n_layers)
        with self.timed("measuring"):
            rows = layer_rows(measure, every, [plain] * lm.n_layers, names, self.constants, self.seed)
        return every, rows, measure

    def maps(self) -> dict[Pair, tuple[Tensor, ...]]:
        """A and b of each layer, the matrices in files still."""
        maps: dict[Pair, tuple[Tensor, ...]] = {}
        for layer, constant in enumerate(self.constants):
            a, row = self._translator(layer)
            maps[layer, self.lm.n_layers] = a, row * constant
        return maps

    @contextmanager
    def timed(self, work: str) -> Iterator[None]:
        """Count the time of the block as that work's."""
        began = time.perf_counter()
        yield
        self.spent[work] = self.spent.get(work, 0.0) + time.perf_counter() - began

    def _half(self, done: int, total: int) -> None:
        """Reading is the first half of the work."""
        if self.progress is not None:
            self.progress(done, 2 * total)

    # -- reading

    def _batches(self) -> Iterator[TokenBatch]:
        """The rows that the closed form takes, as many together as a run in memory reads together."""
        plan = self.schedule
        rows = min(plan.warm * plan.block, plan.rows)
        for batch in self.corpus.batches(plan.rows * plan.length, ROWS_TOGETHER):
            yield masked_rows(batch, batch.row < rows)
            if batch.next_row >= rows:
                return

    def _block(self, name: str, tokens: int, low: torch.dtype | None) -> StateBlock:
        lm, size = self.lm, self.lm.hidden_size
        block = StateBlock(lm, _all_layers(lm.n_layers), 0, self.schedule.length, low)
        block.states = mapped_tensor(self.folder / f"{name}.states", (lm.n_layers, tokens, size), low or lm.dtype)
        block.last = mapped_tensor(self.folder / f"{name}.last", (tokens, size), lm.dtype)
        block.counted = torch.ones(tokens, dtype=torch.bool)
        block.following = torch.full((tokens,), -1)
        return block

    def _read(self) -> None:
        """Fill all blocks. Text that measures is read without products in 16 bits: by itself, where others are with."""
        fitted = self._captures(self.fitted, self.batches, every=True)
        chosen = self._captures(self.chosen, self.choosing, every=False)
        measured = self._captures(self.measured, self.measuring, every=False)
        with half_precision(self.lm, self.low):
            self.lm.runner.capture_all([*fitted, *chosen, *(measured if self.low is None else ())])
        if self.low is not None:
            self.lm.runner.capture_all(measured)

    def _captures(self, block: StateBlock, batches: Sequence[TokenBatch], every: bool) -> list[Capture]:
        """What reads batches into a block: all of their tokens, or those that count."""
        lm, at = self.lm, 0
        captures: list[Capture] = []
        for batch in batches:
            which = torch.ones_like(batch.counted) if every else batch.counted
            here = slice(at, at + int(which.sum()))
            at = here.stop

            def keep(layer: int, h: Tensor, here: slice = here, which: Tensor = which) -> None:
                place = block.last if layer == lm.n_layers else block.states[layer]
                place[here] = h[which].to(place.dtype)

            running = Running.of_prompts([lm.prompt(row) for row in batch.ids.tolist()], lm.runner.input_device)
            captures.append((running, range(lm.n_layers + 1), keep))
        return captures

    def _number_rows(self) -> None:
        """Say of the fitted block's tokens which rows they are of, and which count."""
        block, at = self.fitted, 0
        for batch in self.batches:
            here = slice(at, at + batch.ids.numel())
            block.slot.update({row: len(block.slot) + n for n, row in enumerate(batch.row.tolist())})
            block.counted[here] = batch.counted.flatten()
            at = here.stop

    def _digests(self) -> list[str]:
        """The SHA-256 of all states, in pieces."""
        blocks = self.fitted, self.chosen, self.measured
        return [digest_of(t, None).hex() for block in blocks for t in (*block.states, block.last)]

    def _bytes(self, tokens: int) -> int:
        """What states of so many tokens take, and the translators twice: as they come, and in the lens."""
        lm = self.lm
        states = tokens * lm.hidden_size * (lm.n_layers + 1) * lm.dtype.itemsize
        return states + 2 * 4 * lm.n_layers * (lm.hidden_size + 1) * lm.hidden_size

    # -- layers

    def _constant(self, layer: int) -> float:
        """The root mean square of the numbers of a layer's states, over the first block of text."""
        here = slice(0, self.schedule.size(0) * self.schedule.length)
        counted = self.fitted.counted[here]
        h = self.fitted.states[layer, here][counted].float()
        if not len(h):
            raise LenscopeError(f"{self.corpus.name}: no position counts; give longer rows or a smaller skip")
        means = h.square().sum(0) / len(h)
        constant = float(means.mean(-1).sqrt().clamp_min(1e-6))
        if not isfinite(constant):
            raise LenscopeError(
                f"layer {layer}: {self.lm.name} has states that are NaN or infinite there in {self.lm.dtype}; load "
                "it in float32 or bfloat16"
            )
        return constant

    def _solve(self, layer: int, constant: float, select: StateBlock) -> Tensor:
        """The ridge regression (D + 1, D) of a layer onto the last, with the penalty that does best on `select`."""
        plan, block = self.schedule, self.fitted
        moments = SecondMoments(self.lm.hidden_size, torch.device("cpu"))
        states, last = block.states[layer], block.last
        for number in range(plan.warm):
            first = number * plan.block * plan.length
            counted = block.counted[first : first + plan.size(number) * plan.length].nonzero()[:, 0] + first
            parts = counted.split(8192)
            moments.add((with_constant(states[tokens], constant), last[tokens].float()) for tokens in parts)
        return moments.best_ridge(with_constant(select.states[layer], constant), select.last.float())

    def _mean(self) -> Tensor:
        """The model's mean distribution over some tokens of the last block of the closed form, (V,)."""
        plan, lm = self.schedule, self.lm
        number = plan.warm - 1
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        shuffled = torch.randperm(plan.size(number) * plan.length, generator=draw) + number * plan.block * plan.length
        total = torch.zeros(lm.vocab_size, dtype=torch.float64)
        for part in self.fitted.last[self.fitted.find(shuffled[:MEAN_TOKENS])].split(64):
            if len(part):
                total += lm.unembed(part).softmax(-1).sum(0).double()
        mean = total.float()
        return mean / mean.sum().clamp_min(1e-30)

    def _translator(self, layer: int) -> tuple[Tensor, Tensor]:
        """A (D, D) of a layer, and the row (D,) that stands behind it, which the constant makes the bias."""
        size = self.lm.hidden_size
        folder = self.folder
        return mapped_tensor(folder / f"{layer}.A", (size, size), torch.float32), mapped_tensor(
            folder / f"{layer}.b", (size,), torch.float32
        )

    def _weights(self, layer: int) -> Tensor:
        """The weights (D + 1, D) of a layer, of its files."""
        a, row = self._translator(layer)
        return torch.cat([a.T, row[None]])

    def _solved(self) -> list[dict[str, Any]]:
        """What was written of the layers that are done, up to the first whose translator is not as it was written."""
        path = self.folder / SOLVED
        done: list[dict[str, Any]] = []
        for layer, one in enumerate(read_json(path) if path.is_file() else ()):
            if one["digests"] != [digest_of(t, None).hex() for t in self._translator(layer)]:
                break
            done.append(one)
        return done


def solved_layers(folder: Path) -> int | None:
    """How many layers an interrupted run has solved; None where it has not read its text yet."""
    if not (folder / READ).is_file():
        return None
    return len(read_json(folder / SOLVED)) if (folder / SOLVED).is_file() else 0


def require_streamable(lm: LM, name: str, recipe: Recipe, text: Corpus, folder: Any) -> None:
    """Raise LenscopeError for a fit that would read the weights of a streamed model again and again."""
    if recipe.optimizer is not None or recipe.start != "ridge" or not recipe.best:
        raise LenscopeError(
            f"{lm.name}: its weights are streamed from disk, and the recipe {name} takes steps over its text; give the "
            "recipe ridge"
        )
    require_streamed_fit(lm, text, folder, "the states of all layers")


def _held_out(lm: LM, block: StateBlock, rows: Sequence[TokenBatch]) -> HeldOut:
    """Positions of held-out text, by document."""
    everyone = torch.cat([batch.document[batch.counted] for batch in rows])
    numbers = everyone.unique()
    at = torch.searchsorted(numbers, everyone)
    return HeldOut(lm, _all_layers(lm.n_layers), block, at, len(numbers))


def _one_layer(held: HeldOut, layer: int) -> HeldOut:
    """Held-out text with the states of one layer alone."""
    block = copy(held.block)
    block.states = held.block.states[layer : layer + 1]
    return replace(held, owners=_all_layers(1), block=block)


def _all_layers(count: int) -> LayerOwners:
    """All layers in this one process."""
    return LayerOwners(count, Group(), Group())
