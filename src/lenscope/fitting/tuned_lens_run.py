"""The run of a fit: states of a stream of text in blocks, the closed form, then steps, with checkpoints between blocks.

Knows: what is read when, which tokens make a step, what a checkpoint holds, how processes share the work.
Does not know: the loss (objective.py), optimizers, recipes' names, what is kept in the end (tuning.py).
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from lenscope.distributed.sharding import Group, is_sharded
from lenscope.errors import LenscopeError
from lenscope.files import weights_folder as artifacts
from lenscope.fitting.closed_form import Moments, with_constant
from lenscope.fitting.optimizers import MakeOptimizer, Optimizer, Units
from lenscope.fitting.schedule import TOGETHER, Schedule
from lenscope.measures.sampled_kl import Columns, Objective, reading
from lenscope.models.edits import Running
from lenscope.models.language_model import LM
from lenscope.models.prompts import pad
from lenscope.text.corpus import Corpus, TokenBatch

# numbers of the model's distributions that are held at once, over the tokens of a step
PIECE = 1 << 26
# tokens of which the mean distribution is taken
MEAN = 512


class Training:
    """Translators of all layers below the last, as weights (D + 1, D) on x = [h, c], and how they come about."""

    def __init__(
        self, lm: LM, corpus: Corpus, schedule: Schedule, group: Group, *, seed: int, low: torch.dtype | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:  # fmt: skip
        self.lm, self.corpus, self.schedule, self.group = lm, corpus, schedule, group
        self.seed, self.low, self.progress = seed, low, progress
        self.weights: list[Tensor] = []
        self.constants: list[float] = []
        self.units: list[Units] = []
        self.start: list[Tensor] = []
        self.number = self.step = self.seen = 0
        self.loss: list[float | None] = []
        self.mean = torch.empty(0)
        self.moments: list[Moments] = []
        # of the step that is being made: Σ of the loss' gradients, and Σ of the loss and the count of tokens
        self.gradients: list[Tensor] = []
        self.sums = torch.zeros(2, device=lm.device)
        # seconds of each kind of work
        self.spent: dict[str, float] = {}

    @contextmanager
    def timed(self, work: str) -> Iterator[None]:
        """Count the time of the block as that work's."""
        began = self._now()
        yield
        self.spent[work] = self.spent.get(work, 0.0) + self._now() - began

    def _now(self) -> float:
        if self.lm.device.type == "cuda":
            torch.cuda.synchronize(self.lm.device)
        return time.perf_counter()

    # -- reading

    def blocks(self) -> Iterator["Block"]:
        """The blocks from where the run stands, each with this process's rows; a block is freed before the next."""
        plan, rank, world = self.schedule, self.group.rank, self.group.world
        number, at, block = self.number, self.number * plan.block, None
        rows = max(1, TOGETHER // world)
        for batch in self.corpus.batches(plan.rows * plan.length, rows, start=at, rank=rank, world=world):
            # many processes read more rows at once than a block has
            while at < batch.next_row:
                first, end = number * plan.block, number * plan.block + plan.size(number)
                stop = min(end, batch.next_row)
                if block is None:
                    mine = sum(row % world == rank for row in range(first, end))
                    block = Block(self.lm, mine, plan.length, self.low)
                with self.timed("reading"):
                    block.read(some_rows(batch, (batch.row >= at) & (batch.row < stop)))
                at = stop
                if self.progress is not None and rank == 0:
                    self.progress(at * plan.length, plan.rows * plan.length)
                if at == end:
                    yield block
                    block, number = None, number + 1

    # -- the closed form

    def find_sizes(self, block: "Block") -> None:
        """Each layer's constant, the root mean square of its states' numbers, and its units, over a block."""
        layers = range(self.lm.n_layers)
        squares = torch.zeros(len(layers) + 2, self.lm.hidden_size, dtype=torch.float64)
        for layer in layers:
            squares[layer] = block.states[layer][block.counted].float().square().sum(0)
        squares[-2] = block.last[block.counted].float().square().sum(0)
        squares[-1] = block.counted.sum()
        squares = squares.to(self.lm.device, torch.float32)
        self.group.sum([squares])
        if squares[-1, 0] < 1:
            raise LenscopeError(f"{self.corpus.name}: no position counts; give longer rows or a smaller skip")
        means = squares[:-1] / squares[-1]
        self.constants = means[:-1].mean(-1).sqrt().clamp_min(1e-6).tolist()
        for layer, constant in enumerate(self.constants):
            if not isfinite(constant):
                raise LenscopeError(
                    f"layer {layer}: {self.lm.name} has states that are NaN or infinite there in {self.lm.dtype}; load "
                    "it in float32 or bfloat16"
                )
        roots = means.sqrt()
        outputs = _unit(roots[-1])
        inputs = (torch.cat([r, r.new_tensor([c])]) for r, c in zip(roots, self.constants, strict=False))
        self.units = [(_unit(r), outputs) for r in inputs]

    def gather(self, block: "Block") -> None:
        """Take a block into the moments."""
        if not self.moments:
            self.moments = [Moments(self.lm.hidden_size, self.lm.device) for _ in self.constants]
        for some in block.counted.nonzero()[:, 0].split(8192):
            y = block.last[some].float()
            for layer, moments in enumerate(self.moments):
                moments.add(with_constant(block.states[layer][some], self.constants[layer]), y)

    def close(self, select: "Block") -> None:
        """Ridge regressions of each layer onto the last; of the penalties the one that does best on `select`."""
        y = select.last[select.counted].float()
        for layer, constant in enumerate(self.constants):
            # the moments go as the solutions come
            moments = self.moments.pop(0)
            self.group.sum([moments.xx, moments.xy])
            x = with_constant(select.states[layer][select.counted], constant)
            found = moments.ridges()
            errors = torch.stack([(y - x @ t).square().sum() for t in found])
            self.group.sum([errors])
            self.start.append(found[int(errors.argmin())])
        self.weights = [t.clone() for t in self.start]

    def identity(self) -> None:
        """Translators that change nothing."""
        size = self.lm.hidden_size
        self.start = [torch.eye(size + 1, size, device=self.lm.device) for _ in self.constants]
        self.weights = [t.clone() for t in self.start]

    def find_mean(self, block: "Block") -> None:
        """The model's mean distribution over some of a block's tokens, (V,)."""
        lm = self.lm
        total = torch.zeros(lm.vocab_size, dtype=torch.float64)
        for part in block.last[block.find(self._shuffled()[:MEAN])].split(64):
            if len(part):
                total += lm.unembed(part).softmax(-1).sum(0).double().cpu()
        mean = total.to(lm.device, torch.float32)
        self.group.sum([mean])
        self.mean = mean / mean.sum().clamp_min(1e-30)

    def held_out_kl(self, block: "Block", candidates: Sequence[Sequence[Tensor]], objective: Objective) -> Tensor:
        """Mean KL(model ‖ lens) of some weights for each layer, on a block: (candidates, n_layers).

        Over the columns that the objective draws first.
        """
        columns = objective.draw(0)
        target = objective.target(block.last[block.counted], columns)
        found = torch.zeros(len(candidates), len(self.constants), dtype=torch.float64, device=self.lm.device)
        for layer, constant in enumerate(self.constants):
            x = with_constant(block.states[layer][block.counted], constant)
            for n, weights in enumerate(candidates):
                found[n, layer] = objective.loss(x @ weights[layer], target, columns)
        count = block.counted.sum()
        self.group.sum([found, count])
        return (found / count).cpu()

    def _shuffled(self) -> Tensor:
        """The positions of the current block, of all processes, in an order that seed and block fix."""
        plan = self.schedule
        first, size = self.number * plan.block * plan.length, plan.size(self.number) * plan.length
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.number)
        return torch.randperm(size, generator=draw) + first

    # -- steps

    def take_steps(self, block: "Block", objective: Objective, optimizer: Optimizer, bias_only: bool) -> None:
        """The steps of a block, over its tokens in an order that seed and block fix."""
        plan = self.schedule
        parts = plan.parts_of(self.number)
        if not self.gradients:
            self.gradients = [torch.zeros_like(w) for w in self.weights]
        for positions in self._shuffled().tensor_split(parts) if parts else ():
            mine = block.find(positions)
            if objective.next_token:
                mine = mine[block.following[mine] >= 0]
            columns = objective.draw(self.step)
            for some in mine.split(max(64, PIECE // len(columns.ids))):
                if len(some):
                    self._add(block, some, objective, columns)
            self.seen += 1
            if not self.seen % plan.together or self.seen == plan.all_parts:
                self._step(optimizer, bias_only)

    def _add(self, block: "Block", some: Tensor, objective: Objective, columns: Columns) -> None:
        if objective.next_token:
            target = objective.following(block.following[some])
        else:
            target = objective.target(block.last[some], columns)
        for layer, (w, g) in enumerate(zip(self.weights, self.gradients, strict=True)):
            x = with_constant(block.states[layer][some], self.constants[layer], self.low)
            loss, pull = objective.gradient((x @ w.to(x.dtype)).float(), target, columns)
            g += x.T @ pull.to(x.dtype)
            self.sums[0] += loss
        self.sums[1] += len(some)

    def _step(self, optimizer: Optimizer, bias_only: bool) -> None:
        self.group.sum([*self.gradients, self.sums])
        loss, count = self.sums.tolist()
        for g in self.gradients:
            g.div_(max(1.0, count))
            if bias_only:
                g[:-1] = 0
        optimizer.step(self.gradients, 1 - self.step / self.schedule.steps)
        mean = loss / max(1.0, count) / len(self.gradients)
        self.loss.append(mean if isfinite(mean) else None)
        self.step += 1
        for t in (*self.gradients, self.sums):
            t.zero_()

    # -- checkpoints

    def save(self, folder: Path, settings: dict[str, Any], optimizer: Optimizer) -> None:
        """Write all that the run needs to go on after the block that it has done, if that ends a step."""
        if self.seen % self.schedule.together:
            return
        if self.group.rank == 0:
            named = {"weights": self.weights, "start": self.start, "state": optimizer.state, "mean": [self.mean]}
            tensors = {f"{name}.{n}": t.contiguous() for name, many in named.items() for n, t in enumerate(many)}
            position = {"number": self.number, "step": self.step, "seen": self.seen, "loss": self.loss}
            artifacts.write(
                folder, "checkpoint", {"settings": settings, "constants": self.constants, **position}, tensors
            )
        self.group.barrier()

    def load(self, folder: Path, settings: dict[str, Any], make: MakeOptimizer) -> Optimizer:
        """Go on where `save` was called. Raises LenscopeError for a checkpoint of other settings, or a damaged one."""
        try:
            config, tensors = artifacts.read(folder, "checkpoint")
            was = config["settings"]
            # as JSON reads them
            now = json.loads(json.dumps(settings))
            # version 0.1.0 did not write it
            was.setdefault("products", now.get("products"))
            differ = [name for name in now if was.get(name) != now[name]]
            if not differ:
                self.constants, self.loss = config["constants"], config["loss"]
                self.number, self.step, self.seen = config["number"], config["step"], config["seen"]
                layers = range(self.lm.n_layers)
                # copied: how products round may depend on where memory begins, which is anywhere in a file
                move = partial(torch.Tensor.to, device=self.lm.device, copy=True)
                self.weights = [move(tensors[f"weights.{n}"]) for n in layers]
                self.start = [move(tensors[f"start.{n}"]) for n in layers]
                self.mean = move(tensors["mean.0"])
                # its own units are in its state
                optimizer = make(self.weights, [0.0] * len(self.weights), ())
                for n, t in enumerate(optimizer.state):
                    t.copy_(tensors[f"state.{n}"])
                return optimizer
        except (OSError, LookupError, TypeError, AttributeError, ValueError, RuntimeError, SafetensorError) as error:
            told = " ".join(str(error).split())[:200]
            raise LenscopeError(f"{folder}: is no checkpoint that can be read ({told}); remove it") from error
        raise LenscopeError(f"{folder}: is of another run, {_difference(differ[0], was, now)}; remove it to begin anew")


def _difference(name: str, was: dict[str, Any], now: dict[str, Any]) -> str:
    """Where two settings differ, in words: the one number, where they hold several."""
    a, b = was.get(name), now[name]
    if isinstance(a, dict) and isinstance(b, dict):
        inner = next(key for key in (*b, *a) if a.get(key) != b.get(key))
        name, a, b = f"{name} {inner}", a.get(inner), b.get(inner)
    return f"with {name} {a!r} where this one has {b!r}"


class Block:
    """States of some rows: `states` (n_layers, n, D), `last` (n, D), and which of the n tokens are `counted` (n,).

    `following` (n,) are the tokens that come next, -1 at the end of a row.

    The states below the last are kept in bfloat16 where a float32 model is read with 16-bit products (`low`).
    """

    def __init__(self, lm: LM, rows: int, length: int, low: torch.dtype | None) -> None:
        self.lm, self.length, self.low = lm, length, low
        n, size = rows * length, lm.hidden_size
        self.slot: dict[int, int] = {}
        self.states = torch.empty(lm.n_layers, n, size, dtype=low or lm.dtype, device=lm.device)
        self.last = torch.empty(n, size, dtype=lm.dtype, device=lm.device)
        self.counted = torch.zeros(n, dtype=torch.bool, device=lm.device)
        self.following = torch.full((n,), -1, device=lm.device)

    def read(self, batch: TokenBatch) -> None:
        """Run the model on the rows of a batch and keep their states."""
        lm = self.lm
        rows = batch.ids.tolist()
        if not rows and not is_sharded(lm):
            return
        # all processes that hold parts of a model have to run it equally often
        prompts = [lm.prompt(row) for row in rows or [lm.anatomy.ids[0].tolist()]]
        at = len(self.slot) * self.length
        here = slice(at, at + batch.ids.numel())
        self.slot.update({row: len(self.slot) + n for n, row in enumerate(batch.row.tolist())})
        self.counted[here] = batch.counted.flatten().to(lm.device)
        self.following[here].view(batch.ids.shape)[:, :-1] = batch.ids[:, 1:].to(lm.device)

        def keep(layer: int, h: Tensor) -> None:
            if rows:
                (self.last[here] if layer == lm.n_layers else self.states[layer, here])[:] = h.flatten(0, 1)

        running = Running(prompts, range(len(prompts)), len(prompts), pad(prompts, "right", lm.anatomy.ids.device))
        with reading(lm, self.low):
            lm.capture(running, range(lm.n_layers + 1), keep)

    def forget_uncounted(self) -> None:
        """Keep what is known of counted tokens alone; of which rows they are is forgotten."""
        self.states, self.last = self.states[:, self.counted], self.last[self.counted]
        self.following, self.counted = self.following[self.counted], self.counted[self.counted]
        self.slot = {}

    @staticmethod
    def joined(blocks: "Sequence[Block]") -> "Block":
        """Several blocks of which the rows were forgotten as one."""
        made = Block(blocks[0].lm, 0, blocks[0].length, blocks[0].low)
        made.states = torch.cat([b.states for b in blocks], 1)
        made.last, made.counted, made.following = (
            torch.cat([getattr(b, name) for b in blocks]) for name in ("last", "counted", "following")
        )
        return made

    def find(self, positions: Tensor) -> Tensor:
        """Which counted tokens have these positions (n,) in the whole corpus; those of other processes are left out."""
        slots = torch.tensor([self.slot.get(row, -1) for row in (positions // self.length).tolist()], dtype=torch.long)
        found = (slots * self.length + positions % self.length)[slots >= 0].to(self.counted.device)
        return found[self.counted[found]]


def _unit(sizes: Tensor) -> Tensor:
    """Sizes as multiples of their root mean square; what is next to nothing counts as a ten-thousandth of it."""
    return (sizes / sizes.square().mean().sqrt().clamp_min(1e-30)).clamp_min(1e-4)


def some_rows(batch: TokenBatch, which: Tensor) -> TokenBatch:
    """Of a batch the rows that a mask (B,) names, as far as reading needs them."""
    row, ids, document, counted = (t[which] for t in (batch.row, batch.ids, batch.document, batch.counted))
    return replace(batch, row=row, ids=ids, document=document, counted=counted)
