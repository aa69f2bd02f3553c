"""Where a fit that was killed goes on: the checkpoint of a run, written between blocks of text, and read again.

Knows: what of a run is kept, which settings must be the same. Does not know: what the run does (tuned_lens_run.py).
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lenscope.distributed.processes import Group
from lenscope.errors import LenscopeError
from lenscope.files import weights_folder as artifacts
from lenscope.files.untrusted import checked_reading
from lenscope.fitting.optimizers import Optimizer
from lenscope.fitting.recipes import Recipe, make_optimizer
from lenscope.fitting.schedule import Schedule
from lenscope.models.language_model import LM


class ResumableFit(Protocol):
    """What a checkpoint needs of a run: where it is, and the weights, start and mean that it has so far."""

    lm: LM
    group: Group
    recipe: Recipe
    schedule: Schedule
    fast: torch.dtype | None
    number: int
    step: int
    seen: int
    loss: list[float | None]
    constants: list[float]
    weights: list[Tensor]
    start: list[Tensor]
    mean: Tensor


def save_checkpoint(run: ResumableFit, folder: Path, settings: dict[str, Any], optimizer: Optimizer) -> None:
    """Write all that the run needs to go on after the block that it has done, if that ends a step."""
    if run.seen % run.schedule.together:
        return
    if run.group.rank == 0:
        named = {"weights": run.weights, "start": run.start, "state": optimizer.state, "mean": [run.mean]}
        tensors = {f"{name}.{n}": t.contiguous() for name, many in named.items() for n, t in enumerate(many)}
        position = {"number": run.number, "step": run.step, "seen": run.seen, "loss": run.loss}
        artifacts.write_folder(
            folder, "checkpoint", {"settings": settings, "constants": run.constants, **position}, tensors
        )
    run.group.barrier()


def load_checkpoint(run: ResumableFit, folder: Path, settings: dict[str, Any]) -> Optimizer:
    """Put a run where `save_checkpoint` left one, so that it goes on from there, and give its optimizer.

    Raises LenscopeError for a checkpoint of other settings, or a damaged one.
    """
    try:
        with checked_reading(folder):
            config, tensors = artifacts.read_folder(folder, "checkpoint")
            was = config["settings"]
            # as JSON reads them
            now = json.loads(json.dumps(settings))
            # version 0.1.0 did not write it
            was.setdefault("products", now.get("products"))
            differ = [name for name in now if was.get(name) != now[name]]
            if not differ:
                run.constants, run.loss = config["constants"], config["loss"]
                run.number, run.step, run.seen = config["number"], config["step"], config["seen"]
                layers = range(run.lm.n_layers)
                # copied: how products round may depend on where memory begins, which is anywhere in a file
                move = partial(torch.Tensor.to, device=run.lm.device, copy=True)
                run.weights = [move(tensors[f"weights.{n}"]) for n in layers]
                run.start = [move(tensors[f"start.{n}"]) for n in layers]
                run.mean = move(tensors["mean.0"])
                # its own units are in its state
                optimizer = make_optimizer(run.recipe, run.fast, run.weights, [0.0] * len(run.weights), ())
                for n, t in enumerate(optimizer.state):
                    t.copy_(tensors[f"state.{n}"])
                return optimizer
    except LenscopeError as error:
        reason = str(error).removeprefix(f"{folder}: ")
        raise LenscopeError(f"{folder}: is no checkpoint that can be read ({reason}); remove it") from error
    raise LenscopeError(
        f"{folder}: is of another run, {_unlike_checkpoint(differ[0], was, now)}; remove it to begin anew"
    )


def _unlike_checkpoint(name: str, was: dict[str, Any], now: dict[str, Any]) -> str:
    """Where two settings differ, in words: the one number, where they hold several."""
    a, b = was.get(name), now[name]
    if isinstance(a, dict) and isinstance(b, dict):
        inner = next(key for key in (*b, *a) if a.get(key) != b.get(key))
        name, a, b = f"{name} {inner}", a.get(inner), b.get(inner)
    return f"with {name} {a!r} where this one has {b!r}"
