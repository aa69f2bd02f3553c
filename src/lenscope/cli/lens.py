"""The command of lenses: what every layer of a model would predict, prompt by prompt.

Knows: options, which of them go together, that results are shown and saved as they come. Does not know: how
trajectories are computed, file formats.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lenscope.cli.options import (
    DEFAULT_MODEL,
    CommonOptions,
    Layers,
    Lenses,
    Model,
    PageFile,
    Prompts,
    ResultFile,
    Stream,
    Transferred,
    common_options,
    open_lens,
    parse_indices,
    parse_positions,
    resolve_layers,
)
from lenscope.cli.prompt_files import PromptField, given_prompts
from lenscope.cli.several_lenses import LOGIT, file_of_several, lenses_by_name, opened_lenses, shown_side_by_side
from lenscope.cli.streams import failure as failure_of_stdout
from lenscope.cli.streams import flush, print_json, say, tell
from lenscope.cli.terminal import Screen, Stopped, headline, item_bar, progress_bar, rank_line, show, show_and_save
from lenscope.cli.validation import (
    require_effect,
    require_lens,
    require_model,
    require_name,
    require_path,
    require_seed,
    require_writable,
)
from lenscope.errors import LenscopeError, naming_place

if TYPE_CHECKING:
    from lenscope.lenses.lens import Lens
    from lenscope.lenses.trajectory import Trajectory
    from lenscope.lenses.written_trajectory import WrittenTrajectory
    from lenscope.models.language_model import LM

# where in a block states are read
POINTS = ("block", "attention", "mlp")
# tokens per cell of files and pages where no number is given
TOP = 5


@common_options()
def lens_command(
    prompts: Prompts = None,
    model: Model = DEFAULT_MODEL,
    file: Annotated[
        str | None, typer.Option("--file", "-f", help="File of prompts, .txt or .jsonl, one per line; - reads stdin.")
    ] = None,
    field: PromptField = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put each prompt into the model's chat template.")] = False,
    layers: Layers = None,
    positions: Annotated[
        str | None,
        typer.Option(
            help="Positions to read: 3, -1, a list 0,2,4, a range -5: or a substring of the prompt; default: all."
        ),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            help="Measure that colours cells: max_probability, entropy, kl, cross_entropy or rank (--compare: js, …)."
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", help=f"Tokens listed per cell; default: 1 in the table, {TOP} in files and --json."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help='Token to follow through the layers, such as " Paris"; default: the prompt\'s next token.'),
    ] = None,
    lenses: Lenses = None,
    transferred: Transferred = False,
    points: Annotated[
        str,
        typer.Option(
            help="Where in a block states are read: block (its end), or within it, after attention or mlp was added."
        ),
    ] = "block",
    compare: Annotated[
        str | None, typer.Option(help="A second prompt; the table shows how far the predictions of the two are apart.")
    ] = None,
    generate: Annotated[
        int | None,
        typer.Option(
            "--generate", "-g", help="Let the model write this many tokens, and show what every layer predicted."
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="With --generate: draw tokens at this temperature; default: 0, the most probable token."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="With --temperature: seed of the draws; default: 0.")] = None,
    output: ResultFile = None,
    html: PageFile = None,
    stream: Stream = False,
    *,
    common: CommonOptions,
) -> None:
    """Show what every layer of a model would predict next.

    Each prompt gives a table with a row for each layer and a column for each token. A cell has the most probable next
    token there. Tables are shown, and files written, as soon as a prompt is done.

    \b
    Examples:
      lenscope lens "The capital of France is"
      lenscope lens "The capital of France is" --target " Paris" --measure rank
      lenscope lens --file prompts.txt --lens lens -o runs.parquet
      lenscope lens "The capital of France is" --lens logit --lens lens
    """
    # several lenses are called by names; one is what it always was
    several = lenses_by_name(lenses) if lenses and len(lenses) > 1 else {}
    tuned = None if several or not lenses or lenses[0] == LOGIT else lenses[0]
    places = [where for where in (tuned, *several.values()) if where is not None]
    require_effect("--transferred", transferred, bool(places), "applies to --lens")
    require_effect("--measure", measure, not common.as_json, "colours the table, and with --json there is none")
    require_effect("--temperature", temperature, generate is not None, "applies to --generate")
    require_effect("--seed", seed, bool(temperature), "applies to --temperature")
    require_seed(seed or 0)
    if generate is not None and generate < 1:
        raise LenscopeError(f"--generate {generate}: give at least 1")
    if temperature is not None and not 0 <= temperature < float("inf"):
        raise LenscopeError(f"--temperature {temperature}: give 0 (greedy) or a positive number")
    if several:
        require_effect("--compare", compare, False, "reads two prompts through one lens, and --lens gives several")
        require_effect("--generate", generate, False, "reads through one lens, and --lens gives several")
    if compare is not None:
        require_effect("--generate", generate, False, "--compare writes nothing")
        require_effect("--target", target, False, "--compare follows no token")
        require_effect(
            "--top-k",
            top_k,
            bool(common.as_json or output or html),
            "the table of --compare shows one token per prompt; the number applies to --json, -o and --html",
        )
    require_name("points", points, POINTS)
    if points != "block":
        require_effect("--points", points, not places, "a fitted lens has maps for the ends of blocks only")
        require_effect("--points", points, generate is None, "--generate reads the ends of blocks")
    if top_k is not None and top_k < 1:
        raise LenscopeError(f"top_k {top_k}: give at least 1")
    wanted_layers = parse_indices(layers, "layers")
    wanted_positions = parse_positions(positions, prompts=prompts or ())
    for path, endings in ((output, (".parquet", ".json")), (html, (".html",))):
        require_writable(path, endings)
    if output is not None and output == html:
        raise LenscopeError(f"{output}: is given twice; give -o and --html a file each")
    if file not in (None, "-"):
        require_path(str(file), "file")
    given = given_prompts(prompts or [], file, field)
    if compare is not None and (len(given) != 1 or (output and not output.endswith(".json"))):
        raise LenscopeError("--compare: takes one prompt, and saves with -o FILE.json")
    require_model(model)
    for place in places:
        require_lens(place, transferred)
    from lenscope.lenses.comparison import DISTANCES
    from lenscope.lenses.trajectory import MEASURES

    if measure is not None:
        require_name("measure", measure, DISTANCES if compare is not None else MEASURES)

    if stream:
        with progress_bar("blocks") as advance:
            lm = common.load_in_blocks(advance)
    else:
        lm = common.load()
    from lenscope.lenses.lens import Lens
    from lenscope.lenses.side_by_side import read_side_by_side
    from lenscope.lenses.trajectory_files import TrajectoryFile

    f = None if tuned is None else open_lens(tuned, lm, transferred)
    beside = opened_lenses(several, lm, transferred)
    one = Lens(lm, f, name=None if f is None else f"{f.report.get('lens', 'lens')} {tuned}")
    chosen = None if wanted_layers is None else resolve_layers(wanted_layers, lm.n_layers)
    ready = []
    for place, text in given:
        with naming_place(place):
            ready.append(lm.chat(text) if chat else lm.prompt(text))
    if compare is not None:
        both = one.compare(
            ready[0], lm.chat(compare) if chat else lm.prompt(compare), chosen, wanted_positions, top_k=top_k or TOP,
            points=points,  # type: ignore[arg-type]
        )  # fmt: skip
        what = f"{both.texts[0]!r} and {both.texts[1]!r}"
        show_and_save(both, lm, what, one.name, measure or "js", common.as_json, output, html)
        return

    keep = TOP if top_k is None and (common.as_json or output or html) else top_k or 1
    colour = measure or "max_probability"
    show_one: Any = _shown_as_json(len(given)) if common.as_json else _shown_as_tables(lm, one, colour, top_k or 1)
    reader: Any = one.trajectory
    single, paths = len(given) == 1, [path for path in (output, html) if path]
    if beside:
        show_one = show_one if common.as_json else shown_side_by_side(lm, colour, top_k or 1)
        reader = partial(read_side_by_side, lm, beside)
        files = [file_of_several(path, single, len(beside)) for path in paths]
    else:
        files = [TrajectoryFile.open(path, single) for path in paths]
    done = 0
    failure: BaseException | None = None
    try:
        with (
            show_one as shown,
            item_bar(len(ready) if common.as_json or not Screen().is_terminal else 1, "prompts") as progress,
        ):
            how: Any = {"target": target, "top_k": keep}
            within: Any = {} if generate is not None else {"points": points}
            # those that share a reading of the weights
            read = (
                _read_block_by_block(lm, reader, ready, chosen, wanted_positions, how | within)
                if stream and generate is None
                else None
            )
            for n, prompt in enumerate(ready):
                if generate is None:
                    trajectory = read[n] if read else reader(prompt, chosen, wanted_positions, **how, **within)
                    # the terminal first: what cannot be saved is still seen
                    shown(trajectory)
                else:
                    draws: Any = {"temperature": temperature or 0.0, "seed": seed or 0}
                    writing = one.generate(prompt, generate, chosen, wanted_positions, **how, **draws)
                    try:
                        shown(writing)
                    except KeyboardInterrupt as stop:
                        failure = stop
                        if not writing.ids:
                            break
                    trajectory = writing.trajectory()
                for saved in files:
                    saved.add(trajectory)
                done += 1
                progress.advance(progress.task_ids[0])
                if failure or (failure_of_stdout() and not files):
                    break
    except (Exception, KeyboardInterrupt) as error:
        failure = error
    for saved in files:
        try:
            if saved.end():
                tell(f"saved {saved.path}")
        except LenscopeError as error:
            failure = failure or error
    if lm.runner.stream is not None:
        tell(f"read the weights of {lm.name} {lm.runner.stream.passes:.3g} times")
    if isinstance(failure, KeyboardInterrupt) and done:
        raise Stopped(f"interrupted: {done} of {len(ready)} prompts done; they are {'kept' if files else 'shown'}")
    if failure is not None:
        raise failure


def _read_block_by_block(lm: "LM", reader: Any, prompts: Any, layers: Any, positions: Any, how: Any) -> list[Any]:
    """What a reader gives of all prompts, block by block."""
    with progress_bar("blocks") as advance:
        if lm.runner.stream is not None:
            lm.runner.stream.progress = advance
        return list(reader(prompts, layers, positions, **how))


@contextmanager
def _shown_as_tables(
    lm: "LM", lens: "Lens", measure: str, top_k: int
) -> Iterator[Callable[["Trajectory | WrittenTrajectory"], None]]:
    """Shows each trajectory as a table as soon as it is there; of one that is written, its tokens before."""
    console = Screen()
    first = True

    def shown(result: Any) -> None:
        nonlocal first
        if not first:
            console.print()
        first = False
        writing = getattr(result, "prompt", None)
        console.print(headline(lm, repr(writing.text if writing else result.text), console.width, lens.name))
        stopped = _streamed(console, result) if writing else None
        trajectory = result.written() if writing else result
        show(console, trajectory.table(measure, top_k=top_k, width=console.width))
        if trajectory.target is not None:
            console.print(rank_line(trajectory))
        if stopped is not None:
            raise stopped

    yield shown


def _streamed(console: Screen, writing: "WrittenTrajectory") -> KeyboardInterrupt | None:
    """Prints what is written, as it comes. An interruption ends the text: returned if there is any, else raised."""
    shown, stopped = "", None
    try:
        for _ in writing:
            # bytes that are no whole character yet wait for the next token
            text = writing.text.rstrip("\ufffd")
            if text.startswith(shown):
                console.print(Text(text[len(shown) :]), end="", soft_wrap=True)
                flush()
                shown = text
    except KeyboardInterrupt as stop:
        if not writing.ids:
            raise
        stopped = stop
    console.print(Text(writing.text[len(shown) :]), soft_wrap=True)
    return stopped


@contextmanager
def _shown_as_json(count: int) -> Iterator[Callable[["Trajectory | WrittenTrajectory"], None]]:
    """Prints each trajectory as JSON: one by itself, several as a list that is whole whatever ends it."""
    mark = "[" if count > 1 else ""

    def shown(result: Any) -> None:
        nonlocal mark
        stopped = None
        if hasattr(result, "written"):
            try:
                for _ in result:
                    pass
            except KeyboardInterrupt as stop:
                if not result.ids:
                    raise
                stopped = stop
            result = result.trajectory()
        print_json(result.to_json(), before=mark, end="" if count > 1 else "\n")
        mark = ", " if count > 1 else ""
        if stopped is not None:
            raise stopped

    try:
        yield shown
    finally:
        if count > 1:
            say("]" if mark != "[" else "[]")
