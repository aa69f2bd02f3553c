"""The command line: parse, call one public function, print or save.

Knows: options, exit codes, what goes to stdout and what to stderr. Does not know: how anything is computed. Heavy
imports wait until a command needs them, so that --help answers at once.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from lenscope._version import __version__
from lenscope.causing import causal
from lenscope.demo import demo
from lenscope.detecting import detect
from lenscope.errors import LenscopeError
from lenscope.lensing import TUNED, eval_, export, fit, opened
from lenscope.reproducing import reproduce
from lenscope.terminal import (
    DEFAULT_MODEL,
    AsJson,
    Attention,
    Device,
    Dtype,
    Model,
    Revision,
    Stopped,
    Transferred,
    bar,
    counted,
    headline,
    load_model,
    numbers,
    places,
    print_json,
    resolve,
    rising,
    show,
    tell,
    texts,
    writable,
)

if TYPE_CHECKING:
    from lenscope.results import Trajectory

app = typer.Typer(
    name="lenscope",
    help="Read what the hidden states of language models say.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


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
    tuned: Annotated[str | None, typer.Option("--lens", help=TUNED)] = None,
    transferred: Transferred = False,
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
    from lenscope.results import DISTANCES, MEASURES, check_measure, save
    from lenscope.writing import write_text

    given = texts(prompts or [], file)
    if compare is not None and (len(given) != 1 or html or (output and not output.endswith(".json"))):
        raise LenscopeError("--compare: takes one prompt, and saves with -o FILE.json")
    check_measure(measure or "kl", DISTANCES if compare is not None else MEASURES)
    for path, endings in ((output, (".parquet", ".json")), (html, (".html",))):
        writable(path, endings)
    wanted_layers, wanted_positions = numbers(layers, "layers"), places(positions)

    lm = load_model(model, dtype, device, revision, attention)
    from lenscope.lens import Lens

    f = None if tuned is None else opened(tuned, lm, transferred)
    one = Lens(lm, f, name=None if f is None else f"{f.report.get('lens', 'lens')} {tuned}")
    ready = [lm.chat(t) if chat else lm.prompt(t) for t in given]
    chosen = None if wanted_layers is None else resolve(wanted_layers, lm.n_layers)
    if compare is not None:
        second = lm.chat(compare) if chat else lm.prompt(compare)
        both = one.compare(ready[0], second, chosen, wanted_positions, top_k=max(top_k, 5))
        if output:
            write_text(Path(output), json.dumps(both.to_json(), ensure_ascii=False))
        if as_json:
            print_json(both.to_json())
        else:
            console = Console()
            console.print(headline(lm, f"{both.texts[0]!r} and {both.texts[1]!r}", console.width, one.name))
            show(console, both.table(measure or "js", width=console.width))
        return

    keep = max(top_k, 5) if as_json or output or html else top_k
    done: list[Trajectory] = []
    kept = ""
    try:
        with bar(len(ready), "prompts") as progress:
            for prompt in ready:
                done.append(one.trajectory(prompt, chosen, wanted_positions, target=target, top_k=keep))
                progress.advance(progress.task_ids[0])
    except KeyboardInterrupt:
        if not done:
            raise
        kept = f"interrupted: {len(done)} of {len(ready)} prompts done; they are kept"
    result = done[0] if len(given) == 1 else done
    if output:
        save(result, output)
    if html:
        from lenscope.web import page

        write_text(Path(html), page([t.to_json() for t in done], title=done[0].text))
    if as_json:
        print_json([t.to_json() for t in done] if isinstance(result, list) else done[0].to_json())
    else:
        console = Console()
        for n, trajectory in enumerate(done):
            if n:
                console.print()
            console.print(headline(lm, repr(trajectory.text), console.width, one.name))
            show(console, trajectory.table(measure or "max_probability", top_k=top_k, width=console.width))
            if target is not None:
                console.print(rising(trajectory))
        for path in (output, html):
            if path:
                tell(f"saved {path}")
    if kept:
        raise Stopped(kept)


@app.command()
def patch(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The source prompt.")],
    at: Annotated[str, typer.Option(help="Which token is explained: a position, or a substring of the prompt.")] = "-1",
    target: Annotated[
        str,
        typer.Option(
            "--target", "-t", help="A target prompt: entity, identity, a relation such as country_currency, or a text."
        ),
    ] = "entity",
    placeholder: Annotated[
        str, typer.Option(help="What of a text of your own is patched: a position, or a substring.")
    ] = "-1",
    grid: Annotated[
        bool, typer.Option("--grid", help="Every source layer at every target layer: next tokens.")
    ] = False,
    layers: Annotated[str | None, typer.Option(help="Which source layers: 12, 0,6,12 or 0:31:5.")] = None,
    target_layers: Annotated[
        str | None, typer.Option("--target-layers", help="Which target layers; default: the source's own.")
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", help="How many tokens are written; 0: next tokens only.")
    ] = 12,
    stop: Annotated[list[str] | None, typer.Option(help="Stop where the text contains this; may be repeated.")] = None,
    answer: Annotated[list[str] | None, typer.Option(help="Follow this answer; may be repeated.")] = None,
    below: Annotated[
        str, typer.Option(help="What is seen of the placeholder below the patch: target, none or source.")
    ] = "target",
    measure: Annotated[str, typer.Option(help="Colour: max_probability, kl, entropy, surprisal, …")] = "",
    model: Model = DEFAULT_MODEL,
    target_model: Annotated[str | None, typer.Option("--target-model", help="The model that explains.")] = None,
    mapping: Annotated[str | None, typer.Option(help="A folder with a mapping between the two models.")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Save to a .parquet or .json file.")] = None,
    as_json: AsJson = False,
    dtype: Dtype = None,
    device: Device = None,
    attention: Attention = None,
) -> None:
    """What the model says a hidden state means, layer by layer (Patchscopes)."""
    writable(output, (".parquet", ".json"))
    source_layers, chosen_layers = numbers(layers, "layers"), numbers(target_layers, "target-layers")
    where, slot = places(at), places(placeholder)
    lm = load_model(model, dtype, device, None, attention)
    other = load_model(target_model, dtype, device, None, attention) if target_model else lm
    from lenscope.mappings import load_mapping
    from lenscope.methods import TARGETS, named
    from lenscope.patchscope import Interrupted, Patchscope, Target
    from lenscope.states import check_layers

    # a text that is nearly a name is a mistyped one, and would be read as a target prompt
    meant = get_close_matches(target, TARGETS, 1, 0.75)
    one = named(target) if target in TARGETS or meant else Target(target, at=slot)
    scope = Patchscope(other, replace(one, below=below), load_mapping(mapping) if mapping else None, source_lm=lm)
    # all layers are read: the last one is the source model's own prediction, the lower ones may fill placeholders
    states = lm.read(prompt, positions=where)
    if source_layers is not None:
        to = resolve(chosen_layers, other.n_layers) if chosen_layers is not None else None
        every = check_layers(resolve(source_layers, lm.n_layers), lm.n_layers, lm.name)
        targets = to if to is not None else range(other.n_layers + 1) if grid else None
        wanted: Any = [(a, b) for a in every for b in (targets if targets is not None else [a])]
    elif chosen_layers is not None:
        wanted = resolve(chosen_layers, other.n_layers)
    else:
        wanted = None if grid else "same"
    kept = ""
    try:
        with counted("cells") as advance:
            if grid or tokens == 0 or answer:
                result = scope.predict(states, wanted, answers=answer or (), progress=advance)
            else:
                result = scope.generate(states, wanted, max_new_tokens=tokens, stop=tuple(stop or ()), progress=advance)
    except Interrupted as partial:
        if partial.grid is None:
            raise
        result = partial.grid
        kept = f"interrupted: {len(result)} cells done; they are kept"
    if output:
        result.save(output)
    if as_json:
        print_json(result.to_json())
    else:
        console = Console()
        console.print(headline(other, f"{prompt!r}", console.width, "patchscope"))
        show(console, result.table(measure, width=console.width))
        if output:
            tell(f"saved {output}")
    if kept:
        raise Stopped(kept)


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
    lm = load_model(model, dtype, device, revision, attention)
    from lenscope.checks import check as examine

    report = examine(lm)
    if as_json:
        print_json(report.to_json())
    else:
        console = Console()
        console.print(Text(report.model, style="bold"))
        width = max(len(f.name) for f in report.findings)
        for f in report.findings:
            mark, style = {None: ("·", "dim"), True: ("✓", "green"), False: ("✗", "bold red")}[f.holds]
            console.print(Text.assemble((f"{mark} ", style), (f"{f.name:<{width}}  ", "dim"), f.value), soft_wrap=True)
    if not report.holds:
        raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line on stderr and exit status 2."""
    try:
        status = app(args=None if arguments is None else list(arguments), standalone_mode=False)
        if status == 130:  # an interruption that typer took for itself
            tell("interrupted")
    except LenscopeError as error:
        tell(str(error))
        status = 2
    except typer.TyperException as error:
        tell(f"{error.format_message()} (see --help)")
        status = 2
    except Stopped as stop:
        tell(str(stop))
        status = 130
    except (KeyboardInterrupt, typer.Abort):
        tell("interrupted")
        status = 130
    except BrokenPipeError:
        # the reader of the pipe has seen enough; keep Python from complaining when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status if isinstance(status, int) else 0)


for name, command in (
    ("fit", fit),
    ("eval", eval_),
    ("export", export),
    ("causal", causal),
    ("reproduce", reproduce),
    ("demo", demo),
):
    app.command(name)(command)
app.add_typer(detect)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"lenscope {__version__}")
        raise typer.Exit
