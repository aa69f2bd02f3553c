"""What a fit of a tuned lens costs: bytes of every kind on each GPU, and the work of every kind.

Knows: what tuned_lens_run.py does, counted. Layers are owned: a process has the translators, moments and momentum of
some layers, and the states of all tokens there.
Does not know: how long work takes (costs.py), which placement is best (plan.py).
"""

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

from lenscope.fitting.closed_form import RIDGES
from lenscope.fitting.held_out import COMPARED_COLUMNS, COUNTED, MEASURING, spread
from lenscope.fitting.optimizers import Muon
from lenscope.fitting.recipes import Recipe
from lenscope.fitting.schedule import ROWS_TOGETHER, Schedule
from lenscope.planning.costs import Work
from lenscope.planning.model_shapes import ModelShape
from lenscope.planning.placements import Fleet, exchanged, weight_traffic
from lenscope.planning.reading_costs import activation_bytes, logit_bytes, model_work

# steps of the iteration that makes a step's singular values alike, and products of each
ITERATIONS, PRODUCTS_OF_ONE = 4, 3
# bytes that the passes over a column's logits move in a step, of one token: made, widened, corrected, normalised,
# compared, subtracted, narrowed; counted in sampled_kl.py
BYTES_OF_COLUMN = 64
# bytes that the passes over a weight move in a step of Muon, counted in optimizers.py
BYTES_OF_WEIGHT = 160


@dataclass(frozen=True)
class FitSizes:
    """What is fitted: the schedule and the recipe, and how layers lie among processes."""

    shape: ModelShape
    schedule: Schedule
    recipe: Recipe
    fleet: Fleet

    @property
    def own(self) -> int:
        """The most layers that one process has."""
        return ceil(self.shape.layers / self.fleet.owners)

    @property
    def at_once(self) -> int:
        """The most layers whose translators and states one process holds: a stream's wait on disk for their turn."""
        return 1 if self.fleet.placement == "stream" else self.own

    @property
    def orthogonalises(self) -> bool:
        """Whether steps are Muon's."""
        optimizer: Any = self.recipe.optimizer
        return (optimizer.func if isinstance(optimizer, partial) else optimizer) is Muon

    @property
    def fast(self) -> bool:
        """Whether the machine multiplies numbers of 16 bits faster."""
        return self.fleet.machine.matrix[16] > self.fleet.machine.matrix[32]

    @property
    def low(self) -> bool:
        """Whether a float32 model is read in 16 bits (models/precision.py)."""
        return self.fast and self.shape.dtype.itemsize == 4

    @property
    def state_size(self) -> int:
        """Bytes of a number of a state below the last layer."""
        return 2 if self.low else self.shape.dtype.itemsize

    @property
    def columns(self) -> int:
        """Columns of the vocabulary that a step takes."""
        return min(self.recipe.columns or self.shape.vocab, self.shape.vocab)

    @property
    def tokens(self) -> int:
        """Tokens that are read."""
        return self.schedule.rows * self.schedule.length

    @property
    def stepped(self) -> int:
        """Tokens that steps are made of."""
        plan = self.schedule
        return sum(plan.size(n) for n in range(plan.warm - 1, plan.blocks)) * plan.length


def fit_bytes(sizes: FitSizes) -> dict[str, float]:
    """Bytes on each GPU besides the model's weights, by what they are for.

    "translators" are the weights and what they began as, "gradients", "momentum" and "moments" as the run has them,
    "states" those of a block of text, "held-out" those that choose, "passing" what comes and goes.
    """
    shape, plan, d, own = sizes.shape, sizes.schedule, sizes.shape.width, sizes.at_once
    block = min(plan.block, plan.rows) * plan.length
    wide = shape.dtype.itemsize
    each = d * (own * sizes.state_size + wide)
    stepping = sizes.recipe.optimizer is not None
    published = stepping and not sizes.orthogonalises
    matrices = 4 * own * d * (d + 1)
    together = ceil(ROWS_TOGETHER / sizes.fleet.readers) * plan.length
    at_once = min(together, block)
    reading = activation_bytes(shape, at_once) + (shape.blocks * 2 if sizes.low else 0)
    solving = (48 + 4 * len(RIDGES)) * d * d if sizes.recipe.start == "ridge" else 0
    step = min(sizes.recipe.tokens_per_step, block)
    # the head's rows, the model's distributions, logits of a piece, and what a step of one layer makes
    piece = (2 * sizes.columns * d) + 4 * step * sizes.columns * 3 + 28 * d * d * sizes.orthogonalises
    return {
        "translators": 2.0 * matrices,
        "gradients": float(matrices * stepping),
        "momentum": float(matrices * stepping * (2 if published else 1)),
        "moments": 2.0 * matrices * (sizes.recipe.start == "ridge"),
        "states": float(block * each),
        "held-out": float(COUNTED * each),
        "passing": float(max(reading, solving, piece * stepping)),
    }


def fit_peak(parts: dict[str, float]) -> float:
    """Bytes at the peak, besides the model's weights: moments go before gradients and momentum come."""
    stepping = parts["translators"] + parts["gradients"] + parts["momentum"]
    # as solutions come, moments go
    solving = max(parts["moments"], parts["translators"])
    return max(stepping, solving) + parts["states"] + parts["held-out"] + parts["passing"]


def fit_work(sizes: FitSizes, room: float = 0.0) -> list[Work]:
    """The work of each GPU; `room`: the bytes besides the weights, which offloading leaves room for."""
    shape, plan, fleet, d = sizes.shape, sizes.schedule, sizes.fleet, sizes.shape.width
    model_bits = 16 if sizes.low else 8 * shape.dtype.itemsize
    translated = 16 if sizes.low else 32
    traffic = weight_traffic(shape, fleet, room)
    held_rows = 2 * spread(plan.length)[0]
    # a stream reads its blocks once, for all texts
    at_once, streamed = max(ROWS_TOGETHER, fleet.readers), fleet.placement == "stream"
    passes = 1 if streamed else ceil(plan.rows / at_once) + ceil(held_rows / at_once)
    tokens = sizes.tokens + held_rows * plan.length
    reading = model_work(shape, fleet, "reading", tokens, plan.length, passes, bits=model_bits)
    others = (fleet.owners - 1) / fleet.owners
    # states go to who owns their layer, those of the last layer to all
    given = tokens / fleet.readers * d * (shape.layers * others * sizes.state_size + 2 * others)
    given *= fleet.placement != "tensor"
    works = [
        Work(
            "reading", reading.flops, model_bits, reading.moved, "reading", reading.calls,
            sent=given + passes * traffic.sent + exchanged(shape, fleet, tokens), far=fleet.far,
            read=passes * traffic.read + streamed * 2 * tokens * d * shape.layers * sizes.state_size,
            fetched=passes * traffic.fetched,
        )
    ]  # fmt: skip
    own, stepping = sizes.own, sizes.recipe.optimizer is not None
    if sizes.recipe.start == "ridge":
        warm = min(plan.warm * plan.block, plan.rows) * plan.length
        works.append(Work("moments", own * warm * 4.0 * d * d, 32, own * warm * d * 24.0, "moments", own * 12))
        # a Cholesky decomposition and two triangular solves for each penalty
        solving = own * len(RIDGES) * (1 / 3 + 2) * d**3
        works.append(Work("solving", solving, 64, own * len(RIDGES) * 64.0 * d * d, "solving", own * 100))
    if stepping:
        works += _step_works(sizes, translated, model_bits)
    candidates = (2 + stepping) * sizes.recipe.best
    columns = min(COMPARED_COLUMNS, shape.vocab)
    compared = COUNTED * own * candidates * (2.0 * d * d + 2 * columns * d)
    # the KL that steps begin with
    compared += COUNTED * own * (2.0 * d * d + 2 * sizes.columns * d) * stepping
    measured = MEASURING * own * 2 * (2.0 * d * d + 2 * d * shape.vocab)
    moved = MEASURING * own * 2 * shape.vocab * logit_bytes(fleet.machine)
    moved += COUNTED * own * candidates * columns * 40.0
    bits = 8 * shape.dtype.itemsize
    return [*works, Work("measuring", compared + measured, bits, moved, "readout", own * 200)]


def _step_works(sizes: FitSizes, translated: int, model_bits: int) -> list[Work]:
    plan, d, own, k = sizes.schedule, sizes.shape.width, sizes.own, sizes.columns
    tokens = sizes.stepped
    # the model's own distributions, once for all layers
    target = tokens * 2.0 * k * d
    gradients = own * tokens * 4.0 * k * d
    # pieces of logits lie in a processor's cache
    columns = 0 if sizes.fleet.machine.cached else k
    moved = own * tokens * (columns * BYTES_OF_COLUMN + 40.0 * d) + tokens * columns * 40.0
    moved += plan.steps * (2.0 * k * d + own * 12 * d * d)
    works = [
        Work("columns", target + gradients, model_bits, moved, "steps", plan.steps * own * 40),
        Work("translating", own * tokens * 4.0 * d * d, translated, 0.0, "steps"),
    ]
    if sizes.orthogonalises:
        products = plan.steps * own * ITERATIONS * PRODUCTS_OF_ONE * 2.0 * d**3
        bits = 16 if sizes.fast else 32
        moved = plan.steps * own * float(BYTES_OF_WEIGHT) * d * d
        works.append(Work("orthogonalising", products, bits, moved, "orthogonal", plan.steps * own * 30))
    return works
