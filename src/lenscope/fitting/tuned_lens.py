"""Fitting a tuned lens: an affine translator per layer of a frozen model, trained to predict what the model predicts.

Knows: what is checked before a run, which settings make two runs the same, what a fitted lens says of itself.
Does not know: how a run reads and steps (tuned_lens_run.py), the loss (sampled_kl.py), files of mappings (mapping.py).
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from math import ceil
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch import Tensor

from lenscope.distributed.layer_owners import LayerOwners
from lenscope.distributed.processes import Group, joined
from lenscope.distributed.sharding import described, is_sharded, text_share
from lenscope.errors import LenscopeError
from lenscope.files.weights_folder import CONFIG, WeightsFile
from lenscope.files.writing import folder_lock
from lenscope.fitting.held_out import MEASURING, choose_rows, describe_held_out, halves
from lenscope.fitting.recipes import RECIPES, Recipe, named_recipe, recipe_as_json
from lenscope.fitting.schedule import Schedule
from lenscope.fitting.streamed_ridge import StreamedRidge, require_streamable
from lenscope.fitting.tuned_lens_run import TunedLensRun
from lenscope.mappings.mapping import Affine, Pair, PairMapping, load_mapping
from lenscope.models.language_model import LM
from lenscope.models.load_options import dtype_name
from lenscope.models.precision import fast_products, low_precision
from lenscope.models.progress import Progress
from lenscope.text.corpus import Corpus
from lenscope.text.documents import Data, DocumentStream

# Bytes for the states of a block of text, from which the tokens of steps are drawn.
STATES_BYTES = 1 << 29


def fit(
    lm: LM,
    data: "Data | Corpus | None" = None,
    *,
    tokens: int = 200_000,
    recipe: str | Recipe = "muon",
    held_out: float = 0.1,
    length: int | None = None,
    seed: int = 0,
    room: int = STATES_BYTES,
    folder: str | Path | None = None,
    moments_on: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Affine:
    """Fit a tuned lens on text: for each layer, an affine map of its states to the last layer's.

    The lens is that of Belrose et al. 2023, Eq. 8. `tokens` of the text are read, once, in rows of `length`. A fraction
    `held_out` of the documents is not fitted. One half of these chooses what each layer keeps, the logit lens among it.
    The other half measures `report["layers"]`: KL(model ‖ lens) in nats of what is kept and of the logit lens, and the
    gain, each with its 95 % interval over documents. Nothing is decided by what measures: a layer that is worse than
    the logit lens there says so. Weights are float32 whatever the model's dtype.

    With a `folder` (one that all processes see) the run leaves a checkpoint in it after each block of text, and goes on
    from there when it is called again, on any number of processes. At the end the lens is saved there, and a further
    call reads it.

    Processes that torchrun started share the text and take the same steps as one would. Each owns k = ⌈n_layers /
    processes⌉ layers at most, and gets the states of all text at these. What one holds besides the model, in bytes: 16
    k D² while steps are made, 4 k D² each for weights, what the closed form gave, gradients and momentum (Nesterov
    keeps 4 k D² more, a recipe without steps nothing but what the closed form gave); before that 8 k D² of second
    moments and, while they are solved, 64 D²; `room` · (k + 1) / (n_layers + 1) of states, but at least those of 8
    rows; and with several processes the states of all layers of the 8 / processes rows that it reads at once. Moments
    and what they gave can be kept elsewhere (`moments_on`). `lenscope plan` counts all of it. Every process returns the
    whole lens: one alone as it has it; several read it from the folder, mapped into memory, and without a folder send
    each other all weights.

    A model whose weights are streamed from disk (`lenscope.models.load_streamed`) is fitted by the recipe "ridge" into
    a folder: its states go there in one reading of the weights, (n_layers + 1) · D numbers for each of at most 8 · D
    tokens, and layers are solved from there, one by one; a killed run goes on with the next layer, or reads anew where
    it had not read all. The lens is the same, to the last bit.

    Args:
        lm: the model that the lens is of.
        data: the text, as `Corpus.open` takes it, or a Corpus; None: what the model itself writes.
        tokens: how many tokens of it are read.
        recipe: how it is fitted: "muon", "ridge", "bias", "published", "published-ce", or a Recipe.
        held_out: the fraction of the documents that is not fitted.
        length: tokens of a row; None: the corpus's default.
        seed: fixes whatever is drawn.
        room: bytes for the states of a block of text.
        folder: where checkpoints and the lens are saved; None: nowhere.
        moments_on: the device, such as "cpu", that keeps second moments and what the closed form gave; None: the
            model's own.
        progress: called with how many tokens are read, and how many there are.

    Raises LenscopeError, before the model runs, for text that is too short, recipes that do not exist, and numbers out
    of range; and for a folder of another run, or one that another run is writing to.
    """
    named, recipe = named_recipe(recipe)
    if tokens < 1 or room < 1:
        raise LenscopeError(f"tokens {tokens}, room {room}: give at least 1 of each")
    aside = None if moments_on is None else _device(moments_on)
    began = time.perf_counter()
    corpus = data if isinstance(data, Corpus) else Corpus.open(lm, data, length=length, seed=seed)
    text, held = corpus.split(held_out)
    if text.documents is None and is_sharded(lm):
        raise LenscopeError(
            f"{text.name}: a model whose weights are spread over processes cannot write samples; give text to fit on"
        )
    if lm.runner.stream is not None:
        require_streamable(lm, named, recipe, text, folder)
    # whatever is wrong with the text shows before the model runs
    digest = text.digest(tokens)
    first, second = halves(held)
    choosing, measuring = choose_rows(first), choose_rows(second, MEASURING)
    me, made_with = described(lm)
    with joined(lm.device) as group, torch.no_grad(), _alone(folder, group):
        low = low_precision(lm)
        plan = Schedule.of(
            lm, tokens, text.length, room=room, per_step=recipe.tokens_per_step, ridge=recipe.start == "ridge", low=low
        )
        settings = {
            "model": me["model_hash"],
            "corpus": text.provenance(),
            "recipe": recipe_as_json(recipe),
            "schedule": asdict(plan),
            "seed": seed,
            "text": digest,
            "products": dtype_name(low or lm.dtype),
        }
        finished = None if folder is None else finished_lens(folder)
        if finished is not None:
            other = _unlike_settings(finished, lm, settings)
            if other:
                raise LenscopeError(
                    f"{folder}: holds a lens of another run ({other}); give another folder, or remove it"
                )
            if group.rank == 0:
                # of a run that was killed after it had saved the lens
                remove_fit_checkpoint(folder)
            return finished
        owners = LayerOwners(lm.n_layers, group, text_share(lm, group))
        run: TunedLensRun | StreamedRidge
        if lm.runner.stream is None:
            run = TunedLensRun(
                lm, text, recipe, plan, owners, seed=seed, low=low, fast=fast_products(lm), progress=progress,
                moments_on=aside,
            )  # fmt: skip
        else:
            run = StreamedRidge(lm, text, plan, measuring, seed=seed, low=low, progress=progress)
        select = run.go(choosing, settings, None if folder is None else Path(folder) / "checkpoint")
        weights, layers, measure = run.choose(select, measuring)
        report = {
            "lens": "tuned lens",
            **settings,
            "recipe": {"name": named, **recipe_as_json(recipe)},
            "tokens": plan.rows * plan.length,
            "steps": run.step,
            "loss": run.loss,
            "held_out": describe_held_out(held, select, measure, layers),
            "layers": layers,
            "processes": group.world,
            "seconds": round(time.perf_counter() - began, 1),
            "spent": {work: round(seconds, 2) for work, seconds in run.spent.items()},
            "model": made_with,
        }
        own: dict[Pair, tuple[Tensor, ...]] = run.maps() if isinstance(run, StreamedRidge) else {}
        if isinstance(weights, list):
            for layer in owners.own:
                # each goes as its layer's map comes
                t = weights.pop(0)
                own[layer, lm.n_layers] = (t[:-1].T.contiguous(), t[-1] * run.constants[layer])
                del t
        lens = _of_all_layers(own, owners, lm.device, me, group.from_first(report), folder)
        if folder is not None and group.rank == 0:
            remove_fit_checkpoint(folder)
    return lens


def _of_all_layers(
    own: dict[Pair, tuple[Tensor, ...]],
    owners: LayerOwners,
    device: torch.device,
    model: dict[str, Any],
    report: dict[str, Any],
    folder: str | Path | None,
) -> Affine:
    """The lens of all processes' layers, saved where there is a folder, from which several processes then read it."""
    group, last = owners.group, owners.n_layers
    pairs: list[Pair] = [(layer, last) for layer in range(last)]
    if group.world > 1 and folder is None:
        # on the processors' side: a device may have no room for all
        for pair in pairs:
            size = model["hidden_size"]
            mine = own.get(pair) or (torch.zeros(size, size), torch.zeros(size))
            moved = [t.to(device) for t in mine]
            group.sum(moved)
            own[pair] = tuple(t.cpu() for t in moved)
    lens = Affine(own, model, model, report) if own else None
    if folder is not None:
        part: WeightsFile | str | None = None
        try:
            part = None if lens is None else lens.save_part(folder, pairs)
        except LenscopeError as error:
            part = str(error)
        parts = group.gathered(part)
        failed = next((p for p in parts if isinstance(p, str)), None)
        if failed is not None:
            raise LenscopeError(failed)
        if lens is not None and group.rank == 0:
            lens.join_mapping(folder, pairs, [p for p in parts if p is not None])
        group.barrier()
        if group.world > 1:
            # whole, and mapped from the file: what is used of it is read
            loaded = load_mapping(folder)
            assert isinstance(loaded, Affine)
            return loaded
    assert lens is not None
    return lens


def _device(name: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise LenscopeError(f"moments_on {str(name)!r}: there is no such device here; give 'cpu', or None") from error


def remove_fit_checkpoint(folder: str | Path | None) -> None:
    """Remove what a run that has saved its lens goes on from no more, unless another run is writing there."""
    if folder is not None and (Path(folder) / "checkpoint").exists():
        with suppress(LenscopeError), folder_lock(folder):
            rmtree(Path(folder) / "checkpoint", ignore_errors=True)


def finished_lens(folder: str | Path) -> Affine | None:
    """The lens in the folder of a run, if there is one; LenscopeError where anything else would be overwritten."""
    if not (Path(folder) / CONFIG).exists():
        return None
    try:
        lens = load_mapping(folder)
    except LenscopeError as error:
        raise LenscopeError(
            f"{folder}: has a config.json that is damaged or of something else; give another folder"
        ) from error
    if not isinstance(lens, Affine):
        raise LenscopeError(f"{folder}: holds {lens!r}, no fitted lens; give another folder")
    return lens


def other_run(
    lens: PairMapping, lm: LM, corpus: Corpus, *, tokens: int, recipe: str, held_out: float, seed: int
) -> str:
    """In what a fitted lens is not of this run; "" where it is what the run would give.

    Args:
        lens: the fitted lens.
        lm: the model of the run.
        corpus: its text.
        tokens: how many tokens of it are read.
        recipe: the name of its recipe.
        held_out: the fraction of the documents that is not fitted.
        seed: its seed.
    """
    text = corpus.split(held_out)[0]
    wanted: dict[str, Any] = {
        "recipe": recipe_as_json(named_recipe(recipe)[1]),
        "seed": seed,
        "corpus": text.provenance(),
    }
    wanted["tokens"] = ceil(tokens / text.length) * text.length
    # a name alone says nothing of what a stream brings
    if isinstance(text.documents, DocumentStream):
        wanted["text"] = text.digest(tokens)
    return _unlike_settings(lens, lm, wanted)


def _unlike_settings(lens: PairMapping, lm: LM, wanted: dict[str, Any]) -> str:
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
            here = next(
                (n for n, known in RECIPES.items() if json.loads(json.dumps(recipe_as_json(known))) == value), "own"
            )
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
