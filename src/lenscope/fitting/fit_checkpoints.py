"""Where a fit that was killed goes on: the checkpoint of a run, written between blocks of text, and read again.

Knows: what of a run is kept, which settings must be the same, which of the folders is the last whole one.
Does not know: what the run does (tuned_lens_run.py), how processes write together (distributed/checkpoints.py).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from typing import Any, Protocol

import torch
from torch import Tensor

from lenscope.distributed.checkpoints import read_tensors_into, write_tensors
from lenscope.distributed.layer_owners import LayerOwners
from lenscope.errors import LenscopeError
from lenscope.files.digests import FORMAT, sealed, unsealed
from lenscope.files.kinds import CONFIG
from lenscope.files.untrusted import checked_reading, read_json
from lenscope.files.writing import write_text
from lenscope.fitting.optimizers import Optimizer
from lenscope.fitting.recipes import Recipe, make_optimizer
from lenscope.fitting.schedule import Schedule
from lenscope.models.language_model import LM


class ResumableFit(Protocol):
    """What a checkpoint needs of a run: where it is, and the weights, start and mean that it has so far."""

    lm: LM
    owners: LayerOwners
    recipe: Recipe
    schedule: Schedule
    aside: torch.device
    fast: torch.dtype | None
    number: int
    step: int
    seen: int
    loss: list[float | None]
    constants: list[float]
    weights: list[Tensor]
    start: list[Tensor]
    mean: Tensor

    def identity(self) -> None:
        """Begin with translators that change nothing."""


def save_checkpoint(run: ResumableFit, folder: Path, settings: dict[str, Any], optimizer: Optimizer | None) -> None:
    """Write all that the run needs to go on after the block that it has done, if that ends a step.

    Each process writes what it has of its layers, into a new folder beside the last one; config.json, which names the
    files and their SHA-256, is replaced when all are whole.
    """
    if run.seen % run.schedule.together:
        return
    group, place = run.owners.group, folder / f"after-{run.number}"
    if group.rank == 0:
        # of a run that was killed while it wrote
        rmtree(place, ignore_errors=True)
    group.barrier()
    tensors, files = {}, {}
    for layer, name, t in _of_layers(run, optimizer):
        tensors[name], files[name] = t, layer + 1
    if group.rank == 0:
        tensors["mean"], files["mean"] = run.mean, 1
    digests = write_tensors(place, tensors, files, group)
    if group.rank == 0:
        position = {"number": run.number, "step": run.step, "seen": run.seen, "loss": run.loss}
        head = {"kind": "checkpoint", "version": FORMAT, "settings": settings, "constants": run.constants, **position}
        write_text(folder / CONFIG, json.dumps(sealed(json.loads(json.dumps({**head, "files": digests}))), indent=1))
        for other in folder.glob("after-*"):
            if other != place:
                rmtree(other, ignore_errors=True)
    group.barrier()


def has_checkpoint(run: ResumableFit, folder: Path) -> bool:
    """Whether there is a checkpoint; a run that was killed while it wrote its first one leaves a folder without."""
    return bool(run.owners.group.from_first((folder / CONFIG).exists()))


def load_checkpoint(run: ResumableFit, folder: Path, settings: dict[str, Any]) -> Optimizer | None:
    """Put a run where `save_checkpoint` left one, so that it goes on from there, and give its optimizer.

    Each process reads what is of its layers, on any number of processes. Raises LenscopeError for a checkpoint of other
    settings, or a damaged one.
    """
    try:
        with checked_reading(folder):
            config = unsealed(read_json(folder / CONFIG))
            was = config["settings"]
            # as JSON reads them
            now = json.loads(json.dumps(settings))
            differ = [name for name in now if was.get(name) != now[name]]
            if not differ:
                run.constants, run.loss = config["constants"], config["loss"]
                run.number, run.step, run.seen = config["number"], config["step"], config["seen"]
                return _fill(run, folder / f"after-{run.number:d}", config["files"])
    except LenscopeError as error:
        reason = str(error).removeprefix(f"{folder}: ")
        raise LenscopeError(f"{folder}: is no checkpoint that can be read ({reason}); remove it") from error
    raise LenscopeError(
        f"{folder}: is of another run, {_unlike_checkpoint(differ[0], was, now)}; remove it to begin anew"
    )


def _fill(run: ResumableFit, place: Path, digests: dict[str, str]) -> Optimizer | None:
    lm = run.lm
    optimizer: Optimizer | None = None
    run.identity()
    if run.recipe.start == "ridge":
        run.start = [torch.empty_like(t, device=run.aside) for t in run.start]
    if run.recipe.optimizer is not None:
        # its own units are in its state
        optimizer = make_optimizer(run.recipe, run.fast, run.weights, [0.0] * len(run.weights), ())
    run.mean = torch.empty(lm.vocab_size, device=lm.device)
    tensors = {name: t for _, name, t in _of_layers(run, optimizer)}
    read_tensors_into(place, {**tensors, "mean": run.mean}, digests, run.owners.group)
    return optimizer


def _of_layers(run: ResumableFit, optimizer: Optimizer | None) -> Iterator[tuple[int, str, Tensor]]:
    """What is kept of each of this process's layers: the layer, a name, the tensor."""
    for number, layer in enumerate(run.owners.own):
        # an identity is known
        if run.recipe.start == "ridge":
            yield layer, f"start.{layer}", run.start[number]
        if optimizer is not None:
            yield layer, f"weights.{layer}", run.weights[number]
            for n, t in enumerate(optimizer.state[number]):
                yield layer, f"state.{layer}.{n}", t


def _unlike_checkpoint(name: str, was: dict[str, Any], now: dict[str, Any]) -> str:
    """Where two settings differ, in words: the one number, where they hold several."""
    a, b = was.get(name), now[name]
    if isinstance(a, dict) and isinstance(b, dict):
        inner = next(key for key in (*b, *a) if a.get(key) != b.get(key))
        name, a, b = f"{name} {inner}", a.get(inner), b.get(inner)
    return f"with {name} {a!r} where this one has {b!r}"
