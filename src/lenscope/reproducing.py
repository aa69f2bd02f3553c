"""The command that runs an experiment of the papers on the user's model, and saves its report.

Knows: options, which folder is used, what is printed. Does not know: any experiment.
"""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lenscope.errors import LenscopeError
from lenscope.experiments import EXPERIMENTS, experiment
from lenscope.lensing import TUNED, Seed, opened
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
    counted,
    headline,
    load_model,
    make_folder,
    print_json,
    show,
    tell,
)


def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Which experiment; without one they are listed.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", "-d", help="The experiment's data, text or questions; may be repeated. Default: built in."
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="Text to fit a lens on where none is given; default: the model's own samples."),
    ] = None,
    lens: Annotated[
        str | None, typer.Option("--lens", help=f"{TUNED.partition(';')[0]}; default: one is fitted.")
    ] = None,
    transferred: Transferred = False,
    target_model: Annotated[
        str | None,
        typer.Option("--target-model", help="The model that states are patched into; default: the model itself."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small run of at most five minutes.")] = False,
    seed: Seed = 0,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="The folder for the report; default: reproduction/NAME.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    attention: Attention = None,
) -> None:
    """Run an experiment of the papers on a model: tables with intervals, figures, and what replicates."""
    if name is None:
        _list(as_json)
        return
    chosen = experiment(name)
    for given in (*(data or ()), *(text or ())):
        if not Path(given).exists():
            raise LenscopeError(f"{given}: there is no such file; {name} takes {chosen.data} as --data")
    if text and chosen.data == "text":
        raise LenscopeError(f"--text: the --data of {name} is its text; give it as --data")
    if target_model is not None and not chosen.across:
        raise LenscopeError(f"--target-model: {name} stays within one model; leave it out")
    folder = make_folder(output or f"reproduction/{name}")
    began = time.perf_counter()
    lm = load_model(model, dtype, device, revision, attention)
    other = None if target_model is None else load_model(target_model, dtype, device, None, attention)
    from lenscope.experiments.setting import Setting

    setting = Setting(
        lm,
        data=tuple(data or ()),
        text=tuple((data if chosen.data == "text" else text) or ()),
        lens=None if lens is None else opened(lens, lm, transferred),
        quick=quick,
        seed=seed,
        folder=folder,
        progress=counted,
        target_lm=other,
    )
    if setting.overlapping:
        tell(f"--lens {lens} was fitted on some of the text that is held out: give a lens of other text or --seed")
    try:
        report = chosen.run(setting)
    except KeyboardInterrupt as stop:
        raise Stopped(f"interrupted: {folder} keeps what was done; the same command goes on from there") from stop
    report.settings["seconds"] = round(time.perf_counter() - began)
    report.save(folder)
    if as_json:
        print_json(report.to_json())
        return
    console = Console()
    console.print(headline(lm, EXPERIMENTS[name], console.width, name))
    for title in report.tables:
        console.print(Text(f"\n{title}", style="bold"))
        show(console, report.table(title, width=console.width))
    console.print()
    console.print(Text.assemble(("The paper. ", "bold"), report.claim))
    console.print(Text.assemble(("Here. ", "bold"), report.reading))
    tell(f"saved {folder / 'report.md'}")


def _list(as_json: bool) -> None:
    if as_json:
        print_json(EXPERIMENTS)
        return
    table: Any = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name, what in EXPERIMENTS.items():
        table.add_row(Text(name, style="bold"), Text(what))
    Console().print(table)
