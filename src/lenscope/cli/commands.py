"""The commands by name, and the one that says what was found in a model.

Knows: which commands there are. Does not know: how anything is computed, what happens when a command fails (cli.py).
Heavy imports wait until a command needs them, so that --help answers at once.
"""

from typing import Annotated

import typer
from rich.text import Text

from lenscope._version import __version__
from lenscope.cli.causal import causal
from lenscope.cli.demo import demo
from lenscope.cli.detect import detect
from lenscope.cli.fit import eval_, export, fit
from lenscope.cli.given import known_model
from lenscope.cli.lens import lens
from lenscope.cli.options import AsJson, Attention, Device, Dtype, Revision, load_model
from lenscope.cli.patch import patch
from lenscope.cli.reproduce import reproduce
from lenscope.cli.screen import Screen
from lenscope.cli.streams import print_json, say
from lenscope.visible_text import plain

app = typer.Typer(
    name="lenscope",
    help="Read what the hidden states of language models say.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Built-in alias, hub id, folder or .gguf file.")],
    as_json: AsJson = False,
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    attention: Attention = None,
) -> None:
    """What was found in a model, how exactly its readout was verified, and what is unsupported."""
    known_model(model)
    lm = load_model(model, dtype, device, revision, attention)
    from lenscope.models.check import check as examine

    report = examine(lm)
    if as_json:
        print_json(report.to_json())
    else:
        console = Screen()
        console.print(Text(plain(report.model), style="bold"), soft_wrap=True)
        width = max(len(f.name) for f in report.findings)
        for f in report.findings:
            mark, style = {None: ("·", "dim"), True: ("✓", "green"), False: ("✗", "bold red")}[f.holds]
            line = Text.assemble((f"{mark} ", style), (f"{f.name:<{width}}  ", "dim"), plain(f.value))
            console.print(line, soft_wrap=True)
    if not report.holds:
        raise typer.Exit(1)


for name, command in (
    ("lens", lens),
    ("patch", patch),
    ("check", check),
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
        say(f"lenscope {__version__}")
        raise typer.Exit
