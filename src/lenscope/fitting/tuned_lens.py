"""Fitting a tuned lens: an affine translator per layer of a frozen model, trained to predict what the model predicts.

Knows: recipes, what is held out and what for, which candidate each layer keeps, what a fitted lens says of itself.
Does not know: how a run reads and steps (training.py), the loss (objective.py), files (mappings.py).
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from math import ceil
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch

from lenscope.distributed.processes import Group, joined
from lenscope.distributed.sharding import described, is_sharded
from lenscope.errors import LenscopeError
from lenscope.files.weights_folder import CONFIG
from lenscope.files.writing import folder_lock
from lenscope.fitting.held_out import MEASURING, choose
from lenscope.fitting.held_out import described as about_held_out
from lenscope.fitting.held_out import parts as choosing_parts
from lenscope.fitting.held_out import read as read_held_out
from lenscope.fitting.held_out import taken as choosing_rows
from lenscope.fitting.recipes import RECIPES, Recipe, _found, _make, _told
from lenscope.fitting.schedule import Schedule
from lenscope.fitting.tuned_lens_run import TunedLensRun
from lenscope.mappings.mapping import Affine, PairMapping, load_mapping
from lenscope.measures.sampled_kl import SampledKL
from lenscope.models.language_model import LM
from lenscope.models.precision import fast_products, low_precision
from lenscope.models.progress import Progress
from lenscope.text.corpus import Corpus
from lenscope.text.documents import Data, Stream

# Bytes for the states of a block of text, from which the tokens of steps are drawn.
ROOM = 1 << 29


def fit(
    lm: LM,
    data: "Data | Corpus | None" = None,
    *,
    tokens: int = 200_000,
    recipe: str | Recipe = "muon",
    held_out: float = 0.1,
    length: int | None = None,
    seed: int = 0,
    room: int = ROOM,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> Affine:
    """A tuned lens of `lm` (Belrose et al. 2023, Eq. 8): an affine map of each layer's states to the last layer's.

    `data` is text as `Corpus.open` takes it, or a Corpus; None: what the model itself writes. `tokens` of it are read,
    once, in rows of `length`. A fraction `held_out` of the documents is not fitted: one half of these chooses what each
    layer keeps, the logit lens among it; the other half, other documents, measures `report["layers"]`: KL(model ‖ lens)
    in nats of what is kept and of the logit lens, and the gain, each with its 95 % interval over documents. Nothing is
    decided by what measures: a layer that is worse than the logit lens there says so. Weights are float32 whatever the
    model's dtype.

    Memory: `room` bytes of states, of all processes together, but at least 8 rows of text; plus 16 · n_layers · D²
    bytes for weights, momentum and moments. Processes that torchrun started share the text and take the same steps as
    one would. With a `folder` (one that all processes see) the run leaves a checkpoint in it after each block of text,
    and goes on from there when it is called again, on any number of processes; at the end the lens is saved there, and
    a further call reads it. Raises LenscopeError, before the model runs, for text that is too short, recipes that do
    not exist, and numbers out of range; and for a folder of another run, or one that another run is writing to.
    """
    named, recipe = _found(recipe)
    if tokens < 1 or room < 1:
        raise LenscopeError(f"tokens {tokens}, room {room}: give at least 1")
    began = time.perf_counter()
    corpus = data if isinstance(data, Corpus) else Corpus.open(lm, data, length=length, seed=seed)
    text, held = corpus.split(held_out)
    if text.documents is None and is_sharded(lm):
        raise LenscopeError(f"{text.name}: processes that share a model's weights cannot write on their own; give text")
    # whatever is wrong with the text shows before the model runs
    digest = text.digest(tokens)
    first, second = choosing_parts(held)
    choosing, measuring = choosing_rows(first), choosing_rows(second, MEASURING)
    me, made_with = described(lm)
    with joined(lm.device) as group, torch.no_grad(), _alone(folder, group):
        low = low_precision(lm)
        ridge = recipe.start == "ridge"
        plan = Schedule.of(lm, tokens, text.length, room=room, per_step=recipe.tokens_per_step, ridge=ridge, low=low)
        settings = {
            "model": me["model_hash"],
            "corpus": text.provenance(),
            "recipe": _told(recipe),
            "schedule": asdict(plan),
            "seed": seed,
            "text": digest,
            "products": str(low or lm.dtype).removeprefix("torch."),
        }
        finished = None if folder is None else finished_lens(folder)
        if finished is not None:
            other = _difference(finished, lm, settings)
            if other:
                raise LenscopeError(
                    f"{folder}: holds a lens of another run ({other}); give another folder, or remove it"
                )
            return finished
        run = TunedLensRun(lm, text, plan, group, seed=seed, low=low, progress=progress)
        with run.timed("held-out text"):
            select = read_held_out(lm, choosing, group, low)
        make = partial(_make, recipe, fast_products(lm))
        checkpoint = None if folder is None else Path(folder) / "checkpoint"
        # a run that was killed while it wrote its first one leaves a folder without
        begun = checkpoint is not None and (checkpoint / CONFIG).exists()
        optimizer = run.load(checkpoint, settings, make) if checkpoint is not None and begun else None
        aim = partial(SampledKL, lm, columns=recipe.columns, seed=seed, low=low, next_token=recipe.loss != "kl")
        objective = None if optimizer is None else aim(mean=run.mean)
        for block in run.blocks():
            if not run.constants:
                run.find_sizes(block)
            if ridge and run.number < plan.warm:
                with run.timed("closed form"):
                    run.gather(block)
            if run.number == plan.warm - 1:
                with run.timed("closed form"):
                    run.close(select.block) if ridge else run.identity()
                    run.find_mean(block)
                    objective = aim(mean=run.mean)
                    kl = torch.zeros(lm.n_layers)
                    if recipe.optimizer is not None:
                        (kl,) = run.held_out_kl(select.block, [run.weights], objective)
                    optimizer = make(run.weights, kl.tolist(), run.units)
            if recipe.optimizer is not None and optimizer is not None and objective is not None:
                with run.timed("steps"):
                    run.take_steps(block, objective, optimizer, recipe.bias_only)
            run.number += 1
            if checkpoint is not None and optimizer is not None and run.number < plan.blocks:
                run.save(checkpoint, settings, optimizer)
            del block
        with run.timed("measuring"):
            measure = read_held_out(lm, measuring, group, None)
        plain = torch.eye(lm.hidden_size + 1, lm.hidden_size, device=lm.device)
        candidates = {"identity": [plain] * lm.n_layers, "start": run.start}
        if recipe.optimizer is not None:
            candidates["steps"] = run.weights
        chosen, layers = choose(run, candidates, select if recipe.best else None, measure)
        report = {
            "lens": "tuned lens",
            **settings,
            "recipe": {"name": named, **_told(recipe)},
            "tokens": plan.rows * plan.length,
            "steps": run.step,
            "loss": run.loss,
            "held_out": about_held_out(held, select, measure, layers),
            "layers": layers,
            "processes": group.world,
            "seconds": round(time.perf_counter() - began, 1),
            "spent": {work: round(seconds, 2) for work, seconds in run.spent.items()},
            "model": made_with,
        }
        last = lm.n_layers
        made = Affine({(n, last): (t[:-1].T, t[-1] * run.constants[n]) for n, t in enumerate(chosen)}, me, me, report)
        if folder is not None:
            if group.rank == 0:
                made.save(folder)
                rmtree(Path(folder) / "checkpoint", ignore_errors=True)
            group.barrier()
    return made


def finished_lens(folder: str | Path) -> Affine | None:
    """The lens in the folder of a run, if there is one; LenscopeError where anything else would be overwritten."""
    if not (Path(folder) / CONFIG).exists():
        return None
    try:
        found = load_mapping(folder)
    except LenscopeError as error:
        raise LenscopeError(
            f"{folder}: has a config.json of something else, or damaged; give another folder"
        ) from error
    if not isinstance(found, Affine):
        raise LenscopeError(f"{folder}: holds {found!r}, no fitted lens; give another folder")
    return found


def other_run(
    lens: PairMapping, lm: LM, corpus: Corpus, *, tokens: int, recipe: str, held_out: float, seed: int
) -> str:
    """In what a fitted lens is not of this run; "" where it is what the run would give."""
    text = corpus.split(held_out)[0]
    wanted: dict[str, Any] = {"recipe": _told(_found(recipe)[1]), "seed": seed, "corpus": text.provenance()}
    wanted["tokens"] = ceil(tokens / text.length) * text.length
    # a name alone says nothing of what a stream brings
    if isinstance(text.documents, Stream):
        wanted["text"] = text.digest(tokens)
    return _difference(lens, lm, wanted)


def _difference(lens: PairMapping, lm: LM, wanted: dict[str, Any]) -> str:
    """Which of these settings a fitted lens does not have, in words; "" where it has all."""
    try:
        lens.check(lm, lm)
    except LenscopeError:
        return "another model"
    for name, value in json.loads(json.dumps(wanted)).items():
        was: Any = lens.report.get(name)
        # what version 0.1.0 did not write is not known
        if name == "model" or was == value or (name == "products" and was is None):
            continue
        if name == "recipe":
            named, own = (was or {}).get("name"), {key: v for key, v in (was or {}).items() if key != "name"}
            if own == value:
                continue
            here = next((n for n, known in RECIPES.items() if json.loads(json.dumps(_told(known))) == value), "own")
            return f"recipe {named}, not {here}" if named != here else f"recipe {own}, not {value}"
        if name == "schedule" and isinstance(was, dict):
            key = next(key for key in (*value, *was) if value.get(key) != was.get(key))
            return f"{name} {key} {was.get(key)}, not {value.get(key)}"
        return "other text" if name in ("corpus", "text") else f"{name} {was}, not {value}"
    return ""


@contextmanager
def _alone(folder: str | Path | None, group: Group) -> Iterator[None]:
    """Only this run writes to its folder within the block, which its first process sees to."""
    with nullcontext() if folder is None or group.rank else folder_lock(folder):
        yield
