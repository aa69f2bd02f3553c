"""The commands of detectors: their group, and fitting one on normal prompts, or on attacks as well.

Knows: what fitting is given, and the table of what was tried. Does not know: how a detector works
(detection/detector.py), how prompts are scored (detect_score.py).
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lenscope.cli.detect_attacks import (
    check_attack_options,
    check_view,
    fit_on_attacks,
    labelled_prompts_of,
    normal_prompts_of,
    require_prompts_fit,
)
from lenscope.cli.detect_score import score_prompts_command
from lenscope.cli.options import (
    TUNED,
    CommonOptions,
    Seed,
    Transferred,
    common_options,
    name_and_place,
    open_lens,
    parse_indices,
    resolve_layers,
)
from lenscope.cli.prompt_files import PromptField, check_field
from lenscope.cli.several_lenses import LOGIT, lenses_by_name
from lenscope.cli.streams import flush, print_json, tell
from lenscope.cli.terminal import Screen, headline, progress_bar, show
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
from lenscope.visible_text import printable

# ways that were tried, as many as are shown
SHOWN = 6

detect_commands = typer.Typer(
    name="detect",
    help="Find prompts that are unlike normal ones, such as injections.",
    rich_markup_mode=None,
)
detect_commands.command("score")(score_prompts_command)


@detect_commands.command("fit")
@common_options()
def fit_detector_command(
    data: Annotated[
        str, typer.Option("--data", "-d", help="File of normal prompts: .txt with one per line, or .jsonl.")
    ],
    output: Annotated[str, typer.Option("-o", "--output", help="Folder for the detector.")],
    attacks: Annotated[
        str | None,
        typer.Option(
            help="File of attacks, .txt or .jsonl, to fit a detector of attacks. In .jsonl files, also in --data, a "
            "label (1 attack, 0 harmless), source, category, host and span are read."
        ),
    ] = None,
    field: PromptField = None,
    lens: Annotated[
        list[str] | None,
        typer.Option(help=f"{TUNED[:-1]}; with --attacks it may be repeated, also as NAME=LENS; logit is a lens too."),
    ] = None,
    transferred: Transferred = False,
    view: Annotated[
        str | None,
        typer.Option(
            help='With --attacks: what is looked at: "last state", "mean state", "trajectory NAME" of the lens of that '
            'name, trajectories (of all lenses), "states and trajectories", length or perplexity; default: the best of '
            "all but the last two."
        ),
    ] = None,
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
    calibration: Annotated[
        str | None,
        typer.Option(
            help="With --attacks: platt, or isotonic, which takes more prompts, makes probabilities; default: platt."
        ),
    ] = None,
    abstain: Annotated[
        float | None,
        typer.Option(
            help="With --attacks: share of the prompts, nearest to the threshold, to be unsure of; default: 0.1."
        ),
    ] = None,
    seed: Seed = 0,
    *,
    common: CommonOptions,
) -> None:
    """Fit a detector on normal prompts, or on normal prompts and attacks.

    Without --attacks the method is chosen on normal prompts alone, and the detector never sees an odd one: rows of
    --data with label 1, or with a span, are left out. With --attacks a linear probe gives the probability that a prompt
    is an attack.

    \b
    Examples:
      lenscope detect fit --data normal.txt --lens lens -o detector
      lenscope detect fit --data normal.txt --attacks attacks.jsonl --lens lens --lens logit -o detector
    """
    check_field(field, data, *([] if attacks is None else [attacks]))
    require_effect("--transferred", transferred, bool(lens), "applies to --lens")
    for name, value in (("--view", view), ("--calibration", calibration), ("--abstain", abstain)):
        require_effect(name, value is not None, attacks is not None, "is about detectors of --attacks")
    for name, several in (("--choice", choice), ("--method", method)):
        require_effect(name, several, attacks is None, "is about detectors of normal prompts alone, without --attacks")
    if not 0 < false_positives < 1:
        raise LenscopeError(f"--false-positives {false_positives}: give a share between 0 and 1, such as 0.05")
    require_seed(seed)
    for path in (data, attacks or data):
        # before what reads it is imported; - is stdin
        if path != "-":
            require_path(path, "file")
    check_attack_options(calibration, abstain)
    check_view(view, lens or (), layers)
    labelled = None if attacks is None else labelled_prompts_of(data, attacks, field or "text")
    prompts, left_out = normal_prompts_of(data, field or "text") if labelled is None else ([], {})
    wanted = parse_indices(layers, "layers")
    if choice is not None and len(choice) < 2:
        raise LenscopeError(f"--choice {choice[0]}: give at least two")
    if (Path(output) / "config.json").exists():
        raise LenscopeError(f"{output}: has a config.json already; give another folder")
    require_model(common.model)
    if attacks is None and len(lens or ()) > 1:
        raise LenscopeError(f"--lens {(lens or [])[1]}: a detector of normal prompts alone reads through one lens")
    for one in lens or ():
        if attacks is None or one != LOGIT:
            require_lens(name_and_place(one)[1] if attacks is not None else one, transferred)
    from lenscope.detection.attack_fit import enough_labelled_prompts
    from lenscope.detection.detector import enough_normal_prompts
    from lenscope.detection.outliers import METHODS

    for one in method or ():
        require_name("method", one, METHODS)
    for why, count in left_out.items():
        tell(f"left out: {count} × {why}")
    # the fit refuses the same, but later: the model would load first
    if labelled is None:
        enough_normal_prompts([text for _, text in prompts], false_positives)
    else:
        enough_labelled_prompts([prompt for _, prompt in labelled], false_positives)
    make_folder(output)
    if labelled is not None:
        fit_on_attacks(
            common,
            labelled,
            output,
            view=view,
            places=lenses_by_name(lens) if lens else {LOGIT: None},
            transferred=transferred,
            layers=wanted,
            calibration=calibration or "platt",
            false_positives=false_positives,
            abstain=0.1 if abstain is None else abstain,
            seed=seed,
        )
        return
    lm = common.load()
    require_prompts_fit(lm, prompts)
    from lenscope.detection.detector import fit_detector
    from lenscope.lenses.lens import Lens

    f = open_lens(lens[0], lm, transferred) if lens else None
    with progress_bar("prompts") as advance:
        detector = fit_detector(
            Lens(lm, f),
            [text for _, text in prompts],
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
