"""The commands of tuned lenses: fit one, measure it beside others, hand it on; and how lenses are named there.

Knows: which text is read where none is given, when a folder may be written to, what an interrupted run leaves.
Does not know: how lenses are fitted (tuning.py) or measured (evaluating.py).
"""

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from lenscope.cli.given import is_plain_text, known_lens, known_model, known_text, make_folder, named, only, writable
from lenscope.cli.options import (
    DEFAULT_MODEL,
    AsJson,
    Attention,
    Device,
    Dtype,
    Model,
    Revision,
    Stopped,
    Transferred,
    amount,
    headline,
    load_model,
    numbers,
    resolve,
)
from lenscope.cli.screen import Screen, counted, show
from lenscope.cli.streams import flush, print_json, tell
from lenscope.errors import LenscopeError
from lenscope.visible_text import plain

if TYPE_CHECKING:
    from lenscope.mappings.mapping import PairMapping
    from lenscope.models.language_model import LM
    from lenscope.text.corpus import Corpus

TUNED = "A fitted lens: folder, file or hub repository; default: the logit lens."
# tokens that are read where none are asked for: to fit, to measure, and to measure every lens on every layer
FITTED, MEASURED, CROSSED = 200_000, 8192, 2048
# lines of the table that a fit ends with, layers of a matrix of layers by layers
LINES, CROSSED_LAYERS = 12, 10

Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data", "-d", help="Text: file, folder, pattern or hub data set; may be repeated for files. Default: the "
        "model's own samples."
    ),
]  # fmt: skip
Field = Annotated[
    str | None, typer.Option(help="The field or column of the data that has the text; default: text.")
]  # fmt: skip
Length = Annotated[int | None, typer.Option(help="Tokens per row; default: 512, or the model's context.")]
Seed = Annotated[int, typer.Option(help="Of the order of the text, what is held out, samples and resamples.")]


def fit(
    output: Annotated[str, typer.Option("-o", "--output", help="The folder for the lens, and for what resumes it.")],
    data: Data = None,
    field: Field = None,
    tokens: Annotated[
        str | None, typer.Option(help="How many tokens are read, such as 200k; default: 200k, or all where less.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="How often the text is read; default: once.")] = None,
    recipe: Annotated[str, typer.Option(help="muon, ridge, bias, published or published-ce.")] = "muon",
    held_out: Annotated[
        float, typer.Option("--held-out", help="The fraction of documents that is not fitted but measured on.")
    ] = 0.1,
    length: Length = None,
    seed: Seed = 0,
    shard: Annotated[
        bool, typer.Option("--shard", help="Each process of torchrun keeps only its share of the model's blocks.")
    ] = False,
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    attention: Attention = None,
) -> None:
    """Fit a tuned lens: an affine map per layer that predicts what the model predicts. Resumes when called again.

    Also under torchrun: the processes share the text, and the first one speaks.
    """
    wanted = FITTED if tokens is None else amount(tokens, "tokens")
    check_text(data, field, length, seed)
    only("--epochs", epochs, bool(data), "applies to --data; the model's own samples have no end")
    if epochs is not None and epochs < 1:
        raise LenscopeError(f"--epochs {epochs}: give at least 1")
    part(held_out)
    only(
        "--shard",
        shard,
        int(os.environ.get("WORLD_SIZE", "1")) > 1,
        "splits the model among the processes of torchrun, and this is one alone",
    )
    known_model(model)
    from lenscope.fitting.recipes import RECIPES

    named("recipe", recipe, RECIPES)
    folder = Path(output)
    finished = finished_lens(folder)
    if finished is None:
        make_folder(folder)
    first, local = int(os.environ.get("RANK", "0")) == 0, os.environ.get("LOCAL_RANK")
    lm = load_model(model, dtype, f"cuda:{local}" if device == "cuda" and local else device, revision, attention)
    from lenscope.text.corpus import Corpus

    corpus = Corpus.open(lm, _data(data), field=field or "text", length=length, seed=seed, epochs=epochs or 1)
    wanted = _available(corpus.split(held_out)[0], wanted, tokens is not None)
    how: dict[str, Any] = {"tokens": wanted, "recipe": recipe, "held_out": held_out, "seed": seed}
    from lenscope.fitting.tuned_lens import other_run

    other = "" if finished is None else other_run(finished, lm, corpus, **how)
    if other:
        raise LenscopeError(f"{folder}: holds a lens of another run ({other}); give another folder, or remove it")
    made = finished or _run(lm, corpus, folder, how, shard)
    if not first:
        return
    if finished is not None:
        tell(f"{folder}: this run was finished before; this is its lens")
    if as_json:
        print_json({"kind": "fit", "folder": str(folder), **made.report})
        return
    console = Screen()
    report = made.report
    told = f"{report['tokens']:,} tokens of {corpus.name} in {report['seconds']:,.0f} s"
    console.print(headline(lm, told, console.width, str(report["lens"])))
    show(console, fitted_table(report))
    again = "" if model == DEFAULT_MODEL else f" -m {model}"
    console.print(Text(plain(f'lenscope lens "…"{again} --lens {output}'), style="bold"), soft_wrap=True)
    if finished is None:
        tell(f"saved {output}")


def eval_(
    lens: Annotated[
        list[str] | None, typer.Option("--lens", help=f"NAME=LENS or LENS; may be repeated. {TUNED}")
    ] = None,
    data: Data = None,
    field: Field = None,
    tokens: Annotated[
        str | None, typer.Option(help="How many tokens are read; default: 8192 (2048 with --transfer), or all if less.")
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option("--held-out", help="Only this fraction of documents: what a fit with the same seed held out."),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Which layers: 12, 0,6,12 or 0:31:5 (end not included).")] = None,
    measure: Annotated[
        str | None,
        typer.Option(help="kl, agreement, bias, cross_entropy, bits_per_byte, entropy, calibration; one: intervals."),
    ] = None,
    transfer: Annotated[
        bool, typer.Option("--transfer", help="Instead: each layer's translator on the states of the others, one lens.")
    ] = False,
    transferred: Transferred = False,
    length: Length = None,
    seed: Seed = 0,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Save to a .parquet or .json file.")] = None,
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    attention: Attention = None,
) -> None:
    """How well lenses tell what the model will predict, layer by layer, on text; the last row is the model itself."""
    only("--measure", measure, not as_json, "chooses what the table shows, and --json has every measure")
    only("--transferred", transferred, bool(lens), "applies to --lens")
    wanted = (CROSSED if transfer else MEASURED) if tokens is None else amount(tokens, "tokens")
    chosen = numbers(layers, "layers")
    given = _labelled(lens or ())
    if transfer and len(given) != 1:
        raise LenscopeError(f"--transfer: takes one --lens, not {len(given)}")
    check_text(data, field, length, seed)
    if held_out is not None:
        part(held_out)
    writable(output, (".parquet", ".json"))
    known_model(model)
    for where in given.values():
        known_lens(where, transferred)
    from lenscope.lenses.evaluation_results import MEASURES, TRANSFERRED

    measures = list(dict.fromkeys((measure or ("cross_entropy" if transfer else "kl")).split(",")))
    for name in measures:
        named("measure", name, TRANSFERRED if transfer else MEASURES)
    if transfer and len(measures) > 1:
        raise LenscopeError(f"--measure {measure}: a --transfer matrix shows one measure; give one")
    lm = load_model(model, dtype, device, revision, attention)
    from lenscope.lenses.evaluate import EvaluationInterrupted
    from lenscope.lenses.evaluate import evaluate as evaluate_
    from lenscope.lenses.evaluate import transfer as transfer_
    from lenscope.text.corpus import Corpus, overlap

    lenses = {name: opened(where, lm, transferred) for name, where in given.items()}
    corpus = Corpus.open(lm, _data(data), field=field or "text", length=length, seed=seed)
    corpus = corpus if held_out is None else corpus.split(held_out)[1]
    for name, f in lenses.items():
        if overlap(f.report.get("corpus"), corpus.provenance()):
            tell(
                f"lens {name} was fitted on some of this text: --held-out {_share(f.report)} takes what it has not seen"
            )
    wanted = _available(corpus, wanted, tokens is not None)
    at = None if chosen is None else resolve(chosen, lm.n_layers)
    kept = ""
    try:
        with counted("rows") as advance:
            rows, total = corpus.batches(wanted, 1), ceil(wanted / corpus.length)

            def progress(done: int, _: int) -> None:
                advance(done, total)

            if transfer:
                (f,) = lenses.values()
                at = at or list(range(0, lm.n_layers, ceil(lm.n_layers / CROSSED_LAYERS)))
                result: Any = transfer_(lm, rows, f, at, progress=progress)
            else:
                result = evaluate_(lm, rows, {"logit lens": None, **lenses}, at, seed=seed, progress=progress)
    except EvaluationInterrupted as partial:
        if partial.result is None:
            raise
        result = partial.result
        told = "kept" if output else "shown"
        kept = f"interrupted: {result.tokens:,} tokens measured; what they say is {told}, the same command begins anew"
    result = replace(result, provenance={**result.provenance, "corpus": corpus.provenance(), "given": given})
    if as_json:
        print_json(result.to_json())
    else:
        console = Screen()
        console.print(headline(lm, f"on {corpus.name}", console.width, "transfer" if transfer else "evaluation"))
        show(console, result.table(measures[0] if len(measures) == 1 else measures, width=console.width))
    if output:
        flush()
        result.save(output)
        tell(f"saved {output}")
    if kept:
        raise Stopped(kept)


def export(
    lens: Annotated[str, typer.Argument(metavar="LENS", help="A fitted lens: folder, file or hub repository.")],
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where config.json and params.pt go.")],
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
) -> None:
    """Write a fitted lens as the package tuned-lens 0.2 reads it."""
    known_model(model)
    known_lens(lens)
    _free(Path(folder))
    lm = load_model(model, dtype, device, revision, None)
    from lenscope.mappings.foreign_formats import export_tuned_lens

    export_tuned_lens(opened(lens, lm), folder)
    if as_json:
        print_json({"kind": "export", "folder": folder, "files": ["config.json", "params.pt"]})
    tell(f"saved {folder}")


def opened(where: str, lm: "LM", transferred: bool = False) -> "PairMapping":
    """The lens that a command line names; `transferred`: of another model, in a folder that lenscope saved."""
    from lenscope.mappings.lens_files import load_lens
    from lenscope.mappings.mapping import load_mapping

    if not transferred:
        return load_lens(where, lm)
    if not Path(where).is_dir():
        raise LenscopeError(f"{where}: no such folder; --transferred takes one that lenscope fit wrote")
    return load_mapping(where).transferred(lm)


def fitted_table(report: dict[str, Any]) -> Table:
    """The held-out KL of every few layers of a fitted lens and of the logit lens, and how surely it is less."""
    rows, step = report["layers"], ceil(len(report["layers"]) / LINES)
    sure = any("gain_95" in row for row in rows)  # version 0.1.0 knew no intervals
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("layer", "logit lens", str(report["lens"]), *(["less by, 95 %"] if sure else [])):
        table.add_column(Text(plain(name)), justify="right", no_wrap=True)
    for row in rows[::-step][::-1]:
        ends = row.get("gain_95")
        told = [f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "–"] if sure else []
        table.add_row(Text(str(row["layer"]), style="dim"), *(_nats(row[k]) for k in ("kl_logit_lens", "kl")), *told)
    known = [[row[name] for row in rows if row[name] is not None] for name in ("kl_logit_lens", "kl")]
    table.add_row(Text("mean", style="dim"), *(_nats(sum(some) / len(some) if some else None) for some in known))
    held = report["held_out"]
    of = f"tokens of {held['documents'][1]:,} documents" if "documents" in held else "tokens"
    parts = [f"KL(model ‖ lens) in nats, mean of {held['tokens'][1]:,} {of} that were not fitted"]
    parts += [f"one layer in {step} is shown"] * (step > 1) + ([held["note"]] if "note" in held else [])
    if worse := held.get("worse_than_logit_lens"):
        parts.append(f"worse than the logit lens at layers {', '.join(map(str, worse))}")
    table.caption = Text("; ".join(parts), style="dim", justify="left")
    return table


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _run(lm: "LM", corpus: "Corpus", folder: Path, how: dict[str, Any], shard: bool) -> "PairMapping":
    from lenscope.distributed.sharding import sharded
    from lenscope.fitting.tuned_lens import fit as fit_

    try:
        with counted("tokens") as advance, sharded(lm) if shard else nullcontext():
            return fit_(lm, corpus, folder=folder, progress=advance, **how)
    except KeyboardInterrupt as stop:
        raise Stopped(_left(folder)) from stop


def _left(folder: Path) -> str:
    """What an interrupted fit leaves."""
    try:
        config = json.loads((folder / "checkpoint" / "config.json").read_text(encoding="utf-8"))
        plan = config["settings"]["schedule"]
        done = f"{min(config['number'] * plan['block'], plan['rows']) * plan['length']:,} tokens"
    except (OSError, ValueError, LookupError, TypeError):
        return "interrupted before the first checkpoint: nothing is kept"
    return f"interrupted: {folder} keeps the run after {done}; the same command goes on from there"


def finished_lens(folder: Path) -> "PairMapping | None":
    """As `tuning.finished_lens`, which is imported where there is something in the folder."""
    from lenscope.fitting import tuned_lens as tuning

    return tuning.finished_lens(folder) if (folder / "config.json").exists() else None


def _free(folder: Path) -> None:
    for name in ("config.json", "params.pt"):
        if (folder / name).exists():
            raise LenscopeError(f"{folder}: has a {name} already; give another folder")
    make_folder(folder)


def check_text(data: Sequence[str] | None, field: str | None, length: int | None, seed: int) -> None:
    """Raise LenscopeError for text that is not there, and options of text without effect or out of range."""
    only("--field", field, bool(data), "names the field of --data; the model's own samples have none")
    only("--field", field, not data or not is_plain_text(data), "names a field or column, and text files have none")
    for one in data or ():
        known_text(one)
    if length is not None and length < 2:
        raise LenscopeError(f"length {length}: give at least 2 tokens")
    if seed < 0:
        raise LenscopeError(f"--seed {seed}: give 0 or more")


def part(fraction: float) -> None:
    """Raise LenscopeError for what is no part of the documents."""
    if not 0 < fraction < 1:
        raise LenscopeError(f"held_out {fraction}: give a fraction of the documents between 0 and 1, such as 0.1")


def _data(given: Sequence[str] | None) -> Any:
    return None if not given else given[0] if len(given) == 1 else [Path(d) for d in given]


def _available(corpus: "Corpus", wanted: int, asked: bool) -> int:
    """How many tokens are read, known before the work begins: `wanted`, or what there is unless they were asked for."""
    from lenscope.text.documents import Shelf

    if not isinstance(corpus.documents, Shelf):
        return wanted
    found = 0
    try:
        for batch in corpus.batches(wanted, 64):
            found = batch.next_row * corpus.length
    except LenscopeError:
        if asked or not found:
            raise
    return min(wanted, found)


def _labelled(lenses: Sequence[str]) -> dict[str, str]:
    """NAME=LENS, or a lens that is named after the end of its place."""
    found: dict[str, str] = {}
    for text in lenses:
        name, equal, where = text.partition("=")
        if not equal or "/" in name or Path(text).exists():
            name, where = Path(text).name, text
        if not name or not where or name in ("logit lens", *found):
            raise LenscopeError(f"--lens {text}: give each lens a name of its own, as NAME={where or 'LENS'}")
        found[name] = where
    return found


def _share(report: dict[str, Any]) -> float:
    return round(float(report["corpus"].get("part", (0.1,))[0]), 6)
