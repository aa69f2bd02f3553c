"""The command that runs an experiment of the papers on the user's model, and saves its report.

Knows: options, which folder is used, what is printed. Does not know: any experiment.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from lenscope.cli.options import (
    DEFAULT_MODEL,
    TUNED,
    CommonOptions,
    Seed,
    Transferred,
    common_options,
    open_lens,
    places_by_name,
)
from lenscope.cli.streams import flush, print_json, tell
from lenscope.cli.terminal import Screen, Stopped, headline, progress_bar, show
from lenscope.cli.validation import (
    make_folder,
    require_effect,
    require_lens,
    require_model,
    require_name,
    require_path,
    require_seed,
    require_verbaliser,
)
from lenscope.errors import LenscopeError
from lenscope.experiments import EXPERIMENTS, experiment
from lenscope.visible_text import printable

if TYPE_CHECKING:
    from lenscope.experiments.report import Report
    from lenscope.models.language_model import LM


@common_options()
def reproduce_command(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of the experiment; without a name, all are listed.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", "-d", help="Data of the experiment, texts or questions; may be repeated. Default: built in."
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            help="Text to fit a lens on if none is given, and for which-lens to measure lenses on; default: text that "
            "the model writes itself.",
        ),
    ] = None,
    lens: Annotated[
        list[str] | None,
        typer.Option(
            "--lens",
            help=f"{TUNED.partition(';')[0]}; default: one is fitted. which-lens takes several, each as LENS or "
            "NAME=LENS.",
        ),
    ] = None,
    transferred: Transferred = False,
    target_model: Annotated[
        str | None,
        typer.Option("--target-model", help="Model that states are patched into; default: the same model."),
    ] = None,
    verbaliser: Annotated[
        str | None,
        typer.Option(
            "--verbaliser",
            help="A trained verbaliser whose map is compared, or a SelfIE adapter's file; default: none, or one is "
            "trained.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Run a small version, of at most five minutes.")] = False,
    seed: Seed = 0,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Folder for the report; default: reproduction/NAME.")
    ] = None,
    *,
    common: CommonOptions,
) -> None:
    """Run one of the papers' experiments on a model.

    The report has tables with intervals, figures, and says in words what replicates on this model.

    \b
    Examples:
      lenscope reproduce
      lenscope reproduce overthinking --quick -o report
      lenscope reproduce which-lens --lens tuned=lens --lens jacobian=jlens -d prompts.jsonl
    """
    lens = lens or None
    if name is None:
        for option, value in (
            ("--data", data), ("--text", text), ("--lens", lens), ("--transferred", transferred),
            ("--target-model", target_model), ("--verbaliser", verbaliser),
            ("--quick", quick), ("--seed", seed or None), ("--output", output),
            ("--model", common.model != DEFAULT_MODEL), ("--dtype", common.dtype), ("--device", common.device),
            ("--revision", common.revision), ("--attn", common.attention), ("--adapter", common.adapter),
        ):  # fmt: skip
            require_effect(option, value, False, "applies to an experiment, and without NAME they are only listed")
        _list_experiments(common.as_json)
        return
    require_name("experiment", name, EXPERIMENTS)
    require_effect("--transferred", transferred, lens is not None, "applies to --lens")
    require_seed(seed)
    for given in data or ():
        if not Path(given).exists():
            raise LenscopeError(f"{given}: there is no such file; {name} takes {experiment(name).data} as --data")
    for given in text or ():
        require_path(given, "file")
    common.require_one_process("experiments go on from results that one process has")
    require_model(common.model)
    if target_model is not None:
        require_model(target_model)
    chosen = experiment(name)
    require_effect("--lens", lens, chosen.lens, f"{name} reads through no lens")
    if lens and len(lens) > 1 and not chosen.lenses:
        raise LenscopeError(f"--lens: {name} reads through one lens, not {len(lens)}; give one")
    places = places_by_name(lens or ()) if chosen.lenses else dict.fromkeys(("",), lens[0]) if lens else {}
    for where in places.values():
        require_lens(where, transferred)
    require_effect(
        "--text", text, chosen.lens or chosen.data == "text", f"is what a lens is fitted on, and {name} needs none"
    )
    require_effect("--text", text, lens is None or chosen.lenses, "is what a lens is fitted on, and --lens gives one")
    if text and chosen.data == "text":
        raise LenscopeError(f"--text: the --data of {name} is its text; give it as --data")
    if target_model is not None and not chosen.across:
        raise LenscopeError(f"--target-model: {name} stays within one model; leave it out")
    require_effect("--verbaliser", verbaliser, chosen.verbaliser, f"{name} has no row of a trained map")
    if verbaliser is not None:
        require_verbaliser(verbaliser)
    folder = make_folder(output or f"reproduction/{name}")
    began = time.perf_counter()
    lm = common.load()
    other = None if target_model is None else replace(common, model=target_model, revision=None, adapter=None).load()
    from lenscope.experiments.setting import Setting

    lenses = {named: open_lens(where, lm, transferred) for named, where in places.items()}
    trained = None
    if verbaliser is not None:
        from lenscope.verbalisers.selfie_prompts import open_verbaliser

        trained = open_verbaliser(verbaliser, lm)
    setting = Setting(
        lm,
        data=tuple(data or ()),
        text=tuple((data if chosen.data == "text" else text) or ()),
        lens=None if chosen.lenses else lenses.get(""),
        quick=quick,
        seed=seed,
        folder=folder,
        progress=progress_bar,
        target_lm=other,
        lenses=lenses if chosen.lenses else {},
        verbaliser=trained,
    )
    if setting.overlapping:
        given = " ".join(lens or ())
        tell(f"--lens {given} was fitted on some of the text that is held out: give a lens of other text or --seed")
    try:
        report = chosen.run(setting)
    except KeyboardInterrupt as stop:
        raise Stopped(f"interrupted: {folder} keeps what was done; the same command goes on from there") from stop
    report.settings["seconds"] = round(time.perf_counter() - began)
    if common.as_json:
        print_json(report.to_json())
    else:
        _show_report(report, lm, name)
    flush()
    report.save(folder)
    if not common.as_json:
        tell(f"saved {folder / 'report.md'}")


def _show_report(report: "Report", lm: "LM", name: str) -> None:
    console = Screen()
    console.print(headline(lm, "", console.width, name))
    console.print(Text(printable(EXPERIMENTS[name])))
    for title in report.tables:
        console.print(Text(f"\n{printable(title)}", style="bold"))
        show(console, report.table(title, width=console.width))
    console.print()
    console.print(Text.assemble(("The paper. ", "bold"), printable(report.claim)))
    verdict, *details = map(printable, report.reading.split("\n"))
    console.print(Text.assemble(("Here. ", "bold"), verdict))
    for one in details:
        console.print(Text(f"· {one}"))


def _list_experiments(as_json: bool) -> None:
    if as_json:
        print_json(EXPERIMENTS)
        return
    table: Any = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name, what in EXPERIMENTS.items():
        table.add_row(Text(name, style="bold"), Text(what))
    Screen().print(table)
