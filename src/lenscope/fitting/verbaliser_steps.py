"""The steps of a verbaliser's training: the weights in units of the model, AdamW, batches, checkpoints.

Knows: how a map's weights start and are stepped on, which examples make a batch, when the least held-out loss was, what
a killed run goes on from. Does not know: where vectors come from, how labels are read (patched_labels.py), what is
measured at the end (verbaliser_report.py).

Weights are trained in units in which a step of one size suits every model: what is written is measured in the norm of
the target prompt's own states. Published: AdamW with rate 0.01 and decay 0.01, gradients clipped at 0.5, a cosine with
10 steps of warm-up (SelfIE adapters, arXiv 2602.10352); a rate of 0.01 for the plain weights is one of about 0.1 in
these units for SmolLM2-135M.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from math import cos, pi
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.files.kinds import CONFIG
from lenscope.files.weights_folder import opened_folder, write_folder
from lenscope.fitting.patched_labels import Label, PatchedLabels
from lenscope.mappings.vector_map import VectorMap, mapped_vectors
from lenscope.models.progress import Progress

SHAPES = ("affine", "scale_only", "low_rank", "low_rank_only", "full")
CHECKPOINT_FORMAT, CHECKPOINT_STEM = 1, "verbaliserrun"
# batches whose examples are sorted by length together
POOLED = 8
# steps whose pace says how many more fit into the minutes that there are
PACE = 5
# labels whose likelihood is read at once without gradients
AT_ONCE = 32


@final
@dataclass(frozen=True)
class VerbaliserRecipe:
    """How a verbaliser's map is trained.

    Attributes:
        batch: examples of a step.
        learning_rate: the highest rate of AdamW, of weights in units of the prompt's own states.
        weight_decay: its decay.
        clip: the largest norm of a step's gradient.
        warmup: the steps in which the rate rises; it then falls along a cosine.
        scale: how long a vector is when training begins, in norms of the prompt's own states.
        checks: how often held-out labels are looked at.
        patience: after how many looks without a new least loss training ends.
    """

    batch: int = 24
    learning_rate: float = 0.1
    weight_decay: float = 0.01
    clip: float = 0.5
    warmup: int = 10
    scale: float = 2.0
    checks: int = 10
    patience: int = 4

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("warmup", 0), ("checks", 1), ("patience", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise LenscopeError(f"{name} {value!r}: give a whole number from {least} on")
        for name in ("learning_rate", "clip", "scale", "weight_decay"):
            value = getattr(self, name)
            if not 0 <= value < float("inf") or (not value and name != "weight_decay"):
                raise LenscopeError(f"{name} {value!r}: give a number above 0")


@dataclass(frozen=True, eq=False, repr=False)
class LabelledVectors(Brief):
    """Vectors (N, L, D) of N rows at L layers, the tokens of each row's label, and what each label is."""

    h: Tensor
    tokens: Sequence[Label]
    labels: Sequence[str]

    def rows(self, numbers: Sequence[int]) -> "LabelledVectors":
        """Some of the rows."""
        picked = [self.tokens[n] for n in numbers]
        return LabelledVectors(self.h[list(numbers)], picked, [self.labels[n] for n in numbers])


class MapWeights:
    """The weights of a map while it is trained: in units in which they start near 0 or 1.

    Args:
        shape: the shape of the map, as `VectorMap` names it.
        sizes: (D, D*).
        rank: the rank of a low-rank part.
        normalize: whether n(h) is h / ‖h‖.
        layers: how many layers have weights of their own; None: all share them.
        norm: the norm of the target prompt's own states.
        length: the mean norm of the vectors, which is that of n(h) where it is not normalized.
        scale: how long a vector is at the start, in norms of these states.
        like: a tensor of the dtype and device of the weights.
        seed: fixes how V starts.
    """

    def __init__(
        self, shape: str, sizes: tuple[int, int], *, rank: int, normalize: bool, layers: int | None, norm: float,
        length: float, scale: float, like: Tensor, seed: int,
    ) -> None:  # fmt: skip
        if shape not in SHAPES:
            raise LenscopeError(f"shape {shape!r}: give one of {', '.join(SHAPES)}")
        d, wide = sizes
        if d != wide and shape not in ("low_rank_only", "full"):
            raise LenscopeError(
                f"shape {shape!r}: keeps a vector's width, and vectors have {d} numbers where states of the model "
                f"that says words have {wide}; give shape='low_rank_only' or 'full'"
            )
        if type(rank) is not int or not 1 <= rank <= min(sizes):
            raise LenscopeError(f"rank {rank!r}: give a whole number from 1 to {min(sizes)}")
        self.normalize, self.several = normalize, layers is not None
        entry, unit = norm / wide**0.5, 1.0 if normalize else length
        own = {"scale": (), "U": (wide, rank), "V": (rank, d), "W": (wide, d), "bias": (wide,)}
        names = {
            "scale_only": ["scale"],
            "affine": ["scale", "bias"],
            "low_rank": ["scale", "U", "V", "bias"],
            "low_rank_only": ["U", "V", "bias"],
            "full": ["W", "bias"],
        }[shape]
        self.units = {"scale": norm * scale / unit, "U": entry, "V": 1 / unit, "W": entry / unit, "bias": entry}
        draw = torch.Generator().manual_seed(seed)
        front = () if layers is None else (layers,)
        self.start = {}
        for name in names:
            t = torch.zeros(own[name], dtype=torch.float64)
            if name == "scale":
                t += 1
            if name == "V":
                t = torch.randn(own[name], generator=draw, dtype=torch.float64)
            if name == "W" and d == wide:
                t = torch.eye(d, dtype=torch.float64) * scale * wide**0.5
            self.start[name] = t.expand((*front, *t.shape)).to(like).contiguous()

    def written(self, weights: dict[str, Tensor], h: Tensor, which: Sequence[int]) -> Tensor:
        """What is written for vectors h (B, D), each of a layer by its number: (B, D*); differentiable in weights."""
        own = {name: t * self.units[name] for name, t in weights.items()}
        if not self.several:
            return mapped_vectors(h, own, self.normalize)
        places = [[n for n, layer in enumerate(which) if layer == one] for one in sorted(set(which))]
        parts = [
            mapped_vectors(h[rows], {name: t[which[rows[0]]] for name, t in own.items()}, self.normalize)
            for rows in places
        ]
        back = torch.tensor([n for rows in places for n in rows]).argsort()
        return torch.cat(parts)[back.to(h.device)]

    def map(self, weights: dict[str, Tensor], layers: tuple[int, ...] | None) -> VectorMap:
        """The map that the weights make."""
        tensors = {name: t * self.units[name] for name, t in weights.items()}
        return VectorMap(**tensors, normalize=self.normalize, layers=layers if self.several else None)


@dataclass
class Reached:
    """Where a run is: what was done, and the weights that it has and had when the held-out loss was least."""

    weights: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    best: dict[str, Tensor]
    steps: int
    step: int = 0
    least: float = float("inf")
    waited: int = 0
    seconds: float = 0.0
    held_out: list[list[float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def numbers(self) -> dict[str, Any]:
        """What of it is no tensor."""
        own = asdict(Reached({}, {}, {}, {}, self.steps))
        return {name: getattr(self, name) for name in own if name not in GROUPS}


GROUPS = ("weights", "first", "second", "best")


class VerbaliserRun:
    """A training run: batches of vectors and labels, AdamW on a map's weights, checkpoints.

    Args:
        read: how likely labels are behind the target prompt.
        weights: how the map starts.
        train: what is trained on.
        select: what decides which weights are kept.
        recipe: how it is trained.
        steps: how many steps there are at most.
        minutes: how long the steps may take: after a few of them their number is set; None: as long as they take.
        seed: fixes the order of examples.
    """

    def __init__(
        self, read: PatchedLabels, weights: MapWeights, train: LabelledVectors, select: LabelledVectors,
        recipe: VerbaliserRecipe, *, steps: int, minutes: float | None, seed: int,
    ) -> None:  # fmt: skip
        self.read, self.weights, self.train, self.select = read, weights, train, select
        self.recipe, self.minutes, self.seed = recipe, minutes, seed
        zeros = {name: torch.zeros_like(t) for name, t in weights.start.items()}
        self.at = Reached(dict(weights.start), zeros, dict(zeros), dict(weights.start), steps)
        self._epoch: tuple[int, list[list[tuple[int, int]]]] = (-1, [])

    def go(
        self, folder: Path | None, settings: dict[str, Any], progress: Progress | None,
        heard: Callable[[int, float], None] | None,
    ) -> None:  # fmt: skip
        """Train to the end, from the checkpoint in a folder where there is one, which is left where it is interrupted.

        `heard` is called with a step and the loss on held-out labels, in nats per token.
        """
        if folder is not None and (folder / CONFIG).exists():
            self._load(folder, settings)
        try:
            while True:
                self._look(folder, settings, heard)
                if self.at.step >= self.at.steps or self.at.waited >= self.recipe.patience:
                    break
                self._step()
                if progress is not None:
                    progress(self.at.step, self.at.steps)
        except KeyboardInterrupt:
            if folder is not None:
                self._save(folder, settings)
            raise

    # -- steps

    def _step(self) -> None:
        began, at, recipe = time.perf_counter(), self.at, self.recipe
        rows = self._batch(at.step)
        h = torch.stack([self.train.h[n, layer] for n, layer in rows])
        labels = [self.train.tokens[n] for n, _ in rows]
        tokens = sum(map(len, labels))
        names = list(at.weights)
        with torch.enable_grad():
            asked = {name: at.weights[name].detach().requires_grad_() for name in names}
            written = self.weights.written(asked, h, [layer for _, layer in rows])
            values, slopes = self.read.gradients(written.detach(), labels)
            grads = torch.autograd.grad(written, [asked[n] for n in names], -slopes / tokens)
        norm = torch.stack([g.double().norm() for g in grads]).norm()
        factor = float((recipe.clip / (norm + 1e-6)).clamp_max(1.0))
        decay, t = self._decay(at.step), at.step + 1
        moved: dict[str, dict[str, Tensor]] = {group: {} for group in GROUPS[:3]}
        for name, g in zip(names, grads, strict=True):
            g = g * factor
            first = 0.9 * at.first[name] + 0.1 * g
            second = 0.999 * at.second[name] + 0.001 * g.square()
            pull = (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
            rate = recipe.learning_rate * decay
            moved["weights"][name] = at.weights[name] * (1 - rate * recipe.weight_decay) - rate * pull
            moved["first"][name], moved["second"][name] = first, second
        seconds = at.seconds + time.perf_counter() - began
        steps = at.steps
        if self.minutes is not None and t == PACE:
            steps = max(t, min(steps, int(60 * self.minutes / max(seconds / t, 1e-9))))
        losses = [*at.losses, float(-values.sum()) / tokens]
        # at once, so that an interruption leaves a whole step or none
        self.at = Reached(
            **moved, best=at.best, steps=steps, step=t, least=at.least, waited=at.waited, seconds=seconds,
            held_out=at.held_out, losses=losses,
        )  # fmt: skip

    def _decay(self, step: int) -> float:
        """The part of the rate at a step: a rise, then half a cosine to 0."""
        warmup = min(self.recipe.warmup, self.at.steps // 4)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return (1 + cos(pi * (step - warmup) / max(1, self.at.steps - warmup))) / 2

    def _batch(self, step: int) -> list[tuple[int, int]]:
        """The examples (row, number of the layer) of a step: of like length, and each once in an epoch."""
        count, size = len(self.train.tokens) * self.train.h.shape[1], self.recipe.batch
        each = -(-count // size)
        epoch, number = divmod(step, each)
        if self._epoch[0] != epoch:
            draw = random.Random(f"{self.seed} {epoch}")
            every = [(n, layer) for n in range(len(self.train.tokens)) for layer in range(self.train.h.shape[1])]
            draw.shuffle(every)
            batches: list[list[tuple[int, int]]] = []
            for at in range(0, count, POOLED * size):
                pool = sorted(every[at : at + POOLED * size], key=lambda one: len(self.train.tokens[one[0]]))
                batches += [pool[n : n + size] for n in range(0, len(pool), size)]
            draw.shuffle(batches)
            self._epoch = (epoch, batches)
        return self._epoch[1][number]

    # -- held-out labels

    def _look(self, folder: Path | None, settings: dict[str, Any], heard: Callable[[int, float], None] | None) -> None:
        at = self.at
        every = max(1, -(-at.steps // self.recipe.checks))
        due = at.step % every == 0 or at.step >= at.steps
        if not due or (at.held_out and at.held_out[-1][0] == at.step):
            return
        began = time.perf_counter()
        loss = -float(self.likelihoods(at.weights, self.select).mean())
        better = loss < at.least
        self.at = Reached(
            at.weights, at.first, at.second, at.weights if better else at.best, at.steps, at.step,
            loss if better else at.least, 0 if better else at.waited + 1, at.seconds + time.perf_counter() - began,
            [*at.held_out, [at.step, loss]], at.losses,
        )  # fmt: skip
        if heard is not None:
            heard(at.step, loss)
        if folder is not None:
            self._save(folder, settings)

    def likelihoods(self, weights: dict[str, Tensor], rows: LabelledVectors) -> Tensor:
        """The log-likelihood per label token of rows at each layer, in nats: (N, L)."""
        numbers = list(range(rows.h.shape[1]))
        written = torch.stack([self.weights.written(weights, rows.h[:, n], [n] * len(rows.tokens)) for n in numbers], 1)
        return per_token(self.read, written, rows.tokens)

    # -- checkpoints

    def _save(self, folder: Path, settings: dict[str, Any]) -> None:
        numbers = self.at.numbers
        # JSON has no infinity
        numbers["least"] = None if numbers["least"] == float("inf") else numbers["least"]
        config = {"format": CHECKPOINT_FORMAT, "settings": settings, "reached": numbers}
        tensors = {f"{g}.{n}": t.cpu().clone() for g in GROUPS for n, t in getattr(self.at, g).items()}
        write_folder(folder, CHECKPOINT_STEM, config, tensors)

    def _load(self, folder: Path, settings: dict[str, Any]) -> None:
        with opened_folder(folder, CHECKPOINT_STEM, CHECKPOINT_FORMAT) as (config, tensors):
            was = config["settings"]
            differ = [name for name in settings if was.get(name) != settings[name]]
            if differ:
                raise LenscopeError(
                    f"{folder}: is of another run, with another {differ[0].replace('_', ' ')}; remove it to begin anew"
                )
            numbers = dict(config["reached"])
            numbers["least"] = float("inf") if numbers["least"] is None else numbers["least"]
            start = self.weights.start
            groups: dict[str, Any] = {g: {n: tensors[f"{g}.{n}"].to(t) for n, t in start.items()} for g in GROUPS}
            if any(t.shape != start[n].shape for group in groups.values() for n, t in group.items()):
                raise LenscopeError(f"{folder}: its weights are of other shapes; remove it to begin anew")
            self.at = Reached(**groups, **numbers)


def per_token(read: PatchedLabels, written: Tensor, tokens: Sequence[Label]) -> Tensor:
    """The log-likelihood per token of N labels behind what is written (N, L, D*), in nats: (N, L).

    Labels of like length are read together.
    """
    out = torch.zeros(written.shape[:2], dtype=torch.float64)
    order = sorted(range(len(tokens)), key=lambda n: len(tokens[n]))
    lengths = torch.tensor([len(label) for label in tokens], dtype=torch.float64)
    for layer in range(written.shape[1]):
        for at in range(0, len(order), AT_ONCE):
            rows = order[at : at + AT_ONCE]
            out[rows, layer] = read.log_probs(written[rows, layer], [tokens[n] for n in rows]) / lengths[rows]
    return out
