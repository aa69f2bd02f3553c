"""Fitting a verbaliser: a small map, trained through a frozen model, that makes it say what a vector means.

Knows: which vectors and labels are taken, which labels train, select and measure, which settings make two runs the
same. Does not know: how steps are made (verbaliser_steps.py), how labels are read (patched_labels.py), what is
measured (verbaliser_report.py).
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.files.kinds import CONFIG
from lenscope.fitting.patched_labels import PatchedLabels
from lenscope.fitting.verbaliser_report import measured_report
from lenscope.fitting.verbaliser_steps import LabelledVectors, MapWeights, VerbaliserRecipe, VerbaliserRun
from lenscope.models.edits import Operation, as_vectors, replace
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.inputs import count
from lenscope.models.language_model import LM
from lenscope.models.layers import check_layers
from lenscope.models.load_options import dtype_name
from lenscope.models.progress import Progress
from lenscope.models.provenance import provenance
from lenscope.models.same_model import model_identity
from lenscope.patchscopes.target_prompts import Target
from lenscope.patchscopes.verbaliser import (
    QUOTE,
    Verbaliser,
    load_verbaliser,
    meaning_target,
    name_of_operation,
)
from lenscope.statistics.derangements import derange

# steps that are made where no number is given
STEPS = 160
# the fewest labels that select, and that measure
FEWEST = 4


class VerbaliserInterrupted(KeyboardInterrupt):
    """The training of a verbaliser was interrupted; `verbaliser` is what was learned so far, not measured."""

    def __init__(self, verbaliser: Verbaliser) -> None:
        super().__init__()
        self.verbaliser = verbaliser


def fit_verbaliser(
    lm: LM,
    vectors: Tensor | HiddenStates,
    labels: Sequence[str],
    target: Target | None = None,
    *,
    shape: str = "affine",
    rank: int = 8,
    normalize: bool = True,
    pooled: bool = True,
    layers: Sequence[int] | None = None,
    center: Tensor | None = None,
    source_lm: LM | None = None,
    target_layer: int = 0,
    op: Operation = replace,
    end: str = QUOTE,
    steps: int = STEPS,
    minutes: float | None = None,
    recipe: VerbaliserRecipe | None = None,
    selecting: int = 64,
    measured: int = 256,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    heard: Callable[[int, float], None] | None = None,
) -> Verbaliser:
    """Train a map that makes a frozen model say labels of vectors, such as titles of what they stand for.

    Each vector is mapped, written at the placeholders of the target prompt, and the model is to go on with the vector's
    label: cross-entropy of the label's tokens, its gradient through the frozen model's whole run, AdamW on the map's
    weights alone (SelfIE adapters, arXiv 2602.10352). Whole labels are held out: some select the step whose weights are
    kept, others measure. `report["measured"]` has, of labels that neither trained nor selected, the log-likelihood per
    label token in nats, each with a 95 % interval over labels: "trained"; untrained maps, "state itself" and "unit
    vector" (at the norm of the prompt's own states); "bias alone", what the map gives on average; "another label's
    vector"; "random vector" of equal norm. "trained less" has the paired differences, "bias share" the share of the
    gain that the bias alone has.

    With a `folder` the run leaves a checkpoint there at each look at held-out labels and where it is interrupted, goes
    on from it bit for bit when called again, and saves the verbaliser in the end; a further call reads it. Ctrl-C
    raises `VerbaliserInterrupted`, which has what was learned so far.

    Args:
        lm: the model that says the words, which stays as it is.
        vectors: (N, D); (N, L, D) at L layers, which `layers` names; or hidden states of N prompts, at one position
            each.
        labels: what each is called, (N,). Rows with the same label are on the same side. The text `end` is left out of
            them.
        target: the prompt and its placeholders; None: `meaning_target`, which asks for the meaning of the vector.
        shape: the map: "affine", "scale_only", "low_rank", "low_rank_only" or "full", as in `VectorMap`.
        rank: the rank of a low-rank part.
        normalize: whether the map sees a vector's direction alone.
        pooled: whether layers share the weights; False: each layer has its own.
        layers: the layers that the vectors were read at.
        center: what was taken from states to make the vectors, (D,) or (L, D), kept for `Verbaliser.vectors`.
        source_lm: the model that vectors come from, if it is not `lm`.
        target_layer: the layer at which vectors are written.
        op: how they are written, one of the operations of `lenscope.models.edits`, or a function of your own that can
            be differentiated.
        end: what ends a label; "": nothing does.
        steps: steps of AdamW at most.
        minutes: how long the steps may take: after a few of them their number is set; None: as long as they take.
        recipe: how steps are made; None: `VerbaliserRecipe()`.
        selecting: how many labels select, at most a sixth of all.
        measured: how many labels measure, at most a sixth of all.
        seed: fixes whatever is drawn.
        folder: where checkpoints and the verbaliser are saved; None: nowhere.
        progress: called with how many steps are done, and how many there are.
        heard: called with a step and the loss on held-out labels, in nats per token.

    Raises LenscopeError, before the model runs, for vectors and labels that do not go together, numbers out of range,
    too few labels, and a folder of another run.
    """
    recipe = VerbaliserRecipe() if recipe is None else recipe
    steps, selecting = count(steps, "steps", 1), count(selecting, "selecting", 1)
    measured = count(measured, "measured", 1)
    if minutes is not None and not 0 < minutes < float("inf"):
        raise LenscopeError(f"minutes {minutes}: give a number above 0")
    source = lm if source_lm is None else source_lm
    h, layers = _vectors(vectors, layers, source)
    if not pooled and not layers:
        raise LenscopeError("pooled False: each layer has weights of its own, and these vectors have no layers")
    center = _center(center, layers, h)
    (target_layer,) = check_layers((target_layer,), lm.n_layers, lm.name)
    texts = _texts(labels, len(h), end)
    target = meaning_target(lm) if target is None else target
    read = PatchedLabels(lm, target, target_layer, op)
    given = dict.fromkeys(texts)
    ids = dict(zip(given, lm.encoder.answer_ids(read.prompt, [text + end for text in given]), strict=True))
    rows = LabelledVectors(h.to(lm.device), [ids[text] for text in texts], texts)
    read.require_room(rows.tokens)
    parts = _label_parts(texts, selecting, measured, seed)
    train, select, measure = (rows.rows(part) for part in parts)
    # a label that is most of the rows has none to be exchanged with, which shows before the model is trained
    derange(measure.labels, seed)
    norm = read.norm()
    weights = MapWeights(
        shape, (h.shape[-1], lm.hidden_size), rank=rank, normalize=normalize, layers=None if pooled else len(layers),
        norm=norm, length=float(train.h.norm(dim=-1).mean()), scale=recipe.scale,
        like=torch.zeros(0, dtype=torch.promote_types(lm.dtype, torch.float32), device=lm.device), seed=seed,
    )  # fmt: skip
    if folder is not None:
        # what no file can hold shows before the model is trained
        for used in (op, *(edit.op for edit in read.fixed)):
            name_of_operation(used)
    me = model_identity(lm)
    identity = me if source_lm is None else model_identity(source)
    settings: dict[str, Any] = {
        "model": me["model_hash"],
        "source": identity["model_hash"],
        "data": _digest(texts, h, *(edit.vector for edit in read.fixed)),
        "target": [list(read.prompt.ids), list(read.slots), target_layer, getattr(op, "__name__", type(op).__name__)],
        "shape": [shape, rank, normalize, pooled],
        "layers": list(layers),
        "recipe": asdict(recipe),
        "steps": steps,
        "minutes": minutes,
        "held_out": [len(set(select.labels)), len(set(measure.labels))],
        "end": end,
        "seed": seed,
    }
    # the prompt as tokens, so that a file holds the very same
    target = Target(read.prompt, at=list(read.slots), below=target.below, edits=read.fixed)

    def verbaliser(report: dict[str, Any]) -> Verbaliser:
        trained = weights.map(run.at.best, layers)
        stop = (end,) if end else ()
        return Verbaliser(trained, target, target_layer, me, op, stop, layers, center, identity, report)

    run = VerbaliserRun(read, weights, train, select, recipe, steps=steps, minutes=minutes, seed=seed)
    place = None if folder is None else Path(folder)
    if place is not None and (place / CONFIG).exists():
        return _finished(place, settings, lm, source_lm)
    try:
        run.go(None if place is None else place / "checkpoint", settings, progress, heard)
        measures = measured_report(run, measure, norm, seed)
    except KeyboardInterrupt as stop:
        raise VerbaliserInterrupted(verbaliser({**settings, "finished": False, **_steps_of(run)})) from stop
    report = {
        **settings,
        "rows": dict(zip(("trained", "selecting", "measured"), map(len, parts), strict=True)),
        **_steps_of(run),
        "measured": measures,
        "model": provenance(lm),
    }
    # as JSON has it, so that what is returned equals what is read again
    trained = verbaliser(json.loads(json.dumps(report)))
    if place is not None:
        trained.save(place)
        rmtree(place / "checkpoint", ignore_errors=True)
    return trained


def _steps_of(run: VerbaliserRun) -> dict[str, Any]:
    """What a run says of its steps."""
    at = run.at
    held = [{"step": int(step), "loss": loss} for step, loss in at.held_out]
    return {"steps_made": at.step, "seconds": round(at.seconds, 1), "held_out_loss": held, "losses": at.losses}


def _finished(folder: Path, settings: dict[str, Any], lm: LM, source_lm: LM | None) -> Verbaliser:
    """The verbaliser that a run left in a folder; LenscopeError for one of another run, or anything else."""
    there = load_verbaliser(folder, lm, source_lm)
    was, own = there.model.get("dtype"), dtype_name(lm.dtype)
    # the model is the same one in another dtype too, but the run is not
    if was not in (None, own):
        raise LenscopeError(
            f"{folder}: holds a verbaliser of another run, with another dtype ({was}, not {own}); give another folder"
        )
    wanted = json.loads(json.dumps(settings))
    other = next(
        (name for name, value in wanted.items() if name not in ("model", "source") and there.report.get(name) != value),
        None,
    )
    if other is not None:
        raise LenscopeError(
            f"{folder}: holds a verbaliser of another run, with another {other.replace('_', ' ')}; give another folder"
        )
    return there


def _vectors(given: Tensor | HiddenStates, layers: Sequence[int] | None, source: LM) -> tuple[Tensor, tuple[int, ...]]:
    """Vectors (N, L, D) in float32 or float64, and the layers that they were read at; () for none."""
    if isinstance(given, HiddenStates):
        if given.tensor.shape[2] != 1:
            raise LenscopeError(
                f"vectors: hidden states of {given.tensor.shape[2]} positions of a prompt; read one position of each"
            )
        if layers is not None and tuple(layers) != given.layers:
            raise LenscopeError(f"layers {list(layers)}: the hidden states are of {list(given.layers)}; leave it out")
        h, layers = given.tensor[:, :, 0], given.layers
    else:
        h = as_vectors(given, "vectors")
        if h.ndim not in (2, 3) or not h.numel():
            raise LenscopeError(f"vectors of shape {tuple(h.shape)}: give (N, D), or (N, L, D) with L layers")
        h = h[:, None] if h.ndim == 2 else h
    known = () if layers is None else check_layers(tuple(layers), source.n_layers, source.name)
    if h.shape[1] != max(1, len(known)) or len(set(known)) < len(known):
        raise LenscopeError(f"layers {list(known)}: vectors of {h.shape[1]} layers; name each of them, once")
    if h.shape[-1] != source.hidden_size:
        raise LenscopeError(
            f"vectors of {h.shape[-1]} numbers: states of {source.name} have {source.hidden_size}; give source_lm, the "
            "model that they come from"
        )
    if not torch.isfinite(h).all():
        bad = int((~torch.isfinite(h)).flatten(1).any(1).nonzero()[0])
        raise LenscopeError(f"vectors: number {bad} holds NaN or infinity; leave it out, with its label")
    return h.detach().to(torch.promote_types(h.dtype, torch.float32)), known


def _center(center: Tensor | None, layers: tuple[int, ...], h: Tensor) -> Tensor | None:
    if center is None:
        return None
    center = as_vectors(center, "center")
    center = center[None] if center.ndim == 1 else center
    if not layers or center.shape != (len(layers), h.shape[-1]) or not torch.isfinite(center).all():
        raise LenscopeError(
            f"center of shape {tuple(center.shape)}: give finite numbers, ({h.shape[-1]},) or one for each of the "
            f"{len(layers)} layers that the vectors were read at"
        )
    return center.detach().float().cpu()


def _texts(labels: Sequence[str], rows: int, end: str) -> list[str]:
    """The labels, without the text that ends them."""
    if isinstance(labels, str):
        raise LenscopeError("labels: is one text; give one for each vector")
    if len(labels) != rows:
        raise LenscopeError(f"labels: {len(labels)} for {rows} vectors; give one for each")
    if not isinstance(end, str):
        raise LenscopeError(f"end {end!r}: give a text, or '' where nothing ends a label")
    texts = []
    for n, label in enumerate(labels):
        text = (label.replace(end, "") if end else label).strip() if isinstance(label, str) else ""
        if not text:
            raise LenscopeError(f"labels: number {n}, {label!r}, is no text, or nothing but {end!r}; leave it out")
        texts.append(text)
    return texts


def _label_parts(
    texts: Sequence[str], selecting: int, measured: int, seed: int
) -> tuple[list[int], list[int], list[int]]:
    """Rows to train on, to select with and to measure with: whole labels, at random."""
    own = sorted(set(texts))
    if len(own) < 6 * FEWEST:
        raise LenscopeError(f"labels: {len(own)} differ, and {2 * FEWEST} are held out; give at least {6 * FEWEST}")
    order = random.Random(f"labels {seed}").sample(own, len(own))
    first = max(FEWEST, min(selecting, len(own) // 6))
    second = first + max(FEWEST, min(measured, len(own) // 6))
    side = {label: 1 if n < first else 2 if n < second else 0 for n, label in enumerate(order)}
    train, select, measure = ([n for n, text in enumerate(texts) if side[text] == part] for part in range(3))
    return train, select, measure


def _digest(texts: Sequence[str], *tensors: Tensor) -> str:
    total = hashlib.sha256(json.dumps(list(texts)).encode())
    for t in tensors:
        total.update(t.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return f"sha256:{total.hexdigest()}"
