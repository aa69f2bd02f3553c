"""The command that measures lenses on text, side by side or layer by layer of another.

Knows: how many tokens are read where no number is given, names of lenses, what an interrupted evaluation leaves.
Does not know: how lenses are measured (lenses/evaluate.py).
"""

from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import typer

from lenscope.cli.options import (
    TUNED,
    CommonOptions,
    Data,
    Field,
    Layers,
    Length,
    PageFile,
    ResultFile,
    Seed,
    Transferred,
    available_tokens,
    common_options,
    open_corpus,
    open_lens,
    parse_amount,
    parse_indices,
    places_by_name,
    resolve_layers,
)
from lenscope.cli.streams import first_process, several_processes, tell
from lenscope.cli.terminal import Stopped, progress_bar, show_and_save
from lenscope.cli.validation import (
    require_corpus,
    require_effect,
    require_fraction,
    require_lens,
    require_model,
    require_name,
    require_writable,
)
from lenscope.errors import LenscopeError

# tokens that are read where none are asked for: to measure, and to measure every translator on every layer
MEASURED, CROSSED = 8192, 2048
# layers of a matrix of layers by layers
CROSSED_LAYERS = 10


@common_options()
def evaluate_command(
    lens: Annotated[
        list[str] | None, typer.Option("--lens", help=f"LENS, or NAME=LENS; may be repeated. {TUNED}")
    ] = None,
    data: Data = None,
    field: Field = None,
    tokens: Annotated[
        str | None,
        typer.Option(help="Tokens to read; default: 8192 (2048 with --transfer), or all if there are fewer."),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            "--held-out", help="Read only the documents that a fit with this --held-out and seed did not see."
        ),
    ] = None,
    layers: Layers = None,
    measure: Annotated[
        str | None,
        typer.Option(
            help="Measures of the table, one with its intervals or several: kl, agreement, bias, cross_entropy, "
            "bits_per_byte, entropy, calibration."
        ),
    ] = None,
    transfer: Annotated[
        bool,
        typer.Option(
            "--transfer", help="Measure each layer's map on the states of every other layer instead; takes one lens."
        ),
    ] = False,
    transferred: Transferred = False,
    length: Length = None,
    seed: Seed = 0,
    output: ResultFile = None,
    html: PageFile = None,
    *,
    common: CommonOptions,
) -> None:
    """Measure on text how well lenses predict the model, by layer.

    The table has a row for each layer and, last, one for the model itself. With -o FILE a run that is killed leaves
    FILE.partial, and the same command continues from there. Under torchrun the processes share the text; such a run
    starts anew when it was killed.

    \b
    Examples:
      lenscope eval --lens lens --data other.jsonl
      lenscope eval --lens a=lens --lens b=owner/name --data texts.jsonl --measure kl,agreement -o both.parquet
    """
    require_effect(
        "--measure", measure, not common.as_json, "chooses what the table shows, and --json has every measure"
    )
    require_effect("--transferred", transferred, bool(lens), "applies to --lens")
    wanted = (CROSSED if transfer else MEASURED) if tokens is None else parse_amount(tokens, "tokens")
    chosen = parse_indices(layers, "layers")
    given = places_by_name(lens or ())
    if transfer and len(given) != 1:
        raise LenscopeError(f"--transfer: takes one --lens, not {len(given)}")
    require_corpus(data, field, length, seed)
    if held_out is not None:
        require_fraction(held_out)
    require_writable(output, (".parquet", ".json"))
    require_writable(html, (".html",))
    require_model(common.model)
    for where in given.values():
        require_lens(where, transferred)
    from lenscope.lenses.evaluation_results import MEASURES
    from lenscope.lenses.transfer_results import TRANSFERRED

    measures = list(dict.fromkeys((measure or ("cross_entropy" if transfer else "kl")).split(",")))
    for name in measures:
        require_name("measure", name, TRANSFERRED if transfer else MEASURES)
    if transfer and len(measures) > 1:
        raise LenscopeError(f"--measure {measure}: a --transfer matrix shows one measure; give one")
    lm = common.load()
    from lenscope.lenses.evaluate import EvaluationInterrupted, evaluate
    from lenscope.lenses.evaluate import transfer as measure_transfer
    from lenscope.lenses.evaluation_checkpoints import remove_checkpoint
    from lenscope.lenses.lens import Lens, lens_layers
    from lenscope.text.corpus import overlap

    lenses = {name: open_lens(where, lm, transferred) for name, where in given.items()}
    corpus = open_corpus(lm, data, field, length=length, seed=seed)
    corpus = corpus if held_out is None else corpus.split(held_out)[1]
    for name, f in lenses.items():
        if overlap(f.report.get("corpus"), corpus.provenance()):
            share = _held_out_share(f.report)
            tell(f"lens {name} was fitted on some of this text: --held-out {share} takes what it has not seen")
    wanted = available_tokens(corpus, wanted, tokens is not None)
    at = None if chosen is None else resolve_layers(chosen, lm.n_layers)
    # what a killed run leaves, beside its result
    partial = None if output is None else Path(f"{output}.partial")
    # processes that measure together leave no checkpoints
    resumed = None if several_processes() else partial
    left = ""
    try:
        with progress_bar("rows") as advance:
            rows, total = corpus.batches(wanted, 1), ceil(wanted / corpus.length)

            def progress(done: int, _: int) -> None:
                advance(done, total)

            if transfer:
                (f,) = lenses.values()
                mapped = lens_layers(Lens(lm, f), None)
                at = at or list(mapped[:: ceil(len(mapped) / CROSSED_LAYERS)])
                result: Any = measure_transfer(lm, rows, f, at, folder=resumed, progress=progress)
            else:
                named = {"logit lens": None, **lenses}
                result = evaluate(lm, rows, named, at, seed=seed, folder=resumed, progress=progress)
    except EvaluationInterrupted as interrupted:
        if interrupted.result is None:
            raise
        result = interrupted.result
        left = f"interrupted: {result.tokens:,} tokens measured; "
        if partial is None:
            left += "what they say is shown, the same command begins anew; with -o it goes on"
        else:
            left += f"what they say is kept, and the same command goes on from there ({partial} keeps the sums)"
    result = replace(result, provenance={**result.provenance, "corpus": corpus.provenance(), "given": given})
    columns = measures[0] if len(measures) == 1 else measures
    method = "transfer" if transfer else "evaluation"
    show_and_save(result, lm, f"on {corpus.name}", method, columns, common.as_json, output, html)
    if left:
        raise Stopped(left)
    if partial is not None and first_process():
        remove_checkpoint(partial)


def _held_out_share(report: dict[str, Any]) -> float:
    return round(float(report["corpus"].get("part", (0.1,))[0]), 6)
