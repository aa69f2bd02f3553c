"""Fitting a tuned lens: an affine translator per layer of a frozen model, trained to predict what the model predicts.

Knows: recipes, what is held out and what for, which candidate each layer keeps, what a fitted lens says of itself.
Does not know: how a run reads and steps (training.py), the loss (objective.py), files (mappings.py).
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from shutil import rmtree
from typing import Any, final

import torch
from torch import Tensor

from lenscope.artifacts import CONFIG
from lenscope.corpus import Corpus, TokenBatch
from lenscope.distributed import Group, described, is_sharded, joined
from lenscope.documents import Data
from lenscope.errors import LenscopeError
from lenscope.mappings import Affine, PairMapping
from lenscope.model import LM
from lenscope.moments import with_constant
from lenscope.objective import Objective, fast_products, low_precision
from lenscope.optimizers import MakeOptimizer, Muon, Nesterov, Units
from lenscope.reduction import reduce
from lenscope.schedule import TOGETHER, Schedule
from lenscope.training import Block, Training, some_rows

# Bytes for the states of a block of text, from which the tokens of steps are drawn.
ROOM = 1 << 29
# Held-out tokens that choose, and as many of which every second one measures.
HELD_OUT = 1024
# Columns of the vocabulary by which candidates are compared.
COMPARED = 4096
# Bytes of translated states that are measured together.
MEASURED = 32 << 20

# progress(tokens read, tokens in all)
Progress = Callable[[int, int], None]


@final
@dataclass(frozen=True)
class Recipe:
    """How translators are made. `start` is "ridge", least squares onto the last layer, or "identity".

    `optimizer` makes what changes them then, from their weights (D + 1, D), the bias being the last row, their KL and
    their units; None: nothing does. A step takes `tokens_per_step` tokens and `columns` of the vocabulary (None: all).
    With `bias_only` the matrices stay as they are at the start. The `loss` is "kl", KL(model ‖ lens), or
    "cross_entropy" of the token that comes next, over the whole vocabulary; `best` keeps, layer by layer, what has the
    lowest KL on held-out text of identity, start and result.
    """

    start: str = "ridge"
    optimizer: MakeOptimizer | None = Muon
    tokens_per_step: int = 512
    columns: int | None = 3072
    bias_only: bool = False
    loss: str = "kl"
    best: bool = True

    def __post_init__(self) -> None:
        if self.start not in ("ridge", "identity"):
            raise LenscopeError(f"start {self.start!r}: give 'ridge' or 'identity'")
        if self.loss not in ("kl", "cross_entropy"):
            raise LenscopeError(f"loss {self.loss!r}: give 'kl' or 'cross_entropy'")
        if self.loss == "cross_entropy" and self.columns is not None:
            raise LenscopeError(f"columns {self.columns}: cross-entropy takes the whole vocabulary; give columns=None")
        if self.tokens_per_step < 1 or (self.columns is not None and self.columns < 2):
            raise LenscopeError(
                f"tokens_per_step {self.tokens_per_step}, columns {self.columns}: give at least 1 token and 2 columns"
            )


# name → recipe: the default; its closed form alone; a bias per layer (Belrose et al. 2023, Eq. 7); and their published
# recipe: identity, SGD with Nesterov momentum, all columns, 262,144 tokens a step (250 steps are 65.5M tokens), also
# with their other loss
PUBLISHED = Recipe("identity", Nesterov, tokens_per_step=1 << 18, columns=None, best=False)
RECIPES = {
    "muon": Recipe(),
    "ridge": Recipe(optimizer=None),
    "bias": Recipe("identity", partial(Muon, lr=1.0, most=1.0), bias_only=True),
    "published": PUBLISHED,
    "published-ce": replace(PUBLISHED, loss="cross_entropy"),
}


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
    once, in rows of `length`. A fraction `held_out` of the documents is not fitted: of its tokens one part chooses
    what each layer keeps, another measures `report["layers"]`: KL(model ‖ lens) in nats with `lens` and with the logit
    lens, so that no layer is worse than it. Weights are float32 whatever the model's dtype.

    Memory: `room` bytes of states, of all processes together, but at least 8 rows of text; plus 16 · n_layers · D²
    bytes for weights, momentum and moments. Processes that torchrun started share the text and take the same steps as
    one would. With a `folder` (one that all processes see) the run leaves a checkpoint in it after each block of text,
    and goes on from there when it is called again, on any number of processes; at the end the lens is saved there.
    Raises LenscopeError, before the model runs, for text that is too short, recipes that do not exist, and numbers out
    of range; and for a folder of another run.
    """
    named, recipe = _found(recipe)
    if tokens < 1 or room < 1:
        raise LenscopeError(f"tokens {tokens}, room {room}: give at least 1")
    began = time.perf_counter()
    corpus = data if isinstance(data, Corpus) else Corpus.open(lm, data, length=length, seed=seed)
    text, held = corpus.split(held_out)
    if text.documents is None and is_sharded(lm):
        raise LenscopeError(f"{text.name}: processes that share a model's weights cannot write on their own; give text")
    digest = _digest(text, tokens)
    me, made_with = described(lm)
    with joined(lm.device) as group, torch.no_grad():
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
        run = Training(lm, text, plan, group, seed=seed, low=low, progress=progress)
        with run.timed("held-out text"):
            choosing, measuring, held_tokens = _held_out(lm, held, group)
            select = _block(lm, choosing, held.length, low)
        make = partial(_make, recipe, fast_products(lm))
        checkpoint = None if folder is None else Path(folder) / "checkpoint"
        # a run that was killed while it wrote its first one leaves a folder without
        begun = checkpoint is not None and (checkpoint / CONFIG).exists()
        optimizer = run.load(checkpoint, settings, make) if checkpoint is not None and begun else None
        aim = partial(Objective, lm, columns=recipe.columns, seed=seed, low=low, next_token=recipe.loss != "kl")
        objective = None if optimizer is None else aim(mean=run.mean)
        for block in run.blocks():
            if not run.constants:
                run.find_sizes(block)
            if ridge and run.number < plan.warm:
                with run.timed("closed form"):
                    run.gather(block)
            if run.number == plan.warm - 1:
                with run.timed("closed form"):
                    run.close(select) if ridge else run.identity()
                    run.find_mean(block)
                    objective = aim(mean=run.mean)
                    kl = torch.zeros(lm.n_layers)
                    if recipe.optimizer is not None:
                        (kl,) = run.held_out_kl(select, [run.weights], objective)
                    optimizer = make(run.weights, kl.tolist(), run.units)
            if recipe.optimizer is not None and optimizer is not None and objective is not None:
                with run.timed("steps"):
                    run.take_steps(block, objective, optimizer, recipe.bias_only)
            run.number += 1
            if checkpoint is not None and optimizer is not None and run.number < plan.blocks:
                run.save(checkpoint, settings, optimizer)
            del block
        with run.timed("measuring"):
            measure = _block(lm, measuring, held.length, None)
        chosen, layers = _choose(run, recipe, select, measure)
        report = {
            "lens": "tuned lens",
            **settings,
            "recipe": {"name": named, **_told(recipe)},
            "tokens": plan.rows * plan.length,
            "steps": run.step,
            "loss": run.loss,
            "held_out": {"corpus": held.provenance(), "tokens": held_tokens},
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


def other_run(
    lens: PairMapping, lm: LM, corpus: Corpus, *, tokens: int, recipe: str, held_out: float, seed: int
) -> str:
    """In what a fitted lens is not of this run; "" where it is what the run would give."""
    try:
        lens.check(lm, lm)
    except LenscopeError:
        return "another model"
    text = corpus.split(held_out)[0]
    rows = ceil(tokens / text.length) * text.length
    here = {"recipe": recipe, "seed": seed, "tokens": rows, "corpus": text.provenance()}
    fitted = {**lens.report, "recipe": (lens.report.get("recipe") or {}).get("name")}
    for name, value in here.items():
        was = fitted.get(name)
        if json.dumps(was, sort_keys=True) != json.dumps(value, sort_keys=True):
            return "other text" if name == "corpus" else f"{name} {was}, not {value}"
    return ""


def _found(recipe: str | Recipe) -> tuple[str, Recipe]:
    """A recipe and what it is called."""
    if isinstance(recipe, Recipe):
        return next((name for name, known in RECIPES.items() if known == recipe), "own"), recipe
    if recipe not in RECIPES:
        raise LenscopeError(f"recipe {recipe!r}: there are {', '.join(RECIPES)}")
    return recipe, RECIPES[recipe]


def _make(
    recipe: Recipe, low: torch.dtype | None, weights: list[Tensor], kl: Sequence[float], units: Sequence[Units]
) -> Any:
    # where products are made in 16 bits, Muon's may be too
    made = partial(Muon, low=low) if recipe.optimizer is Muon else recipe.optimizer or Muon
    return made(weights, kl, units)


def _told(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON values."""
    made: Any = recipe.optimizer
    name = getattr(made, "__name__", type(made).__name__)
    if isinstance(made, partial):
        given = [*map(repr, made.args), *(f"{key}={value!r}" for key, value in made.keywords.items())]
        name = f"{getattr(made.func, '__name__', made.func)}({', '.join(given)})"
    return {**vars(recipe), "optimizer": None if made is None else name}


def _digest(text: Corpus, tokens: int) -> str | None:
    """The SHA-256 of the token ids that will be read: whatever is wrong with the text shows before the model runs."""
    if text.documents is None:
        return None
    digest = None
    # one batch after the other: all of them would be 61 bytes a token
    for batch in text.batches(tokens, 256):
        digest = batch.digest
    return digest


def _held_out(lm: LM, held: Corpus, group: Group) -> tuple[list[TokenBatch], list[TokenBatch], list[int]]:
    """Held-out text that chooses, and text that measures: this process's share of the rows, and all their tokens."""
    rows = -(-HELD_OUT // held.length)
    wanted = 2 * rows
    parts: tuple[list[TokenBatch], list[TokenBatch]] = ([], [])
    tokens = wanted * held.length if held.documents is None else None
    try:
        for batch in held.batches(tokens, max(1, TOGETHER // group.world), rank=group.rank, world=group.world):
            for parity, part in enumerate(parts):
                # alternate rows, so that both parts have some of every document
                part.append(some_rows(batch, (batch.row < wanted) & (batch.row % 2 == parity)))
            # neighbours say much the same: every second position measures, of twice as many rows for the same work
            parts[1][-1].counted[:, ::2] = False
            if batch.next_row >= wanted:
                break
        counts = torch.tensor([sum(int(batch.counted.sum()) for batch in part) for part in parts], device=lm.device)
        group.sum([counts])
        if not counts.all():
            raise LenscopeError(f"{held.name}: has no second row of {held.length} tokens to measure on")
    except LenscopeError as error:
        raise LenscopeError(
            f"held-out text: {error} (held_out is the fraction of the documents that is not fitted)"
        ) from error
    return *parts, counts.tolist()


def _block(lm: LM, batches: list[TokenBatch], length: int, low: torch.dtype | None) -> Block:
    block = Block(lm, sum(len(batch.row) for batch in batches), length, low)
    for batch in batches:
        block.read(batch)
    return block


def _choose(run: Training, recipe: Recipe, select: Block, measure: Block) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """What each layer keeps, and how good it is on the measuring text."""
    lm = run.lm
    plain = torch.eye(lm.hidden_size + 1, lm.hidden_size, device=lm.device)
    candidates = {"identity": [plain] * lm.n_layers, "start": run.start}
    if recipe.optimizer is not None:
        candidates["steps"] = run.weights
    best = [list(candidates)[-1]] * lm.n_layers
    if recipe.best:
        with run.timed("choosing"):
            compare = Objective(lm, run.mean, COMPARED, run.seed, run.low)
            kl = run.held_out_kl(select, list(candidates.values()), compare)
            best = [list(candidates)[int(n)] for n in kl.nan_to_num(torch.inf, torch.inf).argmin(0)]
    kept = [candidates[name][layer] for layer, name in enumerate(best)]
    with run.timed("measuring"):
        kl, own = _measured(run, measure, [kept, candidates["identity"]]).tolist()
    for layer in range(lm.n_layers):
        if recipe.best and not kl[layer] <= own[layer]:
            best[layer], kept[layer], kl[layer] = "identity", plain, own[layer]
    told = enumerate(zip(kl, own, best, strict=True))
    return kept, [{"layer": n, "kl": kl, "kl_logit_lens": own, "kept": name} for n, (kl, own, name) in told]


def _measured(run: Training, block: Block, lenses: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean KL(model ‖ lens), (lenses, n_layers), over the whole vocabulary in the model's own precision."""
    lm = run.lm
    sums = torch.zeros(len(lenses) * lm.n_layers, dtype=torch.float64)
    y = block.last[block.counted]
    if len(y):
        at = [(n, layer) for n in range(len(lenses)) for layer in range(lm.n_layers)]
        # the model's own distribution is made once for as many layers as are held together
        for some in torch.arange(len(at)).split(max(1, MEASURED // (y.numel() * lm.dtype.itemsize))):
            mapped = torch.stack([_mapped(run, block, layer, lenses[n][layer]) for n, layer in (at[k] for k in some)])
            sums[some] = reduce(lm.readout, lm.vocab_size, mapped, y, None, 1, False).kl.double().sum(-1).cpu()
    count = block.counted.sum()
    sums = sums.to(lm.device)
    run.group.sum([sums, count])
    return (sums / count).cpu().view(len(lenses), -1)


def _mapped(run: Training, block: Block, layer: int, weights: Tensor) -> Tensor:
    return (with_constant(block.states[layer][block.counted], run.constants[layer]) @ weights).to(run.lm.dtype)
