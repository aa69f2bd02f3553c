"""The command line: parse, call one public function, print or save.

Knows: options, exit codes, what goes to stdout and what to stderr. Does not know: how anything is computed. Heavy
imports wait until a command needs them, so that --help answers at once.
"""

import json
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lenscope._version import __version__
from lenscope.errors import LenscopeError

if TYPE_CHECKING:
    from lenscope.model import LM
    from lenscope.results import Trajectory

app = typer.Typer(
    name="lenscope",
    help="Read what the hidden states of language models say.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[str, typer.Option("--model", "-m", help="Built-in alias, hub id, folder or .gguf file.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float64, bfloat16, float16; default: the checkpoint's own.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, auto …: where the model goes (transformers' device_map).")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Attention = Annotated[str | None, typer.Option("--attn", help="Attention backend: eager, sdpa, flash_attention_2 …")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout, nothing else.")]

DEFAULT_MODEL = "smollm2-135m"
DEMO_PROMPT, DEMO_TARGET = "The capital of France is", " Paris"


@app.command()
def lens(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="One or several prompts.")] = None,
    model: Model = DEFAULT_MODEL,
    file: Annotated[
        str | None, typer.Option("--file", "-f", help="A file with one prompt per line; - for stdin.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put each prompt into the model's chat template.")] = False,
    layers: Annotated[str | None, typer.Option(help="Which layers: 12, 0,6,12 or 0:31:5 (end not included).")] = None,
    positions: Annotated[
        str | None, typer.Option(help="Which positions: 3, -1, 0,2,4, -5: or a substring of the prompt.")
    ] = None,
    measure: Annotated[
        str, typer.Option(help="Colour: max_probability, entropy, kl, cross_entropy or rank; with --compare js, …")
    ] = "",
    top_k: Annotated[int, typer.Option("--top-k", help="How many tokens per cell.")] = 1,
    target: Annotated[
        str | None, typer.Option(help='Follow this token, e.g. " Paris"; default: the prompt\'s next token.')
    ] = None,
    compare: Annotated[str | None, typer.Option(help="A second prompt: show how far the two are apart.")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Save to a .parquet or .json file.")] = None,
    html: Annotated[str | None, typer.Option(help="Save a self-contained page.")] = None,
    as_json: AsJson = False,
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    attention: Attention = None,
) -> None:
    """The prediction trajectory of each prompt: what every layer would predict, as a table."""
    from lenscope.results import DISTANCES, MEASURES, check_measure, save, write_text

    texts = _texts(prompts or [], file)
    if compare is not None and (len(texts) != 1 or html or (output and not output.endswith(".json"))):
        raise LenscopeError("--compare: takes one prompt, and saves with -o FILE.json")
    check_measure(measure or "kl", DISTANCES if compare is not None else MEASURES)
    for path, endings in ((output, (".parquet", ".json")), (html, (".html",))):
        _writable(path, endings)
    wanted_layers, wanted_positions = _numbers(layers, "layers"), _places(positions)

    lm = _load(model, dtype, device, revision, attention)
    from lenscope.lens import Lens

    one = Lens(lm)
    ready = [lm.chat(t) if chat else lm.prompt(t) for t in texts]
    numbers = None if wanted_layers is None else _resolve(wanted_layers, lm.n_layers)
    if compare is not None:
        second = lm.chat(compare) if chat else lm.prompt(compare)
        both = one.compare(ready[0], second, numbers, wanted_positions, top_k=max(top_k, 5))
        if output:
            write_text(Path(output), json.dumps(both.to_json(), ensure_ascii=False))
        if as_json:
            _print_json(both.to_json())
        else:
            console = Console()
            console.print(_headline(lm, f"{both.texts[0]!r} and {both.texts[1]!r}", console.width))
            _show(console, both.table(measure or "js", width=console.width))
        return

    keep = max(top_k, 5) if as_json or output or html else top_k
    done: list[Trajectory] = []
    try:
        with _progress(len(ready), "prompts") as progress:
            for prompt in ready:
                done.append(one.trajectory(prompt, numbers, wanted_positions, target=target, top_k=keep))
                progress.advance(progress.task_ids[0])
    except KeyboardInterrupt:
        if not done:
            raise
        _tell(f"interrupted: {len(done)} of {len(ready)} prompts done; they are kept")
    result = done[0] if len(texts) == 1 else done
    if output:
        save(result, output)
    if html:
        from lenscope.web import page

        write_text(Path(html), page([t.to_json() for t in done], title=done[0].text))
    if as_json:
        _print_json([t.to_json() for t in done] if isinstance(result, list) else done[0].to_json())
        return
    console = Console()
    for n, trajectory in enumerate(done):
        if n:
            console.print()
        console.print(_headline(lm, repr(trajectory.text), console.width))
        _show(console, trajectory.table(measure or "max_probability", top_k=top_k, width=console.width))
        if target is not None:
            console.print(_rising(trajectory))
    for path in (output, html):
        if path:
            _tell(f"saved {path}")


@app.command()
def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Built-in alias, hub id, folder or .gguf file.")],
    as_json: AsJson = False,
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    attention: Attention = None,
) -> None:
    """What was found in a model, how exactly its readout was verified, and what is unsupported."""
    lm = _load(model, dtype, device, revision, attention)
    from lenscope.checks import check as examine

    report = examine(lm)
    if as_json:
        _print_json(report.to_json())
    else:
        console = Console()
        console.print(Text(report.model, style="bold"))
        width = max(len(f.name) for f in report.findings)
        for f in report.findings:
            mark, style = {None: ("·", "dim"), True: ("✓", "green"), False: ("✗", "bold red")}[f.holds]
            console.print(Text.assemble((f"{mark} ", style), (f"{f.name:<{width}}  ", "dim"), f.value), soft_wrap=True)
    if not report.holds:
        raise typer.Exit(1)


@app.command()
def demo(
    output: Annotated[str, typer.Option("-o", "--output", help="The folder for the report.")] = "demo",
    model: Model = DEFAULT_MODEL,
) -> None:
    """The main job end to end on the built-in model: a trajectory in the terminal and as a page."""
    began = time.perf_counter()
    lm = _load(model, None, None, None, None)
    from lenscope.lens import Lens

    console = Console(width=max(80, Console().width))
    trajectory = Lens(lm).trajectory(DEMO_PROMPT, target=DEMO_TARGET)
    console.print(_headline(lm, repr(DEMO_PROMPT), console.width))
    console.print(
        Text(f"readout {lm.readout.description}; verified, deviation {lm.verified.deviation:.1e}", style="dim")
    )
    _show(console, trajectory.table(width=console.width))
    console.print(_rising(trajectory))
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LenscopeError(f"{folder}: cannot be made a folder ({error.strerror})") from error
    report = folder / "index.html"
    trajectory.to_html(report)
    console.print(f"\n{time.perf_counter() - began:.0f} s; look at {report.resolve()}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line on stderr and exit status 2."""
    try:
        status = app(args=None if arguments is None else list(arguments), standalone_mode=False)
    except LenscopeError as error:
        _tell(str(error))
        status = 2
    except typer.TyperException as error:
        _tell(f"{error.format_message()} (see --help)")
        status = 2
    except (KeyboardInterrupt, typer.Abort):
        _tell("interrupted")
        status = 130
    except BrokenPipeError:
        # the reader of the pipe has seen enough; keep Python from complaining when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status if isinstance(status, int) else 0)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"lenscope {__version__}")
        raise typer.Exit


def _load(model: str, dtype: str | None, device: str | None, revision: str | None, attention: str | None) -> "LM":
    if dtype not in (None, "float32", "float64", "bfloat16", "float16"):
        raise LenscopeError(f"--dtype {dtype}: give float32, float64, bfloat16 or float16")
    from lenscope.loading import load

    return load(model, dtype=dtype, device_map=device, revision=revision, attn_implementation=attention)


def _texts(prompts: list[str], file: str | None) -> list[str]:
    texts = list(prompts)
    if file is not None:
        try:
            text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LenscopeError(
                f"--file {file}: cannot be read as text ({getattr(error, 'strerror', '') or error})"
            ) from error
        texts += [line for line in text.splitlines() if line.strip()]
    if not texts:
        raise LenscopeError("no prompt: give one as an argument, or several with --file FILE (- for stdin)")
    return texts


def _numbers(text: str | None, name: str) -> list[int | slice] | None:
    """0,6,12 or 0:31:5, also mixed: integers and slices."""
    if text is None:
        return None
    found: list[int | slice] = []
    for part in text.split(","):
        if re.fullmatch(r"\s*-?\d+\s*", part):
            found.append(int(part))
        elif re.fullmatch(r"\s*(-?\d+)?:(-?\d+)?(:[1-9]\d*)?\s*", part):
            found.append(slice(*(int(n) if n.strip() else None for n in part.split(":"))))
        else:
            raise LenscopeError(f"--{name} {text}: give numbers and ranges such as 12 or 0,6,12 or 0:31:5")
    return found


def _resolve(numbers: list[int | slice], n_layers: int) -> list[int]:
    found: list[int] = []
    for n in numbers:
        found += [n] if isinstance(n, int) else range(n_layers + 1)[n]
    return found


def _places(text: str | None) -> Any:
    """Positions as the library takes them: what is not a list of numbers or a range is a substring."""
    if text is None:
        return None
    if not re.fullmatch(r"[-\d:,\s]+", text):
        return [text]
    numbers = _numbers(text, "positions") or []
    if len(numbers) == 1 and isinstance(numbers[0], slice):
        return numbers[0]
    if any(isinstance(n, slice) for n in numbers):
        raise LenscopeError(f"--positions {text}: give a list such as 0,2,4 or one range such as -5:")
    return numbers


def _writable(path: str | None, endings: tuple[str, ...]) -> None:
    """Before the work, not after it."""
    if path is None:
        return
    if Path(path).suffix not in endings:
        raise LenscopeError(f"{path}: give a file that ends in {' or '.join(endings)}")
    if not Path(path).absolute().parent.is_dir():
        raise LenscopeError(f"{path}: the folder {Path(path).absolute().parent} does not exist")


def _headline(lm: "LM", what: str, width: int) -> Text:
    kind = f"{lm.n_layers} layers, {str(lm.dtype).removeprefix('torch.')}"
    parts = ("logit lens", "bold"), (f"  {lm.name}, {kind}  ", "dim"), what
    line = Text.assemble(*parts)
    line.truncate(width, overflow="ellipsis")
    return line


def _show(console: Console, table: Table) -> None:
    """The table, then its caption over the whole width: within a narrow table it would be broken to pieces."""
    caption, table.caption = table.caption, None
    console.print(table)
    console.print(caption)


def _rising(t: "Trajectory") -> Text:
    """The target's way up at the last position: rank and probability at the layers where its rank changes most."""
    token = t.vocabulary[t.target] if t.target is not None else ""
    ranks = t.rank[:, -1]
    steps = [0, *(i for i in range(1, len(ranks)) if ranks[i] < ranks[:i].min())]
    line = Text(f"\n{token.strip()!r} at the last position, rank (0 is the top) by layer: ")
    for i in steps:
        probability = float(math.exp(-t.cross_entropy[i, -1]))
        line.append(f"  {t.layers[i]}: ", style="dim")
        line.append(f"{ranks[i]}" + (f" ({probability:.0%})" if probability >= 0.005 else ""))
    return line


def _progress(total: int, unit: str) -> Progress:
    """A bar on stderr for work of several items; nothing for a single one."""
    console = Console(stderr=True)
    columns = TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    progress = Progress(*columns, console=console, transient=True, disable=total < 2 or not console.is_terminal)
    progress.add_task(unit, total=total)
    return progress


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _tell(line: str) -> None:
    print("lenscope: " + " ".join(line.split()), file=sys.stderr)
