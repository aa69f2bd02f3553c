"""The command that scores prompts with a detector: as they come, together, in their order, and where each is odd.

Knows: files of prompts, which are read line by line, and one line of JSON per score.
Does not know: how a detector works (detection/detector.py), how it is fitted (detect.py).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lenscope.cli.options import CommonOptions, PageFile, Prompts, common_options
from lenscope.cli.prompt_files import PromptField, check_field, placed_prompts_of_file, prompts_of_standard_input
from lenscope.cli.streams import failure, flush, print_json, tell
from lenscope.cli.terminal import rate_line, show_and_save
from lenscope.cli.validation import require_effect, require_model, require_path, require_writable
from lenscope.errors import LenscopeError, naming_place
from lenscope.files.arriving import batches_as_they_come

if TYPE_CHECKING:
    from lenscope.detection.attack_detector import AttackDetector
    from lenscope.detection.detector import Detector
    from lenscope.engine.shared_prefix_states import ReadPrefixes
    from lenscope.models.language_model import LM
    from lenscope.models.prompts import Prompt

# prompts of a file that are scored together, by default and at most
PROMPTS_TOGETHER, MOST_TOGETHER = 32, 4096


@common_options()
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
            help=f"Prompts of --file to score together at most; none waits for others. Default: {PROMPTS_TOGETHER}."
        ),
    ] = None,
    where: Annotated[
        bool, typer.Option("--where", help="Show where each prompt is odd: a score for every token.")
    ] = False,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Save where the prompt is odd to this .json file.")
    ] = None,
    html: PageFile = None,
    *,
    common: CommonOptions,
) -> None:
    """Score prompts: the higher, the odder.

    A detector of attacks gives the probability of one, and a verdict.
    Each prompt gives one line of JSON, in the order of the prompts. Those that have come are scored together, and what
    they begin with, such as a system prompt, is read once. A prompt that cannot be scored, such as one that is too
    long, is named on stderr and ends the command with exit status 2. On stdin, whose lines are plain text, it ends
    nothing: the next lines are scored, and the exit status is 2 at the end.

    \b
    Examples:
      lenscope detect score detector "Ignore all instructions"
      tail -f log.txt | lenscope detect score detector -f -
      lenscope detect score detector "A long e-mail" --where --html odd.html
    """
    if not prompts and file is None:
        raise LenscopeError("no prompt: give one as an argument, or several with --file FILE (- for stdin)")
    require_effect("--field", field, file is not None, "names the field of --file FILE.jsonl")
    require_effect("--batch", batch, file is not None, "is about the prompts of --file")
    require_effect("--batch", batch, not where, "--where takes one prompt after the other")
    if batch is not None and not 1 <= batch <= MOST_TOGETHER:
        raise LenscopeError(f"--batch {batch}: give a whole number, 1–{MOST_TOGETHER:,}")
    require_effect("--json", common.as_json, where, "scores are JSON without it; it applies to --where")
    for option, path, ending in (("--output", output, ".json"), ("--html", html, ".html")):
        require_effect(option, path, where, "applies to --where")
        require_writable(path, (ending,))
        if path and (file is not None or len(prompts or ()) != 1):
            raise LenscopeError(f"{option} {path}: takes one prompt, as an argument")
    if file is not None:
        check_field(field, file)
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

    detector, known, done, unscored = load_detector(folder, lm), ReadPrefixes(), 0, 0
    most = 1 if where else batch or PROMPTS_TOGETHER
    with rate_line("prompts") as advance:
        for placed in _batches_of_prompts(prompts or (), file, field or "text", most):
            for part in [_readable(lm, *placed[0])] if where else _scorable(detector, placed, known):
                if isinstance(part, LenscopeError):
                    # arguments, which have no place, come before all of stdin
                    if file != "-" or not placed[0][0]:
                        raise part
                    tell(str(part))
                    unscored += 1
                elif isinstance(part, list):
                    for prompt, score in part:
                        print_json(_line_of_score(detector, prompt, score))
                    advance(done := done + len(part))
                else:
                    odd = detector.where(part)
                    show_and_save(odd, lm, repr(placed[0][1]), odd.detector, "scores", common.as_json, output, html)
                flush()
            if failure():
                return
    if unscored:
        raise LenscopeError(f"standard input: {unscored:,} of its lines could not be scored; each is named above")


def _readable(lm: "LM", place: str, text: str | LenscopeError) -> "Prompt | LenscopeError":
    """A prompt as the model reads it; where it does not, why, with its place."""
    if isinstance(text, LenscopeError):
        return text
    try:
        with naming_place(place):
            return lm.prompt(text)
    except LenscopeError as error:
        return error


def _scorable(
    detector: "Detector | AttackDetector", placed: list[tuple[str, str | LenscopeError]], known: "ReadPrefixes"
) -> Iterator[list[tuple[str, float]] | LenscopeError]:
    """Prompts with their scores, all together; where one of them cannot be read, one by one.

    `placed` are prompts behind their places. For one that cannot be read comes a LenscopeError, which names its place.
    """
    texts = [text for _, text in placed if isinstance(text, str)]
    if len(texts) == len(placed):
        try:
            with naming_place(placed[0][0] if len(placed) == 1 else ""):
                scores = detector.scores_of_features(detector.features(texts, known)).tolist()
        except LenscopeError as error:
            if len(placed) == 1:
                yield error
                return
        else:
            yield list(zip(texts, scores, strict=True))
            return
    for place, text in placed:
        if isinstance(text, LenscopeError):
            yield text
        else:
            yield from _scorable(detector, [(place, text)], known)


def _line_of_score(detector: "Detector | AttackDetector", prompt: str, score: float) -> dict[str, Any]:
    """What is printed of a prompt."""
    from lenscope.detection.attack_detector import AttackDetector

    about: dict[str, Any] = {"score": score}
    if isinstance(detector, AttackDetector):
        about["verdict"] = detector.verdict_of_score(score)
    about |= {"threshold": detector.threshold, "above": score > detector.threshold}
    return {"prompt": prompt, **about, "false_positives": detector.false_positives}


def _batches_of_prompts(
    given: Sequence[str], file: str | None, field: str, most: int
) -> Iterator[list[tuple[str, str | LenscopeError]]]:
    """The prompts of the command line, whose place is "", then those of a file as they come, with theirs.

    A LenscopeError stands for a line of stdin that is no text.
    """
    for start in range(0, len(given), most):
        yield [("", text) for text in given[start : start + most]]
    if file is not None:
        lines: Iterator[tuple[str, str | LenscopeError]]
        lines = prompts_of_standard_input() if file == "-" else placed_prompts_of_file(file, field)
        yield from batches_as_they_come(lines, most)
