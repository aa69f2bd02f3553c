"""Fitting a Jacobian lens: for each layer the mean Jacobian of the last state by that layer's, with its error.

Knows: what is checked before a run, when enough text was read, what a fitted Jacobian lens says of itself.
Does not know: how Jacobians are had (jacobian_passes.py) and summed (jacobian_run.py), what shrinkage does.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lenscope.distributed.layer_owners import LayerOwners
from lenscope.distributed.processes import Group, joined
from lenscope.distributed.sharding import described, is_sharded, text_share
from lenscope.errors import LenscopeError
from lenscope.files.kinds import CONFIG
from lenscope.files.writing import folder_lock
from lenscope.fitting.jacobian_measuring import JacobianMeasures
from lenscope.fitting.jacobian_passes import LayerGraphs
from lenscope.fitting.jacobian_run import JacobianRun, Targets, low_products
from lenscope.fitting.jacobian_sums import SUMS, JacobianSums
from lenscope.fitting.larger_than_memory import require_streamed_fit
from lenscope.fitting.streamed_jacobian import StreamedJacobianRun, require_streamed_settings
from lenscope.mappings.mapping import Affine, Pair, load_mapping
from lenscope.models.language_model import LM
from lenscope.models.load_options import dtype_name
from lenscope.models.precision import low_precision
from lenscope.models.progress import Progress
from lenscope.text.corpus import Corpus
from lenscope.text.documents import Data

# Tokens of a prompt, and how many at its start are neither source nor target: those of Gurnee et al. 2026.
LENGTH, SKIP = 128, 16
# Tokens that are read by default: 100 prompts, at which they say that their lens saturates.
TOKENS = 100 * LENGTH
RULES = ("gradient", "relp")
# How often: after so many prompts of each half, and then each time that there are a quarter more.
FIRST, MORE = 2, 1.25


def fit_jacobian_lens(
    lm: LM,
    data: "Data | Corpus | None" = None,
    *,
    tokens: int = TOKENS,
    until: float | None = None,
    targets: str = "later",
    target_layer: int | None = None,
    rule: str = "gradient",
    part: tuple[int, int] = (1, 1),
    shrink: bool = True,
    held_out: float = 0.1,
    length: int = LENGTH,
    skip: int = SKIP,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    report_error: Callable[[float], None] | None = None,
) -> Affine:
    """Fit a Jacobian lens on text: J_l = mean over prompts and positions t of Σ_{t' ≥ t} ∂h_final[t'] / ∂h_l[t].

    The lens is that of Gurnee et al. 2026: unembed(J_l h) says what a state h of layer l disposes the model to say
    now and later. Each row of text is a prompt. Its sources t and targets t' are the positions that count: not the
    first `skip`, not marks between documents, and not the last one. All of a prompt's Jacobians, of all layers,
    come from D cotangents on the graph of one run, without gradients of weights. Before the first row counts, its
    gradients are compared with finite differences.

    The documents are parted into two halves, with a lens each. How far the two agree on documents that were not fitted
    is the error of the lens: `report["layers"]` has, by layer, the share of positions with the same top token
    ("top1"), the share of the ten most probable tokens that both have ("top10"), and the cosine of the centred logits
    ("cosine"), each with its 95 % interval over documents; and KL(model ‖ lens) in nats as for a tuned lens. The whole
    lens, of twice as many prompts, errs less than the halves differ.

    Each layer's estimate may be drawn towards a cheaper one (`report["shrinkage"]`): the layers beside it, or least
    squares of the last state on the layer's; how far is chosen by the two halves, and it is done only where held-out
    prompts say, with 95 %, that it brings the lens nearer to their Jacobians.

    With a `folder` the sums of both halves are saved in it once a minute, and a further call goes on from them, also
    one with more `tokens`, or with other text. No prompt counts twice: texts are known by their content, and what has
    rows in common with what was read is refused. Lenses of different text are joined by `merge_jacobian_lenses`.
    Processes that torchrun started share the rows. Each process holds 12 L D² bytes of sums, and twice that if there
    are several.

    A model whose weights are streamed from disk (`lenscope.models.load_streamed`) is differentiated block by block, a
    row in two readings of its weights. Gradients of the row that is on the way are in the folder; a killed run goes on
    within it. `progress` then counts blocks of rows. Refused are targets "same", the rule "relp", and models that pass
    more from block to block than the stream.

    Args:
        lm: the model that the lens is of, in eval mode.
        data: the text, as `Corpus.open` takes it, or a Corpus; None: what the model itself writes.
        tokens: how many tokens of it are read, at most, over both halves.
        until: reading stops when the cosine between the halves' readouts, the least of all layers, is at least this.
        targets: "later" sums over t' ≥ t; "same" has t' = t alone, from 8 positions of each prompt.
        target_layer: the layer whose states are differentiated; None: the last. The one before the last may be better
            conditioned; it is read as if it were the last.
        rule: "gradient", or "relp": norms and attention patterns are constants in the backward pass (an R-lens).
        part: (k, n): of every n rows this run reads the k-th, so that n runs, merged, read the text once.
        shrink: whether layers may be drawn towards cheaper estimates.
        held_out: the fraction of the documents that is not fitted.
        length: tokens of a prompt.
        skip: how many positions at a prompt's start count neither as source nor as target.
        seed: fixes whatever is drawn.
        folder: where sums and the lens are saved; None: nowhere.
        progress: called with how many tokens are read, and how many there are.
        report_error: called with the least cosine of all layers whenever the halves were compared.

    Raises LenscopeError, before text is read, for numbers out of range, text that is too short, a model in training
    mode, one whose gradients are not those of finite differences, and for a folder of another run, or of other rows of
    the same text.
    """
    last = lm.n_layers if target_layer is None else target_layer
    require_settings(lm, tokens, until=until, target_layer=last, targets=targets, rule=rule, part=part)
    began = time.perf_counter()
    require_length("length", *((data.length, data.skip) if isinstance(data, Corpus) else (length, skip)))
    corpus = data if isinstance(data, Corpus) else Corpus.open(lm, data, length=length, skip=skip, seed=seed)
    if lm.runner.stream is not None:
        require_streamed_fit(lm, corpus, folder, "gradients of a row")
    text, held = corpus.split(held_out)
    # whatever is wrong with the text shows before the model runs
    rows = rows_of_halves(text, tokens, part[1])
    me, made_with = described(lm)
    settings = {
        "model": me["model_hash"], "length": corpus.length, "skip": corpus.skip, "seed": corpus.seed,
        "held_out": held_out, "targets": targets, "target_layer": last, "rule": rule,
        "products": dtype_name(low_precision(lm) or lm.dtype),
    }  # fmt: skip
    with joined(lm.device) as group, _alone_in(folder, group):
        share = text_share(lm, group)
        where = None if folder is None else Path(folder) / SUMS
        sums = _sums_in(lm, settings, where)
        run = make_run(lm, text, sums, (part[0] - 1, part[1]), share)
        run.go_on(folder)
        each = 2 * part[1] * corpus.length
        if isinstance(run, StreamedJacobianRun):
            each = 2 * last
            assert where is not None
            run.begin(where, lambda blocks: advance(run.done, blocks))
        measures = JacobianMeasures.read(lm, held, LayerOwners(lm.n_layers, group, share))

        def advance(done: int, blocks: int = 0) -> None:
            if progress is not None and group.rank == 0:
                progress(each * done + blocks, each * rows)

        compared = until is not None or report_error is not None

        def agreed() -> bool:
            least = measures.least_cosine(sums)
            if report_error is not None and group.rank == 0:
                report_error(least)
            return until is not None and least >= until

        # what earlier runs read may be enough
        enough = compared and 0 < run.done < rows and min(sums.prompts) > 0 and agreed()
        for stop in [] if enough else _stops(run.done, rows, compared):
            run.read(stop, where, advance)
            if compared and agreed():
                break
        matrices, layers, drawn, about = measures.lens(
            sums, run.rows_of if shrink else None, corpus.seed, run.room_for_lens()
        )
        report = {
            "lens": "R-lens" if rule == "relp" else "Jacobian lens",
            **sums.settings,
            "corpus": text.provenance(),
            "prompts": sum(sums.prompts),
            "tokens": sum(sums.prompts) * corpus.length,
            "until": until,
            "held_out": about,
            "layers": layers,
            "shrinkage": drawn,
            "processes": group.world,
            "seconds": round(time.perf_counter() - began, 1),
            "made_with": made_with,
        }
        lens = jacobian_lens_of(matrices, me, group.from_first(report))
        if folder is not None:
            if group.rank == 0:
                lens.save(folder)
            group.barrier()
        if isinstance(run, StreamedJacobianRun) and folder is not None:
            run.end()
            # mapped from its file
            loaded = load_mapping(folder)
            assert isinstance(loaded, Affine)
            lens = loaded
    return lens


def make_run(lm: LM, text: Corpus, sums: JacobianSums, part: tuple[int, int], group: Group) -> JacobianRun:
    """What reads a text on and adds to some sums, as their settings say."""
    second, first = text.split(0.5)
    if lm.runner.stream is not None:
        return StreamedJacobianRun(lm, (first, second), sums, part)
    last, rule = sums.settings["target_layer"], sums.settings["rule"]
    graphs = LayerGraphs(lm, range(last), last, low_products(lm, sums), rule == "gradient")
    return JacobianRun(lm, (first, second), graphs, Targets(sums.settings["targets"]), sums, part, group, _rule(rule))


def rows_of_halves(text: Corpus, tokens: int, parts: int, all_there: bool = True) -> int:
    """How many rows of each half one of several parts of a text reads, for so many tokens over all parts and halves.

    Args:
        text: both halves.
        tokens: what is wanted, rounded up to rows.
        parts: how many parts there are.
        all_there: raise LenscopeError, which says how many tokens there are, for text that ends before; else fewer rows
            are read of it.
    """
    wanted = max(1, ceil(tokens / (2 * text.length * parts)))
    if text.documents is None:
        return wanted
    there = min(_rows_there(half, wanted * parts) for half in text.split(0.5))
    rows = min(wanted, there // parts)
    in_half = f"{text.name} has {there} rows of {text.length} tokens in the shorter of the two halves that are fitted"
    if not rows:
        raise LenscopeError(f"parts {parts}: {in_half}; give more text, or at most {there} parts")
    if all_there and rows < wanted:
        raise LenscopeError(
            f"tokens {tokens}: {in_half} (epochs {text.epochs}); give more text, at most "
            f"{2 * rows * parts * text.length} tokens, or epochs {ceil(text.epochs * wanted * parts / there)}"
        )
    return rows


def _rows_there(half: Corpus, wanted: int) -> int:
    """How many rows a half of a text has, counted up to those wanted; LenscopeError where it has none."""
    there = 0
    for batch in half.batches(None, 256):
        there = batch.next_row
        if there >= wanted:
            break
    return there


def require_length(name: str, length: int, skip: int) -> None:
    """Raise LenscopeError, about the option of this name, for rows in which no position can be a source."""
    if length < skip + 2:
        raise LenscopeError(
            f"{name} {length}: the first {skip} positions of a prompt and its last one do not count; give at least "
            f"{skip + 2}"
        )


def jacobian_lens_of(matrices: Tensor, model: dict[str, Any], report: dict[str, Any]) -> Affine:
    """Matrices (n_layers, D, D) as a lens from every layer of a model to its last, without biases."""
    last = len(matrices)
    weights: dict[Pair, tuple[Tensor, ...]] = {(n, last): (matrices[n].float().cpu(),) for n in range(last)}
    return Affine(weights, model, model, report)


def require_settings(
    lm: LM,
    tokens: int,
    *,
    until: float | None,
    target_layer: int | None,
    targets: str,
    rule: str,
    part: tuple[int, int],
) -> None:
    """Raise LenscopeError for settings of a fit, as `fit_jacobian_lens` takes them, that are out of range."""
    last = lm.n_layers if target_layer is None else target_layer
    Targets(targets)
    if tokens < 1:
        raise LenscopeError(f"tokens {tokens}: give at least 1")
    if until is not None and not 0 < until < 1:
        raise LenscopeError(f"until {until}: is a cosine; give a number between 0 and 1, such as 0.98")
    if type(last) is not int or not 1 <= last <= lm.n_layers:
        raise LenscopeError(f"target_layer {last!r}: {lm.name} has layers 1–{lm.n_layers} to aim at")
    if rule not in RULES:
        raise LenscopeError(f"rule {rule!r}: there are {', '.join(RULES)}")
    number, count = part
    if not 1 <= number <= count:
        raise LenscopeError(f"part {number}/{count}: give k/n with k from 1 to n, such as 1/2")
    if lm.runner.stream is not None:
        require_streamed_settings(f"{lm.name}: its weights are streamed from disk;", targets, rule)
    if is_sharded(lm) and (rule, targets) != ("gradient", "later"):
        raise LenscopeError(
            f"rule {rule!r}, targets {targets!r}: {lm.name} is split among processes; give rule 'gradient' and targets "
            "'later'"
        )


def _sums_in(lm: LM, settings: dict[str, Any], where: Path | None) -> JacobianSums:
    """The sums that a folder has, else none yet."""
    if where is not None and JacobianSums.exists(where):
        sums = JacobianSums.load(where)
        # products in 16 bits are faster, where gradients come out nearly the same: sums without them go on so
        if sums.settings.get("products") == dtype_name(lm.dtype):
            settings = {**settings, "products": sums.settings["products"]}
        sums.require_settings(settings, where.parent)
        sums.total = sums.total.to(lm.device)
        return sums
    if where is not None and (where.parent / CONFIG).exists():
        raise LenscopeError(f"{where.parent}: has a {CONFIG} of something else; give another folder")
    size = lm.hidden_size
    total = torch.zeros(2, settings["target_layer"], size, size, device=lm.device)
    return JacobianSums(total, [0, 0], settings)


def _stops(done: int, rows: int, often: bool) -> list[int]:
    """After how many rows of each half reading pauses; the last is all of them."""
    stops, at = [], float(FIRST)
    while often and at < rows:
        if at > done:
            stops.append(int(at))
        at = max(at + 1, at * MORE)
    return [*stops, rows]


def _rule(name: str) -> Callable[[LM], AbstractContextManager[object]] | None:
    if name == "gradient":
        return None
    from lenscope.models.relevance_rules import relp_rules

    return relp_rules


@contextmanager
def _alone_in(folder: str | Path | None, group: Group) -> Iterator[None]:
    """Only this run writes to its folder within the block, which its first process sees to."""
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    with nullcontext() if folder is None or group.rank else folder_lock(folder):
        yield
