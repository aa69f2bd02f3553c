"""What `lenscope detect fit` does with attacks: prompts with labels, what was tried, in a table and in words.

Knows: which files have which labels, how views and their intervals are shown.
Does not know: how a detector is fitted (detection/attack_fit.py), the other options of the command (detect.py).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lenscope.cli.options import CommonOptions, resolve_layers
from lenscope.cli.prompt_files import placed_prompts_of_file
from lenscope.cli.several_lenses import LOGIT, lenses_as_named, lenses_by_name
from lenscope.cli.streams import flush, print_json, tell
from lenscope.cli.terminal import Screen, headline, progress_bar, show
from lenscope.cli.validation import require_effect, require_name
from lenscope.errors import LenscopeError, naming_place
from lenscope.visible_text import printable

if TYPE_CHECKING:
    from lenscope.detection.labelled_prompts import LabelledPrompt
    from lenscope.models.language_model import LM


def labelled_prompts_of(data: str, attacks: str, field: str) -> "list[tuple[str, LabelledPrompt]]":
    """The prompts of --data and --attacks with their places: a row's own label counts, else it is as its option says.

    One file for both must have labels in all rows. Raises LenscopeError for files that are not right.
    """
    from lenscope.detection.labelled_prompts import placed_labelled_prompts

    if Path(data).resolve() == Path(attacks).resolve():
        return placed_labelled_prompts(data, field=field)
    harmless = placed_labelled_prompts(data, field=field, attack=False)
    return [*harmless, *placed_labelled_prompts(attacks, field=field, attack=True)]


def normal_prompts_of(data: str, field: str) -> tuple[list[tuple[str, str]], Counter[str]]:
    """The normal prompts of --data without --attacks with their places, and how many are left out, by reason.

    What a row says of itself counts: its label and its span. What comes from stdin, "-", has neither. Raises
    LenscopeError for a file that is not right, or has no normal prompt.
    """
    if data == "-":
        return list(placed_prompts_of_file(data, field)), Counter()
    from lenscope.detection.labelled_prompts import placed_labelled_prompts

    prompts = placed_labelled_prompts(data, field=field, attack=False)
    normal = [(where, p.text) for where, p in prompts if p.normal]
    attacks = sum(p.attack for _, p in prompts)
    left_out = Counter({
        f"attack, by its label in {data}; --attacks FILE fits a detector on attacks too": attacks,
        f"harmless prompt with an insertion, by its span in {data}": len(prompts) - len(normal) - attacks,
    })  # fmt: skip
    if not normal:
        raise LenscopeError(
            f"{data}: none of its {len(prompts)} prompts is normal, by labels and spans; give a file of normal ones"
        )
    return normal, +left_out


def require_prompts_fit(lm: "LM", placed: Iterable[tuple[str, str]]) -> None:
    """Raise LenscopeError, which names its place, for a prompt that the model does not read, such as one too long."""
    for place, text in placed:
        with naming_place(place):
            lm.prompt(text)


def check_attack_options(calibration: str | None, abstain: float | None) -> None:
    """Raise LenscopeError for values that a fit would refuse, before a model is loaded."""
    from lenscope.detection.calibration import CALIBRATIONS

    if calibration is not None and calibration not in CALIBRATIONS:
        raise LenscopeError(f"--calibration {calibration}: give one of {', '.join(CALIBRATIONS)}")
    if abstain is not None and not 0 <= abstain < 1:
        raise LenscopeError(f"--abstain {abstain}: give a share from 0 to below 1, such as 0.1")


def check_view(view: str | None, lenses: Sequence[str], layers: str | None) -> None:
    """Raise LenscopeError for a view that there is not, and for what it does not read: lenses, or layers.

    A view through one lens has that lens's name, as the command line gives it; without --lens there is "logit".
    """
    if view is None:
        return
    from lenscope.detection.probe_features import BOTH, LENGTH, PERPLEXITY, TRAJECTORIES, all_views

    names = [*lenses_by_name(lenses)] or [LOGIT]
    require_name("--view", view, all_views(names))
    require_effect("--layers", layers, view not in (LENGTH, PERPLEXITY), f"the view {view!r} reads no layer")
    for text, name in zip(lenses, names, strict=False):
        read = view in (BOTH, TRAJECTORIES, f"trajectory {name}")
        require_effect(f"--lens {text}", True, read, f"the view {view!r} does not read through it")


def fit_on_attacks(
    common: CommonOptions,
    placed: "Sequence[tuple[str, LabelledPrompt]]",
    output: str,
    *,
    view: str | None,
    places: dict[str, str | None],
    transferred: bool,
    layers: list[int | slice] | None,
    calibration: str,
    false_positives: float,
    abstain: float,
    seed: int,
) -> None:
    """Fit a detector of attacks on prompts, which stand behind their places, show what was tried, and save it."""
    lm = common.load()
    require_prompts_fit(lm, ((place, prompt.text) for place, prompt in placed))
    from lenscope.detection.attack_fit import fit_attack_detector

    lenses = lenses_as_named(places, lm, transferred)
    with progress_bar("prompts") as advance:
        detector = fit_attack_detector(
            lenses,
            [prompt for _, prompt in placed],
            view=view,
            layers=None if layers is None else resolve_layers(layers, lm.n_layers),
            calibration=calibration,
            false_positives=false_positives,
            abstain=abstain,
            seed=seed,
            progress=advance,
        )
    known = {f"{share:g}": None if p != p else p for share, p in detector.thresholds.items()}
    report = detector.report
    if common.as_json:
        about = {"view": detector.view, "layer": detector.layer, "thresholds": known, "unsure": list(detector.unsure)}
        about |= {"threshold": detector.threshold, "false_positives": detector.false_positives, **report}
        print_json({"kind": "attack detector", "folder": output, **about})
    else:
        console = Screen()
        counts = f"{report['attacks']} attacks, {report['harmless']} harmless"
        console.print(headline(lm, counts, console.width, "detector of attacks"))
        show(console, table_of_views(report["tried"], detector.view))
    flush()
    detector.save(output)
    if not common.as_json:
        tell(
            f"saved {output}; {detector.false_positives:.0%} of harmless prompts like these score above "
            f"{detector.threshold:.4g}. Its numbers are in distribution: before you trust it, measure it on data sets "
            "that it has never seen, with lenscope detect evaluate"
        )


def table_of_views(tried: Sequence[dict[str, Any]], taken: str) -> Table:
    """What came of each view out of fold, the best first, controls among them."""
    from lenscope.display.tables import TableColumn, plain_table

    lines = []
    for row in sorted(tried, key=lambda r: -r["auroc"]):
        name = f"{row['view']}{', layer ' + str(row['layer']) if row['layer'] is not None else ''}"
        name += " (control)" if row["control"] else " (taken)" if row["view"] == taken else ""
        cells = [_with_ends(row["auroc"], row["auroc_95"])]
        cells += [_with_ends(at["value"], at["interval_95"]) for at in row["true_positives"]]
        lines.append([printable(cell) for cell in (name, *cells)])
    shares = [at["false_positives"] for at in tried[0]["true_positives"]]
    columns = [TableColumn("looks at", folds="all"), TableColumn("AUROC", "right")]
    columns += [TableColumn(f"found at {share:.3g}", "right") for share in shares]
    either = " or ".join(f"{share:.3g}" for share in shares)
    caption = (
        "Measured on the prompts of the fit: each is scored by a probe that was fitted without it, and without those "
        "that have its host or differ from it in case, blanks and digits alone; 95 % intervals. Found: the share of "
        f"attacks above the threshold that a share {either} of harmless prompts exceeds; – where there are too few "
        "harmless prompts to know it"
    )
    return plain_table(columns, lines, caption, gap=2)


def _with_ends(value: float | None, ends: Sequence[float | None] | None) -> str:
    if value is None:
        return "–"
    low, high = ends or (None, None)
    return f"{value:.3f}" + ("" if low is None or high is None else f" {low:.2f}–{high:.2f}")
