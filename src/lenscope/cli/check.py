"""The command that says what was found in a model, and how exactly it behaves.

Knows: marks and columns of findings, the exit status of a model that does not hold. Does not know: how a model is
checked (models/check.py).
"""

from typing import Annotated

import typer
from rich.text import Text

from lenscope.cli.options import CommonOptions, common_options
from lenscope.cli.streams import print_json
from lenscope.cli.terminal import Screen
from lenscope.cli.validation import require_model
from lenscope.visible_text import printable


@common_options()
def check_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The model: a built-in name, a hub id, a folder or a .gguf file.")
    ],
    common: CommonOptions,
) -> None:
    """Check that a model can be read, and how exactly.

    Shows where the layers and the readout of the model are, how exactly the readout gives the model's own logits, and
    which shortcuts are exact for it. Exit status 1 says that a check failed.

    \b
    Example:
      lenscope check smollm2-135m
    """
    require_model(model)
    lm = common.load()
    from lenscope.models.check import check

    report = check(lm)
    if common.as_json:
        print_json(report.to_json())
    else:
        console = Screen()
        console.print(Text(printable(report.model), style="bold"), soft_wrap=True)
        width = max(len(f.name) for f in report.findings)
        for f in report.findings:
            mark, style = {None: ("·", "dim"), True: ("✓", "green"), False: ("✗", "bold red")}[f.holds]
            line = Text.assemble((f"{mark} ", style), (f"{f.name:<{width}}  ", "dim"), printable(f.value))
            console.print(line, soft_wrap=True)
    if not report.holds:
        raise typer.Exit(1)
