"""The run of a fit: states of a stream of text in blocks, the closed form, then steps, with checkpoints between blocks.

Knows: what is read when, which tokens make a step, what a checkpoint holds, how processes share the work.
Does not know: the loss (objective.py), optimizers, recipes' names, what is kept in the end (tuning.py).
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from lenscope.distributed.processes import Group
from lenscope.errors import LenscopeError
from lenscope.files import weights_folder as artifacts
from lenscope.fitting.closed_form import SecondMoments, with_constant
from lenscope.fitting.optimizers import MakeOptimizer, Optimizer, Units
from lenscope.fitting.schedule import TOGETHER, Schedule
from lenscope.fitting.state_block import StateBlock, _unit, some_rows
from lenscope.measures.sampled_kl import Columns, SampledKL
from lenscope.models.language_model import LM
from lenscope.text.corpus import Corpus

# numbers of the model's distributions that are held at once, over the tokens of a step
PIECE = 1 << 26
# tokens of which the mean distribution is taken
MEAN = 512


class TunedLensRun:
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
        self.moments: list[SecondMoments] = []
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

    def blocks(self) -> Iterator["StateBlock"]:
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
                    block = StateBlock(self.lm, mine, plan.length, self.low)
                with self.timed("reading"):
                    block.read(some_rows(batch, (batch.row >= at) & (batch.row < stop)))
                at = stop
                if self.progress is not None and rank == 0:
                    self.progress(at * plan.length, plan.rows * plan.length)
                if at == end:
                    yield block
                    block, number = None, number + 1

    # -- the closed form

    def find_sizes(self, block: "StateBlock") -> None:
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

    def gather(self, block: "StateBlock") -> None:
        """Take a block into the moments."""
        if not self.moments:
            self.moments = [SecondMoments(self.lm.hidden_size, self.lm.device) for _ in self.constants]
        for some in block.counted.nonzero()[:, 0].split(8192):
            y = block.last[some].float()
            for layer, moments in enumerate(self.moments):
                moments.add(with_constant(block.states[layer][some], self.constants[layer]), y)

    def close(self, select: "StateBlock") -> None:
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

    def find_mean(self, block: "StateBlock") -> None:
        """The model's mean distribution over some of a block's tokens, (V,)."""
        lm = self.lm
        total = torch.zeros(lm.vocab_size, dtype=torch.float64)
        for part in block.last[block.find(self._shuffled()[:MEAN])].split(64):
            if len(part):
                total += lm.unembed(part).softmax(-1).sum(0).double().cpu()
        mean = total.to(lm.device, torch.float32)
        self.group.sum([mean])
        self.mean = mean / mean.sum().clamp_min(1e-30)

    def held_out_kl(self, block: "StateBlock", candidates: Sequence[Sequence[Tensor]], objective: SampledKL) -> Tensor:
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

    def take_steps(self, block: "StateBlock", objective: SampledKL, optimizer: Optimizer, bias_only: bool) -> None:
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

    def _add(self, block: "StateBlock", some: Tensor, objective: SampledKL, columns: Columns) -> None:
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
            artifacts.write_folder(
                folder, "checkpoint", {"settings": settings, "constants": self.constants, **position}, tensors
            )
        self.group.barrier()

    def load(self, folder: Path, settings: dict[str, Any], make: MakeOptimizer) -> Optimizer:
        """Go on where `save` was called. Raises LenscopeError for a checkpoint of other settings, or a damaged one."""
        try:
            config, tensors = artifacts.read_folder(folder, "checkpoint")
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
