"""The run of a fit: states of a stream of text in blocks, the closed form, then steps.

Knows: what is read when, which tokens make a step, which candidate each layer keeps.
Does not know: what a checkpoint holds (fit_checkpoints.py), the loss (sampled_kl.py), optimizers, recipes' names, what
a fitted lens says of itself (tuned_lens.py).
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lenscope.distributed.layer_owners import LayerOwners
from lenscope.errors import LenscopeError
from lenscope.fitting.closed_form import SecondMoments, with_constant
from lenscope.fitting.fit_checkpoints import has_checkpoint, load_checkpoint, save_checkpoint
from lenscope.fitting.held_out import COMPARED_COLUMNS, HeldOut, layer_rows
from lenscope.fitting.optimizers import Optimizer, Units
from lenscope.fitting.recipes import Recipe, make_optimizer
from lenscope.fitting.schedule import ROWS_TOGETHER, Schedule
from lenscope.fitting.state_block import StateBlock, masked_rows, relative_sizes
from lenscope.measures.sampled_kl import Columns, SampledKL
from lenscope.models.language_model import LM
from lenscope.models.progress import Progress
from lenscope.text.corpus import Corpus, TokenBatch

# numbers of the model's distributions that are held at once, over the tokens of a step
PIECE_NUMBERS = 1 << 26
# tokens of which the mean distribution is taken
MEAN_TOKENS = 512


class TunedLensRun:
    """Translators of a process's layers, as weights (D + 1, D) on x = [h, c], and how they come about.

    `weights`, `start`, `units`, `moments`, `gradients` and the optimizer's state are of these layers alone;
    `constants`, `loss` and `mean` are of all, and equal in all processes.
    """

    def __init__(
        self, lm: LM, corpus: Corpus, recipe: Recipe, schedule: Schedule, owners: LayerOwners, *, seed: int,
        low: torch.dtype | None, fast: torch.dtype | None, progress: Progress | None,
        moments_on: torch.device | None = None,
    ) -> None:  # fmt: skip
        """A run that has read nothing yet.

        Args:
            lm: the model whose states are translated.
            corpus: the text that is fitted.
            recipe: where translators begin and what changes them.
            schedule: what is read, and on what steps are made.
            owners: which process has which layers.
            seed: of the order of tokens and of the columns of the vocabulary.
            low: the dtype in which the model's products are made, None: its own.
            fast: the dtype of the optimizer's products, None: float32.
            progress: told how many of all tokens are read, in the first process.
            moments_on: where second moments are kept, and what they give, which no step touches; None: with the model.
        """
        self.lm, self.corpus, self.recipe, self.schedule, self.owners = lm, corpus, recipe, schedule, owners
        self.aside = moments_on or lm.device
        self.seed, self.low, self.fast, self.progress = seed, low, fast, progress
        self.weights: list[Tensor] = []
        self.constants: list[float] = []
        self.units: list[Units] = []
        self.start: list[Tensor] = []
        self.number = self.step = self.seen = 0
        self.loss: list[float | None] = []
        self.mean = torch.empty(0)
        self.moments: list[SecondMoments] = []
        # of the step that is being made: Σ of the loss' gradients and of the loss, by layer, and the count of tokens
        self.gradients: list[Tensor] = []
        self.losses = torch.zeros(len(owners.own), dtype=torch.float64, device=lm.device)
        self.count = 0
        # seconds of each kind of work
        self.spent: dict[str, float] = {}

    # -- the whole

    def go(self, choosing: Sequence[TokenBatch], settings: dict[str, Any], folder: Path | None) -> HeldOut:
        """Read all blocks and make all steps, from the checkpoint in the `folder` where there is one.

        After each block a checkpoint is left there. Returns the held-out text that chooses, which `choosing` are the
        rows of. Raises LenscopeError for a checkpoint of other settings, or a damaged one.
        """
        with self.timed("held-out text"):
            select = HeldOut.read(self.lm, choosing, self.owners, self.low)
        plan, ridge = self.schedule, self.recipe.start == "ridge"
        optimizer: Optimizer | None = None
        objective: SampledKL | None = None
        if folder is not None and has_checkpoint(self, folder):
            optimizer = self._joined(load_checkpoint(self, folder, settings))
            objective = self._objective()
        for block in self.blocks():
            if not self.constants:
                self.find_sizes(block)
            if ridge and self.number < plan.warm:
                with self.timed("closed form"):
                    self.gather(block)
            if self.number == plan.warm - 1:
                with self.timed("closed form"):
                    self.close(select.block) if ridge else self.identity()
                    self.find_mean(block)
                    objective = self._objective()
                    optimizer = self._joined(self._optimizer(select, objective))
            if optimizer is not None and objective is not None:
                with self.timed("steps"):
                    self.take_steps(block, objective, optimizer)
            self.number += 1
            if folder is not None and objective is not None and self.number < plan.blocks:
                save_checkpoint(self, folder, settings, optimizer)
            del block
        self.gradients = []
        return select

    def choose(
        self, select: HeldOut, measuring: Sequence[TokenBatch]
    ) -> tuple[list[Tensor], list[dict[str, Any]], HeldOut]:
        """The weights that own layers keep, a row of the report for every layer, and the text that measured them.

        Each layer keeps the candidate with the lowest KL on the text `select`, over sampled columns; where the recipe
        does not choose, the last candidate. What is kept is measured on other text, of the rows `measuring`.
        """
        lm = self.lm
        with self.timed("measuring"):
            measure = HeldOut.read(lm, measuring, self.owners, None)
        plain = torch.eye(lm.hidden_size + 1, lm.hidden_size, device=lm.device)
        own = self.owners.own
        candidates = {"identity": [plain] * len(own), "start": self.start}
        if self.recipe.optimizer is not None:
            candidates["steps"] = self.weights
        names = list(candidates)
        best = [names[-1]] * lm.n_layers
        if self.recipe.best:
            with self.timed("choosing"):
                compare = SampledKL(lm, self.mean, COMPARED_COLUMNS, self.seed, self.low)
                kl = select.sampled_kl(list(candidates.values()), self.constants, compare)
                best = [names[int(n)] for n in kl.nan_to_num(torch.inf, torch.inf).argmin(0)]
        weights = [candidates[best[layer]][number] for number, layer in enumerate(own)]
        del candidates
        self.start, self.weights = [], []
        with self.timed("measuring"):
            rows = layer_rows(measure, weights, [plain] * len(own), best, self.constants, self.seed)
        return weights, rows, measure

    def _objective(self) -> SampledKL:
        recipe = self.recipe
        return SampledKL(self.lm, self.mean, recipe.columns, self.seed, self.low, next_token=recipe.loss != "kl")

    def _optimizer(self, select: HeldOut, objective: SampledKL) -> Optimizer | None:
        if self.recipe.optimizer is None:
            return None
        (kl,) = select.sampled_kl([self.weights], self.constants, objective)
        own = kl[self.owners.own.start : self.owners.own.stop]
        return make_optimizer(self.recipe, self.fast, self.weights, own.tolist(), self.units)

    def _joined(self, optimizer: Any) -> Any:
        """An optimizer, given what it asks for of the layers of other processes."""
        if hasattr(optimizer, "everywhere"):
            optimizer.everywhere = lambda own: self.owners.everywhere(own.to(self.lm.device))
        return optimizer

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
        """The blocks from where the run stands, read by all processes; a block is freed before the next."""
        plan, rank, world = self.schedule, self.owners.text.rank, self.owners.text.world
        number, at, block = self.number, self.number * plan.block, None
        rows = max(1, ROWS_TOGETHER // world)
        for batch in self.corpus.batches(plan.rows * plan.length, rows, start=at, rank=rank, world=world):
            # many processes read more rows at once than a block has
            while at < batch.next_row:
                first, end = number * plan.block, number * plan.block + plan.size(number)
                stop = min(end, batch.next_row)
                if block is None:
                    block = StateBlock(self.lm, self.owners, end - first, plan.length, self.low)
                with self.timed("reading"):
                    block.read(masked_rows(batch, (batch.row >= at) & (batch.row < stop)), range(at, stop))
                at = stop
                if self.progress is not None and self.owners.group.rank == 0:
                    self.progress(at * plan.length, plan.rows * plan.length)
                if at == end:
                    yield block
                    block, number = None, number + 1

    # -- the closed form

    def find_sizes(self, block: "StateBlock") -> None:
        """Each layer's constant, the root mean square of its states' numbers, and its units, over a block."""
        own, tokens = self.owners.own, block.counted
        squares = torch.empty(len(own), self.lm.hidden_size, device=self.lm.device)
        for number in range(len(own)):
            squares[number] = block.states[number][tokens].float().square().sum(0)
        if not tokens.any():
            raise LenscopeError(f"{self.corpus.name}: no position counts; give longer rows or a smaller skip")
        last = block.last[tokens].float().square().sum(0)
        means = torch.cat([self.owners.everywhere(squares), last[None]]) / tokens.sum().float()
        self.constants = means[:-1].mean(-1).sqrt().clamp_min(1e-6).tolist()
        for layer, constant in enumerate(self.constants):
            if not isfinite(constant):
                raise LenscopeError(
                    f"layer {layer}: {self.lm.name} has states that are NaN or infinite there in {self.lm.dtype}; load "
                    "it in float32 or bfloat16"
                )
        roots = means.sqrt()
        outputs = relative_sizes(roots[-1])
        inputs = (torch.cat([roots[n], roots.new_tensor([self.constants[n]])]) for n in own)
        self.units = [(relative_sizes(r), outputs) for r in inputs]

    def gather(self, block: "StateBlock") -> None:
        """Take a block into the moments."""
        own = self.owners.own
        if not self.moments:
            self.moments = [SecondMoments(self.lm.hidden_size, self.aside) for _ in own]
        parts = block.counted.nonzero()[:, 0].split(8192)
        for number, moments in enumerate(self.moments):
            states, constant = block.states[number], self.constants[own[number]]
            moments.add((with_constant(states[tokens], constant), block.last[tokens].float()) for tokens in parts)

    def close(self, select: "StateBlock") -> None:
        """Ridge regressions of each layer onto the last; of the penalties the one that does best on `select`."""
        y = select.last[select.counted].float()
        for number, layer in enumerate(self.owners.own):
            # the moments go as the solutions come
            solutions = self.moments.pop(0).ridges(self.lm.device)
            x = with_constant(select.states[number][select.counted], self.constants[layer])
            errors = torch.stack([(y - x @ t).square().sum() for t in solutions])
            self.start.append(solutions[int(errors.argmin())].to(self.aside))
        if self.recipe.optimizer is not None:
            self.weights = [t.to(self.lm.device, copy=True) for t in self.start]

    def identity(self) -> None:
        """Translators that change nothing."""
        size = self.lm.hidden_size
        plain = torch.eye(size + 1, size, device=self.lm.device)
        self.start = [plain] * len(self.owners.own)
        self.weights = [] if self.recipe.optimizer is None else [t.clone() for t in self.start]

    def find_mean(self, block: "StateBlock") -> None:
        """The model's mean distribution over some of a block's tokens, (V,)."""
        lm = self.lm
        total = torch.zeros(lm.vocab_size, dtype=torch.float64)
        for part in block.last[block.find(self._shuffled()[:MEAN_TOKENS])].split(64):
            if len(part):
                total += lm.unembed(part).softmax(-1).sum(0).double().cpu()
        # all have the same tokens: the first process's is all processes', to the last bit
        mean = total.to(lm.device, torch.float32) * (self.owners.group.rank == 0)
        self.owners.group.sum([mean])
        self.mean = mean / mean.sum().clamp_min(1e-30)

    def _shuffled(self) -> Tensor:
        """The positions of the current block, of all processes, in an order that seed and block fix."""
        plan = self.schedule
        first, size = self.number * plan.block * plan.length, plan.size(self.number) * plan.length
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self.number)
        return torch.randperm(size, generator=draw) + first

    # -- steps

    def take_steps(self, block: "StateBlock", objective: SampledKL, optimizer: Optimizer) -> None:
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
            for tokens in mine.split(max(64, PIECE_NUMBERS // len(columns.ids))):
                if len(tokens):
                    self._add(block, tokens, objective, columns)
            self.seen += 1
            if not self.seen % plan.together or self.seen == plan.all_parts:
                self._step(optimizer)

    def _add(self, block: "StateBlock", tokens: Tensor, objective: SampledKL, columns: Columns) -> None:
        if objective.next_token:
            target = objective.following(block.following[tokens])
        else:
            target = objective.target(block.last[tokens], columns)
        for number, layer in enumerate(self.owners.own):
            w, g = self.weights[number], self.gradients[number]
            x = with_constant(block.states[number][tokens], self.constants[layer], self.low)
            loss, pull = objective.gradient((x @ w.to(x.dtype)).float(), target, columns)
            g += x.T @ pull.to(x.dtype)
            self.losses[number] += loss
        self.count += len(tokens)

    def _step(self, optimizer: Optimizer) -> None:
        # a layer's owner has all tokens of the step: nothing of its gradient is elsewhere
        count = max(1, self.count)
        for g in self.gradients:
            g.div_(count)
            if self.recipe.bias_only:
                g[:-1] = 0
        optimizer.step(self.gradients, 1 - self.step / self.schedule.steps)
        mean = self.owners.everywhere(self.losses).mean().item() / count
        self.loss.append(mean if isfinite(mean) else None)
        self.step += 1
        self.count = 0
        for t in (*self.gradients, self.losses):
            t.zero_()
