"""A plan: what a task on a model asks of some GPUs under each placement, which of them fits, and which is advised.

Knows: tasks, placements that a task has, in which order they are preferred, the command that runs one.
Does not know: how costs are counted (fit_costs.py and its neighbours), how plans look.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any, final

import torch

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.fitting.recipes import named_recipe
from lenscope.fitting.schedule import Schedule
from lenscope.fitting.tuned_lens import STATES_BYTES
from lenscope.models.load_options import dtype_name
from lenscope.planning.costs import TimedWork, Work, timed_work, what_limits
from lenscope.planning.fit_costs import FitSizes, fit_bytes, fit_peak, fit_work
from lenscope.planning.lens_costs import lens_bytes, lens_work
from lenscope.planning.machines import Machine
from lenscope.planning.model_shapes import ModelShape
from lenscope.planning.placements import PLACEMENTS, Fleet, weight_bytes
from lenscope.planning.sweep_costs import sweep_bytes, sweep_work

TASKS = ("fit", "lens", "sweep")
# tokens and tokens of a text where none are asked for
TOKENS = {"fit": 200_000, "lens": 1_000_000}
LENGTHS = {"fit": 512, "lens": 512, "sweep": 32}
ROWS = 100_000


@final
@dataclass(frozen=True)
class Task:
    """A task to plan: a fit, trajectories through a lens, or a sweep.

    None stands for the command's own default. Raises LenscopeError for numbers out of range, and for those that the
    task does not have.

    Args:
        kind: "fit", "lens" or "sweep".
        tokens: how many tokens a fit or a lens reads.
        length: tokens of a text, or of a sweep's prompt.
        recipe: the recipe of a fit.
        room: bytes for the states of a block of text, in a fit.
        tuned: whether a tuned lens is read through, not the logit lens.
        rows: how many rows a sweep has, in whole grids.
        new_tokens: how many tokens each row of a sweep writes; 0: its next token is measured.
    """

    kind: str
    tokens: int | None = None
    length: int | None = None
    recipe: str = "muon"
    room: int = STATES_BYTES
    tuned: bool = False
    rows: int | None = None
    new_tokens: int = 0

    def __post_init__(self) -> None:
        if self.kind not in TASKS:
            raise LenscopeError(f"task {self.kind!r}: there are {', '.join(TASKS)}")
        named_recipe(self.recipe)
        numbers = {"tokens": self.tokens, "length": self.length, "rows": self.rows, "room": self.room}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise LenscopeError(f"{name} {value}: give at least 1")
        if self.new_tokens < 0:
            raise LenscopeError(f"new tokens {self.new_tokens}: give 0 (the next token is measured) or more")


@final
@dataclass(frozen=True, eq=False, repr=False)
class PlacedWork(Brief):
    """A task under one placement: bytes on each GPU by what they are for, and the time of every kind of work."""

    placement: str
    weights: float
    parts: dict[str, float]
    peak: float
    usable: float
    works: tuple[TimedWork, ...]

    @property
    def fits(self) -> bool:
        """Whether the peak fits into what can be stored in."""
        return self.peak <= self.usable

    @property
    def seconds(self) -> float:
        """How long the task takes."""
        return sum(part.seconds for part in self.works)

    @property
    def limit(self) -> str:
        """What most of the time goes to."""
        return what_limits(self.works)

    def to_json(self) -> dict[str, Any]:
        """Bytes, FLOPs and seconds, as JSON values."""
        works = [{**asdict(part.work), "seconds": part.seconds, "limit": part.limit} for part in self.works]
        return {
            "placement": self.placement,
            "fits": self.fits,
            "bytes": {"weights": self.weights, **self.parts, "peak": self.peak, "usable": self.usable},
            "flops": sum(part.work.flops for part in self.works),
            "moved": sum(part.work.moved for part in self.works),
            "sent": sum(part.work.sent for part in self.works),
            "read": sum(part.work.read for part in self.works),
            "hours": self.seconds / 3600,
            "limit": self.limit,
            "works": works,
        }


@final
@dataclass(frozen=True, eq=False, repr=False)
class TaskPlan(Brief):
    """What a task needs on some GPUs, under each placement of the weights. `plan` makes it.

    `advised` is the placement that takes the least time of those that fit, or None.
    """

    shape: ModelShape
    task: Task
    machine: Machine
    gpus: int
    placements: tuple[PlacedWork, ...]

    @property
    def advised(self) -> PlacedWork | None:
        """Of the placements that fit the one that takes the least time; of two alike the simpler one."""
        fitting = [p for p in self.placements if p.fits]
        return min(fitting, key=lambda p: p.seconds) if fitting else None

    def command(self) -> str | None:
        """The command line that runs the advised placement; None where there is none."""
        # a shape in words names no model that could be run
        model = "MODEL" if "=" in self.shape.name else self.shape.name
        return None if self.advised is None else command_for(self.task, model, self.advised.placement, self)

    def to_json(self) -> dict[str, Any]:
        """The whole plan as JSON values."""
        shape = {**asdict(self.shape), "dtype": dtype_name(self.shape.dtype)}
        about = {name: value for name, value in vars(self.machine).items() if name != "shares"}
        return {
            "kind": "plan",
            "model": {**shape, "parameters": self.shape.parameters, "bytes": self.shape.nbytes},
            "task": asdict(self.task),
            "gpus": self.gpus,
            "machine": {**about, "matrix": dict(self.machine.matrix), "shares": dict(self.machine.shares)},
            "placements": [p.to_json() for p in self.placements],
            "advised": None if self.advised is None else self.advised.placement,
            "command": self.command(),
        }


def plan(shape: ModelShape, task: Task, machine: Machine, gpus: int = 1) -> TaskPlan:
    """Plan a task: what it needs of `gpus` GPUs, or of one machine's processors, under each placement of the weights.

    Exact are parameters and bytes of weights, translators, gradients, momentum, moments and states; what comes and goes
    (activations, pieces of logits) and times are estimates. Raises LenscopeError for no GPU at all.
    """
    if gpus < 1:
        raise LenscopeError(f"gpus {gpus}: give at least 1")
    placed = []
    for name in placements_of(task, machine, gpus):
        part, together = task, gpus
        if name == "tensor" and task.kind != "fit" and gpus > machine.together:
            # products are shared within a machine; each machine reads its own texts and rows
            together = machine.together
            tokens, rows = task.tokens or TOKENS.get(task.kind, 0), task.rows or ROWS
            part = replace(task, tokens=ceil(tokens * together / gpus) or None, rows=ceil(rows * together / gpus))
        placed.append(_placed(shape, part, Fleet(machine, together, name)))
    return TaskPlan(shape, task, machine, gpus, tuple(placed))


def placements_of(task: Task, machine: Machine, gpus: int) -> list[str]:
    """The placements that a task has on so many GPUs, the simplest first."""
    names = ["whole"]
    if gpus > 1:
        # each process reads its own texts and rows; only a fit's processes run the model equally often
        names += ["fsdp", "tensor"] if task.kind == "fit" else ["tensor"]
        if gpus <= machine.together:
            names.append("spread")
    elif not machine.cached:
        names.append("offload")
    if gpus == 1 and (task.kind == "lens" or (task.kind == "fit" and task.recipe == "ridge")):
        names.append("stream")
    return names


def fewest_gpus(shape: ModelShape, task: Task, machine: Machine) -> int | None:
    """The fewest GPUs, by doubling, on which a task fits under any placement; None where 1,024 are too few."""
    return next((n for n in (1 << k for k in range(11)) if plan(shape, task, machine, n).advised is not None), None)


def _placed(shape: ModelShape, task: Task, fleet: Fleet) -> PlacedWork:
    length = task.length or LENGTHS[task.kind]
    tokens = task.tokens or TOKENS.get(task.kind, 0)
    works: list[Work]
    if task.kind == "fit":
        sizes = fit_sizes(shape, task, fleet)
        parts = fit_bytes(sizes)
        room = fit_peak(parts)
        works = fit_work(sizes, room)
    elif task.kind == "lens":
        parts = lens_bytes(shape, fleet, length, task.tuned)
        room = sum(parts.values())
        works = lens_work(shape, fleet, tokens, length, task.tuned, room)
    else:
        parts = sweep_bytes(shape, fleet, length, task.new_tokens)
        room = sum(parts.values())
        works = sweep_work(shape, fleet, task.rows or ROWS, length, task.new_tokens, room)
    weights = weight_bytes(shape, fleet, room)
    timed = tuple(timed_work(work, fleet.machine) for work in works)
    return PlacedWork(fleet.placement, weights, parts, weights + room, fleet.machine.usable, timed)


def fit_sizes(shape: ModelShape, task: Task, fleet: Fleet) -> FitSizes:
    """The schedule and the recipe of a fit, as `fit` itself makes them."""
    _, recipe = named_recipe(task.recipe)
    sizes = FitSizes(shape, Schedule(1, 1, 1, 1, 1, 1), recipe, fleet)
    low = torch.bfloat16 if sizes.low else None
    schedule = Schedule.of(
        shape, task.tokens or TOKENS["fit"], task.length or LENGTHS["fit"], room=task.room,
        per_step=recipe.tokens_per_step, ridge=recipe.start == "ridge", low=low,
    )  # fmt: skip
    return replace(sizes, schedule=schedule)


def command_for(task: Task, model: str, placement: str, where: TaskPlan) -> str:
    """The command line of a task under a placement."""
    gpus, cpu = where.gpus, where.machine.cached
    device = "" if cpu else " --device cuda"
    how = {
        "whole": device,
        "fsdp": f"{device} --placement fsdp",
        "tensor": f"{device} --placement tensor",
        "spread": " --placement auto",
        "offload": " --placement auto",
        "stream": " --stream",
    }
    each = min(gpus, where.machine.together)
    nodes = f"--nnodes {gpus // each} " if gpus > each else ""
    together = placement in ("fsdp", "tensor") or (task.kind == "fit" and placement == "whole")
    launch = f"torchrun {nodes}--nproc-per-node {each} -m " if gpus > 1 and together else ""
    amount = f" --tokens {task.tokens or TOKENS.get(task.kind)}" if task.kind == "fit" else ""
    ray = f" --engine ray --workers {gpus} --gpus-per-worker 1" if gpus > 1 and placement == "whole" and not cpu else ""
    what = {
        "fit": f"fit -m {model}{amount} --recipe {task.recipe} -d TEXT -o FOLDER",
        "lens": f"lens -m {model} --file PROMPTS" + (" --lens FOLDER" if task.tuned else "") + " -o OUT.parquet",
        "sweep": f"sweep SPEC.yaml -o FOLDER{ray}",
    }[task.kind]
    if task.kind == "lens" and placement == "whole" and gpus > 1:
        # each process reads its own prompts: nothing divides them
        what = what.replace("PROMPTS", "PROMPTS-$n").replace("OUT", "OUT-$n")
        machines = f"  # on each of {gpus // each} machines" if gpus > each else ""
        one = f"CUDA_VISIBLE_DEVICES=$((n-1)) lenscope {what}{device}"
        return f"for n in $(seq {each}); do {one} & done; wait{machines}"
    return f"{launch}lenscope {what}{how[placement]}"


def describe_placements(names: Sequence[str]) -> str:
    """What some placements mean, in words."""
    return "; ".join(f"{name}: {PLACEMENTS[name]}" for name in names)
