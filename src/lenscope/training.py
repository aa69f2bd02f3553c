"""The run of a fit: states of a stream of text in blocks, the closed form, then steps, with checkpoints between blocks.

Knows: what is read when, which tokens make a step, what a checkpoint holds, how processes share the work.
Does not know: the loss (objective.py), optimizers, recipes' names, what is kept in the end (tuning.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, gcd
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lenscope import artifacts
from lenscope.corpus import Corpus, TokenBatch
from lenscope.distributed import Group
from lenscope.edits import Running
from lenscope.errors import LenscopeError
from lenscope.model import LM
from lenscope.moments import Moments, with_constant
from lenscope.objective import Columns, Objective, reading
from lenscope.optimizers import MakeOptimizer, Optimizer
from lenscope.prompts import pad

# rows that all processes together read at once, and a number that those of a block are a multiple of
TOGETHER, MULTIPLE = 8, 24
# numbers of the model's distributions that are held at once, over the tokens of a step
PIECE = 1 << 26
# tokens of which the mean distribution is taken
MEAN = 1024


@dataclass(frozen=True)
class Schedule:
    """What a run reads and steps on: `rows` of `length` tokens in blocks of `block` rows.

    The first `warm` blocks make the closed form; steps begin with the last of them. `pieces` is how many steps a
    block makes, or, where it is below 1, 1 / the number of blocks that make a step.
    """

    rows: int
    length: int
    block: int
    warm: int
    pieces: float

    @staticmethod
    def of(lm: LM, tokens: int, length: int, room: int, per_step: int, ridge: bool, world: int) -> "Schedule":
        """For `tokens` tokens, with `room` bytes for the states of a block."""
        rows = ceil(tokens / length)
        each = length * (lm.n_layers * 2 + 4) * lm.hidden_size
        unit = MULTIPLE * world // gcd(MULTIPLE, world)
        block = min(max(1, room // each // unit), ceil(rows / unit)) * unit
        blocks = ceil(rows / block)
        warm = min(max(1, ceil(8 * lm.hidden_size / (block * length))), max(1, blocks // 2)) if ridge else 1
        size = block * length
        pieces = float(max(1, round(size / per_step))) if per_step <= size else 1 / round(per_step / size)
        return Schedule(rows, length, block, warm, pieces)

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return ceil(self.rows / self.block)

    def size(self, number: int) -> int:
        """The rows of a block."""
        return min(self.block, self.rows - number * self.block)

    def parts(self, number: int) -> int:
        """The steps of a block, or the parts of one; a last, shorter block makes fewer."""
        if number < self.warm - 1:
            return 0
        return max(1, round(self.pieces * self.size(number) / self.block))

    @property
    def together(self) -> int:
        """How many blocks' gradients make a step."""
        return max(1, round(1 / self.pieces))

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return max(1, sum(self.parts(n) for n in range(self.blocks)) // self.together)


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
        self.start: list[Tensor] = []
        self.number = self.step = 0
        self.seen = 0
        self.loss: list[float] = []
        self.mean = torch.empty(0)
        self.moments: list[Moments] = []
        self.digest: str | None = None

    # -- reading

    def blocks(self) -> Iterator["Block"]:
        """The blocks from where the run stands, each with this process's rows; a block is freed before the next."""
        world, plan = self.group.world, self.schedule
        rows = max(1, TOGETHER // world)
        if plan.block % (rows * world):
            raise LenscopeError(
                f"{world} processes: this run has blocks of {plan.block} rows, which they cannot share; start as many "
                "processes as divide it"
            )
        stream = self.corpus.batches(
            plan.rows * plan.length, rows, start=self.number * plan.block, rank=self.group.rank, world=world
        )
        block, number = None, self.number
        for batch in stream:
            if block is None:
                first, size = number * plan.block, plan.size(number)
                mine = sum(row % world == self.group.rank for row in range(first, first + size))
                block = Block(self.lm, mine, plan.length, self.low)
            block.read(batch)
            self.digest = batch.digest
            if self.progress is not None and self.group.rank == 0:
                self.progress(batch.next_row * plan.length, plan.rows * plan.length)
            if batch.next_row % plan.block == 0 or batch.next_row == plan.rows:
                yield block
                block, number = None, number + 1

    # -- the closed form

    def find_constants(self, block: "Block") -> None:
        """Each layer's constant: the root mean square of its states' numbers, over a block."""
        layers = range(self.lm.n_layers)
        sizes = torch.zeros(len(layers) + 1, device=self.lm.device)
        for layer in layers:
            sizes[layer] = block.states[layer][block.counted].float().square().mean(-1).sum()
        sizes[-1] = block.counted.sum()
        self.group.sum([sizes])
        if sizes[-1] < 1:
            raise LenscopeError(f"{self.corpus.name}: no position counts; give longer rows or a smaller skip")
        self.constants = (sizes[:-1] / sizes[-1]).sqrt().clamp_min(1e-6).tolist()

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
        for layer, moments in enumerate(self.moments):
            self.group.sum(moments.tensors())
            x = with_constant(select.states[layer][select.counted], self.constants[layer])
            found = moments.ridges()
            errors = torch.stack([(y - x @ t).square().sum() for t in found])
            self.group.sum([errors])
            self.start.append(found[int(errors.argmin())])
        self.moments = []
        self.weights = [t.clone() for t in self.start]

    def identity(self) -> None:
        """Translators that change nothing."""
        size = self.lm.hidden_size
        self.start = [torch.eye(size + 1, size, device=self.lm.device) for _ in self.constants]
        self.weights = [t.clone() for t in self.start]

    def find_mean(self, block: "Block") -> None:
        """The model's mean distribution over some of a block's tokens, (V,)."""
        lm = self.lm
        some = block.counted.nonzero()[:, 0][: ceil(MEAN / self.group.world)]
        total = torch.zeros(lm.vocab_size, device=lm.device)
        for part in block.last[some].split(64):
            total += lm.unembed(part).softmax(-1).sum(0)
        self.group.sum([total])
        self.mean = total / total.sum()

    # -- steps

    def take_steps(
        self, block: "Block", objective: Objective, optimizer: Optimizer, gradients: list[Tensor], bias_only: bool
    ) -> None:
        """The steps of a block, over its tokens in an order that seed and block fix."""
        plan = self.schedule
        size = plan.size(self.number) * plan.length
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.number)
        order = torch.randperm(size, generator=generator)
        first = self.number * plan.block * plan.length
        parts = plan.parts(self.number)
        for part in order.tensor_split(parts) if parts else ():
            mine = block.find(part + first)
            total = torch.zeros(2, device=self.lm.device)
            columns = objective.draw(self.step)
            for some in mine.split(max(64, PIECE // len(columns.ids))):
                total += self._add(block, some, objective, columns, gradients)
            self.seen += 1
            if self.seen % plan.together:
                continue
            self.group.sum([*gradients, total])
            count = float(total[1].clamp_min(1))
            for g in gradients if bias_only else ():
                g[:-1] = 0
            optimizer.step([g / count for g in gradients], 1 - self.step / plan.steps)
            for g in gradients:
                g.zero_()
            self.loss.append(float(total[0]) / count / len(gradients))
            self.step += 1

    def _add(
        self, block: "Block", some: Tensor, objective: Objective, columns: Columns, gradients: list[Tensor]
    ) -> Tensor:
        p = objective.target(block.last[some], columns)
        total = torch.zeros((), device=p.device)
        for layer, (w, g) in enumerate(zip(self.weights, gradients, strict=True)):
            x = with_constant(block.states[layer][some], self.constants[layer])
            loss, pull = objective.gradient(x @ w, p, columns)
            g.addmm_(x.T, pull)
            total += loss
        return torch.stack([total, torch.tensor(float(len(some)), device=p.device)])

    # -- checkpoints

    def save(self, folder: Path, settings: dict[str, Any], optimizer: Optimizer) -> None:
        """Write all that the run needs to go on after the block that it has done; the first process does."""
        if self.group.rank == 0:
            named = {"weights": self.weights, "start": self.start, "state": optimizer.state, "mean": [self.mean]}
            tensors = {f"{name}.{n}": t.contiguous() for name, many in named.items() for n, t in enumerate(many)}
            position = {"number": self.number, "step": self.step, "seen": self.seen, "loss": self.loss}
            config = {"settings": settings, "constants": self.constants, "digest": self.digest, **position}
            artifacts.write(folder, "checkpoint", config, tensors)
        self.group.barrier()

    def load(self, folder: Path, settings: dict[str, Any], make: MakeOptimizer) -> Optimizer:
        """Go on where `save` was called. Raises LenscopeError for a checkpoint of other settings, or a damaged one."""
        try:
            config, tensors = artifacts.read(folder, "checkpoint")
            differ = [name for name, value in settings.items() if config["settings"].get(name) != value]
            if differ:
                was, now = config["settings"].get(differ[0]), settings[differ[0]]
                raise LenscopeError(
                    f"{folder}: is of a run with {differ[0]} {was!r}, this one has {now!r}; remove it to begin anew"
                )
            self.constants, self.digest, self.loss = config["constants"], config["digest"], config["loss"]
            self.number, self.step, self.seen = config["number"], config["step"], config["seen"]
            layers = range(self.lm.n_layers)
            self.weights = [tensors[f"weights.{n}"].to(self.lm.device) for n in layers]
            self.start = [tensors[f"start.{n}"].to(self.lm.device) for n in layers]
            self.mean = tensors["mean.0"].to(self.lm.device)
            optimizer = make(self.weights)
            for n, t in enumerate(optimizer.state):
                t.copy_(tensors[f"state.{n}"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, LenscopeError):
                raise
            raise LenscopeError(f"{folder}: no checkpoint that can be read ({error}); remove it") from error
        return optimizer


class Block:
    """States of some rows: `states` (n_layers, n, D), `last` (n, D), and which of the n tokens are `counted` (n,).

    The states below the last are kept in bfloat16 where a float32 model is read with 16-bit products (`low`).
    """

    def __init__(self, lm: LM, rows: int, length: int, low: torch.dtype | None) -> None:
        self.lm, self.length, self.low = lm, length, low
        n, size = rows * length, lm.hidden_size
        self.slot: dict[int, int] = {}
        self.states = torch.empty(lm.n_layers, n, size, dtype=low or lm.dtype, device=lm.device)
        self.last = torch.empty(n, size, dtype=lm.dtype, device=lm.device)
        self.counted = torch.zeros(n, dtype=torch.bool, device=lm.device)
        self.ids = torch.zeros(n, dtype=torch.long, device=lm.device)

    def read(self, batch: TokenBatch) -> None:
        """Run the model on the rows of a batch and keep their states."""
        lm = self.lm
        if not len(batch.row):
            return
        at = len(self.slot) * self.length
        here = slice(at, at + batch.ids.numel())
        self.slot.update({row: len(self.slot) + n for n, row in enumerate(batch.row.tolist())})
        self.counted[here], self.ids[here] = batch.counted.flatten(), batch.ids.flatten()
        prompts = [lm.prompt(row) for row in batch.ids.tolist()]

        def keep(layer: int, h: Tensor) -> None:
            (self.last[here] if layer == lm.n_layers else self.states[layer, here])[:] = h.flatten(0, 1)

        running = Running(prompts, range(len(prompts)), len(prompts), pad(prompts, "right", lm.anatomy.ids.device))
        with reading(lm, self.low):
            lm.capture(running, range(lm.n_layers + 1), keep)

    def find(self, positions: Tensor) -> Tensor:
        """Which counted tokens have these positions (n,) in the whole corpus; those of other processes are left out."""
        slots = torch.tensor([self.slot.get(row, -1) for row in (positions // self.length).tolist()], dtype=torch.long)
        found = (slots * self.length + positions % self.length)[slots >= 0].to(self.counted.device)
        return found[self.counted[found]]
