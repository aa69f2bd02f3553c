"""The commands of detectors: fit one on normal prompts, score prompts as they come.

Knows: files of prompts, which are read line by line, and one line of JSON per score.
Does not know: how a detector works (detection.py).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from lenscope.cli.fit import TUNED, Seed, opened
from lenscope.cli.given import existing, known_lens, known_model, make_folder, named, only
from lenscope.cli.options import (
    DEFAULT_MODEL,
    AsJson,
    Attention,
    Device,
    Dtype,
    Model,
    Revision,
    Transferred,
    headline,
    load_model,
    numbers,
    resolve,
)
from lenscope.cli.screen import Screen, counted, show
from lenscope.cli.streams import failure, flush, print_json, tell
from lenscope.errors import LenscopeError
from lenscope.files.text_files import lines, parse
from lenscope.visible_text import plain

# ways that were tried, as many as are shown
SHOWN = 6

detect = typer.Typer(
    name="detect",
    help="Detectors of odd prompts, such as injections, fitted on normal ones alone.",
    rich_markup_mode=None,
)


@detect.command()
def fit(
    data: Annotated[str, typer.Option("--data", "-d", help="Normal prompts: .txt, one per line, or .jsonl.")],
    output: Annotated[str, typer.Option("-o", "--output", help="The folder for the detector.")],
    field: Annotated[
        str | None, typer.Option(help="The field of JSON lines that has the prompt; default: text.")
    ] = None,
    lens: Annotated[str | None, typer.Option("--lens", help=TUNED)] = None,
    transferred: Transferred = False,
    choice: Annotated[
        list[str] | None,
        typer.Option(help="An answer that every prompt may go on with; twice or more: their trajectories are watched."),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Which layers: 12, 0,6,12 or 0:31:5 (end not included).")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="forest, neighbours, mahalanobis; may be repeated. Default: the best one.")
    ] = None,
    false_positives: Annotated[
        float, typer.Option("--false-positives", help="The share of normal prompts above the threshold.")
    ] = 0.05,
    seed: Seed = 0,
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    attention: Attention = None,
) -> None:
    """Fit a detector on normal prompts. Which way is taken is decided on them alone; it never sees an odd one."""
    _check_field(field, data)
    only("--transferred", transferred, lens is not None, "applies to --lens")
    if not 0 < false_positives < 1:
        raise LenscopeError(f"--false-positives {false_positives}: give a share between 0 and 1, such as 0.05")
    if seed < 0:
        raise LenscopeError(f"--seed {seed}: give 0 or more")
    prompts = list(_prompts(data, field or "text"))
    wanted = numbers(layers, "layers")
    if choice is not None and len(choice) < 2:
        raise LenscopeError(f"--choice {choice[0]}: give at least two")
    if (Path(output) / "config.json").exists():
        raise LenscopeError(f"{output}: has a config.json already; give another folder")
    known_model(model)
    if lens is not None:
        known_lens(lens, transferred)
    from lenscope.detection.outliers import METHODS

    for one in method or ():
        named("method", one, METHODS)
    make_folder(output)
    lm = load_model(model, dtype, device, revision, attention)
    from lenscope.detection.detector import fit_detector
    from lenscope.lenses.lens import Lens

    f = None if lens is None else opened(lens, lm, transferred)
    with counted("prompts") as advance:
        made = fit_detector(
            Lens(lm, f),
            prompts,
            choices=tuple(choice or ()),
            layers=None if wanted is None else resolve(wanted, lm.n_layers),
            methods=tuple(method or METHODS),
            false_positives=false_positives,
            seed=seed,
            progress=advance,
        )
    if as_json:
        about = {"threshold": made.threshold, "false_positives": made.false_positives, **made.report}
        print_json({"kind": "detector", "folder": output, **about})
    else:
        console = Screen()
        console.print(headline(lm, f"{len(made.prompts)} normal prompts", console.width, "detector"))
        show(console, _table(made.report["tried"]))
    flush()
    made.save(output)
    if not as_json:
        tell(f"saved {output}; {false_positives:.0%} of normal prompts score above {made.threshold:.4g}")


@detect.command()
def score(
    folder: Annotated[str, typer.Argument(metavar="DETECTOR", help="A folder that detect fit wrote.")],
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="One or several prompts.")] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", help="Prompts as they come: .txt, .jsonl, - for lines of stdin.")
    ] = None,
    field: Annotated[
        str | None, typer.Option(help="The field of JSON lines that has the prompt; default: text.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    attention: Attention = None,
) -> None:
    """Score prompts, one line of JSON each as soon as it is known: the higher, the odder."""
    if not prompts and file is None:
        raise LenscopeError("no prompt: give one as an argument, or several with --file FILE (- for stdin)")
    only("--field", field, file is not None, "names the field of --file FILE.jsonl")
    if file is not None:
        _check_field(field, file)
        if file != "-":
            existing(file, "file")
    if not Path(folder).is_dir():
        existing(folder, "folder, which lenscope detect fit makes")
        raise LenscopeError(f"{folder}: no such folder; lenscope detect fit makes one")
    if not (Path(folder) / "config.json").is_file():
        raise LenscopeError(f"{folder}: is no detector (the folder has no config.json); lenscope detect fit makes one")
    known_model(model)
    lm = load_model(model, dtype, device, revision, attention)
    from lenscope.detection.detector import load_detector

    made = load_detector(folder, lm)
    for text in (*(prompts or ()), *([] if file is None else [None])):
        for prompt in [text] if text is not None else _prompts(str(file), field or "text"):
            value = made.score(prompt)
            about = {"score": value, "threshold": made.threshold, "above": value > made.threshold}
            print_json({"prompt": prompt, **about, "false_positives": made.false_positives})
            flush()
            if failure():
                return


def _check_field(field: str | None, file: str) -> None:
    only(
        "--field",
        field,
        file.endswith((".jsonl", ".jsonl.gz")),
        "names a field of .jsonl files, and other lines have none",
    )


def _prompts(file: str, field: str) -> Iterator[str]:
    """The prompts of a file, each as soon as its line is there; empty lines are none."""
    for n, line in enumerate(lines(file), 1):
        if line.strip():
            yield _prompt(line, f"{file}, line {n}", field) if file.endswith((".jsonl", ".jsonl.gz")) else line


def _prompt(line: str, where: str, field: str) -> str:
    try:
        text = parse(line, where)[field]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise LenscopeError(f"{where}: is no JSON object with a field {field!r}; name it with --field") from error
    if not isinstance(text, str) or not text:
        raise LenscopeError(f"{where}: {field!r} is {text!r}; it must be a text")
    return text


def _table(tried: list[dict[str, Any]]) -> Table:
    """The best of the ways that were tried."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, side in (("method", "left"), ("of", "left"), ("AUROC", "right")):
        # the number last, and whole: what is too long before it is broken into lines
        right = side == "right"
        table.add_column(name, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for way in sorted(tried, key=lambda w: -w["auroc"])[:SHOWN]:
        own = {k: v for k, v in way.items() if k not in ("method", "view", "layers", "auroc", "seed")}
        told = ", ".join(f"{k} {v}" for k, v in own.items())
        layers = way["layers"]
        where = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
        made = f"{way['method']} ({told})", f"{way['view']}, {where}", f"{way['auroc']:.3f}"
        table.add_row(*(Text(plain(cell)) for cell in made))
    table.caption = Text(
        "Chosen without any odd prompt: AUROC of held-out normal prompts against the same ones with words shuffled "
        f"or inserted; the best {min(SHOWN, len(tried))} of {len(tried)}, the first is taken",
        style="dim",
        justify="left",
    )
    return table
