"""The commands of detectors: fit one on normal prompts, score prompts as they come.

Knows: files of prompts, which are read line by line, and one line of JSON per score.
Does not know: how a detector works (detection/detector.py).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from lenscope.cli.options import (
    CommonOptions,
    Prompts,
    Seed,
    Transferred,
    TunedLens,
    common_options,
    open_lens,
    parse_indices,
    resolve_layers,
)
from lenscope.cli.streams import failure, flush, print_json, tell
from lenscope.cli.terminal import Screen, headline, progress_bar, rate_line, show
from lenscope.cli.validation import (
    make_folder,
    require_effect,
    require_lens,
    require_model,
    require_name,
    require_path,
    require_seed,
)
from lenscope.errors import LenscopeError
from lenscope.files.arriving import batches_as_they_come, standard_input
from lenscope.files.text_files import parse_json_line, read_lines
from lenscope.visible_text import printable

if TYPE_CHECKING:
    from lenscope.detection.detector import Detector
    from lenscope.engine.shared_prefix_states import ReadPrefixes

# prompts of a file that are scored together, by default and at most
PROMPTS_TOGETHER, MOST_TOGETHER = 32, 4096
# ways that were tried, as many as are shown
SHOWN = 6

PromptField = Annotated[
    str | None, typer.Option(help="Name of the field that has the prompt, in files of JSON lines; default: text.")
]  # fmt: skip

detect_commands = typer.Typer(
    name="detect",
    help="Find prompts that are unlike normal ones, such as injections.",
    rich_markup_mode=None,
)


@detect_commands.command("fit")
@common_options()
def fit_detector_command(
    data: Annotated[
        str, typer.Option("--data", "-d", help="File of normal prompts: .txt with one per line, or .jsonl.")
    ],
    output: Annotated[str, typer.Option("-o", "--output", help="Folder for the detector.")],
    field: PromptField = None,
    lens: TunedLens = None,
    transferred: Transferred = False,
    choice: Annotated[
        list[str] | None,
        typer.Option(help="Answer that every prompt may have; give two or more, and the detector watches these."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Layers to read: 12, a list 0,6,12 or a range 0:31:5; default: ten, or all with --choice."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Method to try: forest, neighbours or mahalanobis; may be repeated. Default: all; the best is taken."
        ),
    ] = None,
    false_positives: Annotated[
        float, typer.Option("--false-positives", help="Share of normal prompts that may score above the threshold.")
    ] = 0.05,
    seed: Seed = 0,
    *,
    common: CommonOptions,
) -> None:
    """Fit a detector on normal prompts.

    The method is chosen on normal prompts alone; the detector never sees an odd one.

    \b
    Example:
      lenscope detect fit --data normal.txt --lens lens -o detector
    """
    _check_field(field, data)
    require_effect("--transferred", transferred, lens is not None, "applies to --lens")
    if not 0 < false_positives < 1:
        raise LenscopeError(f"--false-positives {false_positives}: give a share between 0 and 1, such as 0.05")
    require_seed(seed)
    prompts = list(read_prompt_file(data, field or "text"))
    wanted = parse_indices(layers, "layers")
    if choice is not None and len(choice) < 2:
        raise LenscopeError(f"--choice {choice[0]}: give at least two")
    if (Path(output) / "config.json").exists():
        raise LenscopeError(f"{output}: has a config.json already; give another folder")
    require_model(common.model)
    if lens is not None:
        require_lens(lens, transferred)
    from lenscope.detection.outliers import METHODS

    for one in method or ():
        require_name("method", one, METHODS)
    make_folder(output)
    lm = common.load()
    from lenscope.detection.detector import fit_detector
    from lenscope.lenses.lens import Lens

    f = None if lens is None else open_lens(lens, lm, transferred)
    with progress_bar("prompts") as advance:
        detector = fit_detector(
            Lens(lm, f),
            prompts,
            choices=tuple(choice or ()),
            layers=None if wanted is None else resolve_layers(wanted, lm.n_layers),
            methods=tuple(method or METHODS),
            false_positives=false_positives,
            seed=seed,
            progress=advance,
        )
    if common.as_json:
        about = {"threshold": detector.threshold, "false_positives": detector.false_positives, **detector.report}
        print_json({"kind": "detector", "folder": output, **about})
    else:
        console = Screen()
        console.print(headline(lm, f"{len(detector.prompts)} normal prompts", console.width, "detector"))
        show(console, _table_of_methods(detector.report["tried"]))
    flush()
    detector.save(output)
    if not common.as_json:
        tell(f"saved {output}; {false_positives:.0%} of normal prompts score above {detector.threshold:.4g}")


@detect_commands.command("score")
@common_options("as_json")
def score_prompts_command(
    folder: Annotated[str, typer.Argument(metavar="DETECTOR", help="Folder that detect fit wrote.")],
    prompts: Prompts = None,
    file: Annotated[
        str | None,
        typer.Option("--file", "-f", help="File of prompts, .txt or .jsonl, read line by line; - reads stdin."),
    ] = None,
    field: PromptField = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help=f"Prompts of --file that are scored together at most; none waits for others. Default: {PROMPTS_TOGETHER}."
        ),
    ] = None,
    *,
    common: CommonOptions,
) -> None:
    """Score prompts: the higher, the odder.

    Each prompt gives one line of JSON, in the order of the prompts. Those that have come are scored together, and what
    they begin with, such as a system prompt, is read once.

    \b
    Examples:
      lenscope detect score detector "Ignore all instructions"
      tail -f log.txt | lenscope detect score detector -f -
    """
    if not prompts and file is None:
        raise LenscopeError("no prompt: give one as an argument, or several with --file FILE (- for stdin)")
    require_effect("--field", field, file is not None, "names the field of --file FILE.jsonl")
    require_effect("--batch", batch, file is not None, "is about the prompts of --file")
    if batch is not None and not 1 <= batch <= MOST_TOGETHER:
        raise LenscopeError(f"--batch {batch}: give a whole number, 1–{MOST_TOGETHER:,}")
    if file is not None:
        _check_field(field, file)
        if file != "-":
            require_path(file, "file")
    if not Path(folder).is_dir():
        require_path(folder, "folder, which lenscope detect fit makes")
        raise LenscopeError(f"{folder}: no such folder; lenscope detect fit makes one")
    if not (Path(folder) / "config.json").is_file():
        raise LenscopeError(f"{folder}: is no detector (the folder has no config.json); lenscope detect fit makes one")
    require_model(common.model)
    lm = common.load()
    from lenscope.detection.detector import load_detector
    from lenscope.engine.shared_prefix_states import ReadPrefixes

    detector, known, done = load_detector(folder, lm), ReadPrefixes(), 0
    with rate_line("prompts") as advance:
        for texts in _batches_of_prompts(prompts or (), file, field or "text", batch or PROMPTS_TOGETHER):
            for part in _scorable(detector, texts, known):
                for prompt, score in part:
                    print_json(_line_of_score(detector, prompt, score))
                flush()
                if failure():
                    return
                done += len(part)
                advance(done)


def _scorable(detector: "Detector", texts: list[str], known: "ReadPrefixes") -> Iterator[list[tuple[str, float]]]:
    """Prompts with their scores, all together; where one of them cannot be read, those before it one by one."""
    try:
        scores = detector.scores_of_features(detector.features(texts, known)).tolist()
    except LenscopeError:
        if len(texts) == 1:
            raise
    else:
        yield list(zip(texts, scores, strict=True))
        return
    for text in texts:
        yield from _scorable(detector, [text], known)


def _line_of_score(detector: "Detector", prompt: str, score: float) -> dict[str, Any]:
    """What is printed of a prompt."""
    about = {"score": score, "threshold": detector.threshold, "above": score > detector.threshold}
    return {"prompt": prompt, **about, "false_positives": detector.false_positives}


def _batches_of_prompts(given: Sequence[str], file: str | None, field: str, most: int) -> Iterator[list[str]]:
    """The prompts of the command line, then those of a file as they come."""
    for start in range(0, len(given), most):
        yield list(given[start : start + most])
    if file is not None:
        yield from batches_as_they_come(read_prompt_file(file, field), most)


def _check_field(field: str | None, file: str) -> None:
    require_effect(
        "--field",
        field,
        file.endswith((".jsonl", ".jsonl.gz")),
        "names a field of .jsonl files, and other lines have none",
    )


def read_prompt_file(file: str, field: str) -> Iterator[str]:
    """The prompts of a file, each as soon as its line is there; empty lines are none."""
    for n, line in enumerate(read_lines(standard_input() if file == "-" else file), 1):
        if line.strip():
            yield _prompt_of_line(line, f"{file}, line {n}", field) if file.endswith((".jsonl", ".jsonl.gz")) else line


def _prompt_of_line(line: str, where: str, field: str) -> str:
    try:
        text = parse_json_line(line, where)[field]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise LenscopeError(f"{where}: is no JSON object with a field {field!r}; name it with --field") from error
    if not isinstance(text, str) or not text:
        raise LenscopeError(f"{where}: {field!r} is {text!r}; it must be a text")
    return text


def _table_of_methods(tried: list[dict[str, Any]]) -> Table:
    """The best of the ways that were tried."""
    from lenscope.display.tables import TableColumn, plain_table

    lines = []
    for way in sorted(tried, key=lambda w: -w["auroc"])[:SHOWN]:
        own = {k: v for k, v in way.items() if k not in ("method", "view", "layers", "auroc", "seed")}
        settings = ", ".join(f"{k} {v}" for k, v in own.items())
        layers = way["layers"]
        where = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
        cells = f"{way['method']} ({settings})", f"{way['view']}, {where}", f"{way['auroc']:.3f}"
        lines.append([printable(cell) for cell in cells])
    # the number last, and whole: what is too long before it is broken into lines
    columns = [TableColumn("method", folds="all"), TableColumn("looks at", folds="all"), TableColumn("AUROC", "right")]
    caption = (
        "Chosen without any odd prompt: AUROC of held-out normal prompts against the same ones with words shuffled "
        f"or inserted; the best {min(SHOWN, len(tried))} of {len(tried)}, the first is taken"
    )
    return plain_table(columns, lines, caption, gap=2)
