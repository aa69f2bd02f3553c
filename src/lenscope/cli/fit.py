"""The command that fits a tuned lens, and goes on where it was interrupted.

Knows: how many tokens are read where no number is given, when a folder may be written to, what an interrupted run
leaves. Does not know: how lenses are fitted (fitting/tuned_lens.py).
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lenscope.cli.jacobian_fit import RECIPE, fit_jacobian, load_for_fit, parse_part
from lenscope.cli.options import (
    CommonOptions,
    Data,
    Field,
    Length,
    Seed,
    Stream,
    available_tokens,
    common_options,
    open_corpus,
    parse_amount,
)
from lenscope.cli.streams import first_process, print_json, several_processes, tell
from lenscope.cli.terminal import Screen, Stopped, fitted_table, headline, progress_bar, show
from lenscope.cli.validation import (
    make_folder,
    require_corpus,
    require_effect,
    require_fraction,
    require_model,
    require_name,
)
from lenscope.errors import LenscopeError
from lenscope.visible_text import printable

if TYPE_CHECKING:
    from lenscope.mappings.mapping import PairMapping
    from lenscope.models.language_model import LM
    from lenscope.text.corpus import Corpus

# tokens that are read where none are asked for
FITTED = 200_000


@common_options(all_write=True)
def fit_command(
    output: Annotated[str, typer.Option("-o", "--output", help="Folder for the lens and for its checkpoints.")],
    data: Data = None,
    field: Field = None,
    tokens: Annotated[
        str | None, typer.Option(help="Tokens to read, such as 200k; default: 200k, or all if there are fewer.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="How many times the text is read; default: 1.")] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="How it is fitted: muon (a closed form, then steps), ridge (the closed form), bias (offsets alone), "
            "published, published-ce (the paper's steps), or jacobian."
        ),
    ] = "muon",
    until: Annotated[
        float | None,
        typer.Option(help="With jacobian: stop when the readouts of two halves of the prompts agree at this cosine."),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(help="With jacobian: later, from a position on, or same, there alone; default: later."),
    ] = None,
    target_layer: Annotated[
        int | None,
        typer.Option("--target-layer", help="With jacobian: layer whose states are differentiated; default: the last."),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(help="With jacobian: gradient, or relp (norms and attention held fixed); default: gradient."),
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="With jacobian: read the k-th of every n prompts, as k/n; merge joins the parts.")
    ] = None,
    held_out: Annotated[
        float, typer.Option("--held-out", help="Fraction of the documents that is kept for measuring.")
    ] = 0.1,
    length: Length = None,
    seed: Seed = 0,
    stream: Stream = False,
    shard: Annotated[bool, typer.Option("--shard", help="Old name of --placement fsdp.")] = False,
    moments_on: Annotated[
        str | None,
        typer.Option(
            "--moments-on", help="Device for the large matrices of the fit, such as cpu; default: that of the model."
        ),
    ] = None,
    *,
    common: CommonOptions,
) -> None:
    """Fit a tuned lens on text: an affine map per layer.

    The map of a layer is trained so that its prediction comes close to the model's own. The lens is measured on
    documents that were held out. A run that is killed continues with the same command. Under torchrun the processes
    share the text, and only the first one prints.

    \b
    Examples:
      lenscope fit --data texts.jsonl -o lens
      lenscope fit --data texts.jsonl --recipe ridge --tokens 50k -o lens
    """
    wanted = FITTED if tokens is None else parse_amount(tokens, "tokens")
    require_corpus(data, field, length, seed)
    require_effect("--epochs", epochs, bool(data), "applies to --data; the model's own samples have no end")
    if epochs is not None and epochs < 1:
        raise LenscopeError(f"--epochs {epochs}: give at least 1")
    require_fraction(held_out)
    require_effect(
        "--shard",
        shard,
        several_processes(),
        "splits the model among the processes of torchrun, and this is one alone",
    )
    require_model(common.model)
    from lenscope.fitting.recipes import RECIPES

    require_name("recipe", recipe, [*RECIPES, RECIPE])
    jacobian = recipe == RECIPE
    for option, value in (
        *(("--until", until), ("--targets", targets), ("--target-layer", target_layer)),
        *(("--rule", rule), ("--part", part)),
    ):
        require_effect(option, value, jacobian, "applies to --recipe jacobian")
    mine = parse_part(part)
    if stream and recipe not in ("ridge", RECIPE):
        raise LenscopeError(
            f"--recipe {recipe}: takes steps, each with all weights; with --stream give --recipe ridge or jacobian"
        )
    if stream and not data:
        raise LenscopeError("--stream: the model's own samples read all weights once a token; give text with --data")
    require_effect("--moments-on", moments_on, not stream, "--stream keeps those of one layer at a time")
    require_effect("--moments-on", moments_on, not jacobian, "a Jacobian lens has no such matrices")
    if jacobian:
        how: dict[str, Any] = {"until": until, "target_layer": target_layer, "part": mine, "held_out": held_out}
        how |= {"targets": targets or "later", "rule": rule or "gradient"}
        from lenscope.fitting.jacobian_lens import LENGTH, SKIP, TOKENS, require_length, require_settings

        require_length("--length", length or LENGTH, SKIP)
        make_folder(Path(output))
        if stream:
            from lenscope.fitting.streamed_jacobian import require_streamed_settings

            require_streamed_settings("--stream:", how["targets"], how["rule"])
        lm = load_for_fit(replace(common, placement="fsdp") if shard else common, stream)
        require_settings(lm, 1, **{k: v for k, v in how.items() if k != "held_out"})
        rows = open_corpus(lm, data, field, length=length or LENGTH, skip=SKIP, seed=seed, epochs=epochs or 1)
        wanted = TOKENS if tokens is None else parse_amount(tokens, "tokens")
        again = common.model_again
        fit_jacobian(lm, rows, Path(output), wanted, tokens is not None, how, common.as_json, again)
        return
    from lenscope.fitting.tuned_lens import finished_lens, other_run, remove_fit_checkpoint

    folder = Path(output)
    finished = finished_lens(folder)
    if finished is None:
        make_folder(folder)
    lm = load_for_fit(replace(common, placement="fsdp") if shard else common, stream)
    corpus = open_corpus(lm, data, field, length=length, seed=seed, epochs=epochs or 1)
    wanted = available_tokens(corpus.split(held_out)[0], wanted, tokens is not None)
    how = {"tokens": wanted, "recipe": recipe, "held_out": held_out, "seed": seed}
    other = "" if finished is None else other_run(finished, lm, corpus, **how)
    if other:
        raise LenscopeError(f"{folder}: holds a lens of another run ({other}); give another folder, or remove it")
    lens = finished or _fit_or_stop(lm, corpus, folder, {**how, "moments_on": moments_on})
    if not first_process():
        return
    if finished is not None:
        remove_fit_checkpoint(folder)
        tell(f"{folder}: this run was finished before; this is its lens")
    if lm.runner.stream is not None:
        tell(f"read the weights of {lm.name} {lm.runner.stream.passes:.3g} times")
    if common.as_json:
        print_json({"kind": "fit", "folder": str(folder), **lens.report})
        return
    console = Screen()
    report = lens.report
    read = f"{report['tokens']:,} tokens of {corpus.name} in {report['seconds']:,.0f} s"
    console.print(headline(lm, read, console.width, str(report["lens"])))
    show(console, fitted_table(report))
    again = common.model_again
    console.print(Text(printable(f'lenscope lens "…"{again} --lens {output}'), style="bold"), soft_wrap=True)
    if finished is None:
        tell(f"saved {output}")


def _fit_or_stop(lm: "LM", corpus: "Corpus", folder: Path, how: dict[str, Any]) -> "PairMapping":
    from lenscope.fitting.tuned_lens import fit

    unit = "tokens" if lm.runner.stream is None else "blocks and layers"
    try:
        with progress_bar(unit) as advance:
            return fit(lm, corpus, folder=folder, progress=advance, **how)
    except KeyboardInterrupt as stop:
        raise Stopped(_what_is_left(folder, lm.runner.stream is not None)) from stop


def _what_is_left(folder: Path, streamed: bool) -> str:
    """What an interrupted fit leaves."""
    if streamed:
        from lenscope.fitting.streamed_ridge import solved_layers

        solved = solved_layers(folder / "checkpoint")
        if solved is None:
            return "interrupted before all blocks were read: nothing is kept"
        return f"interrupted: {folder} keeps all states, and {solved} layers are solved; the same command goes on"
    try:
        config = json.loads((folder / "checkpoint" / "config.json").read_text(encoding="utf-8"))
        plan = config["settings"]["schedule"]
        done = f"{min(config['number'] * plan['block'], plan['rows']) * plan['length']:,} tokens"
    except (OSError, ValueError, LookupError, TypeError):
        return "interrupted before the first checkpoint: nothing is kept"
    return f"interrupted: {folder} keeps the run after {done}; the same command goes on from there"
