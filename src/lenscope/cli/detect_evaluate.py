"""The command that tries detectors of attacks by one protocol, saved ones beside those that it trains.

Knows: files of labelled prompts, lenses by name, saved detectors of both kinds, what is printed and written.
Does not know: how detectors are trained and tried (detection/detector_trials.py).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lenscope.cli.options import (
    CommonOptions,
    Lenses,
    Seed,
    Transferred,
    common_options,
    parse_indices,
    resolve_layers,
)
from lenscope.cli.several_lenses import LOGIT, lenses_as_named, lenses_by_name
from lenscope.cli.streams import flush, print_json, tell
from lenscope.cli.terminal import Screen, headline, progress_bar, show
from lenscope.cli.validation import make_folder, require_effect, require_lens, require_model, require_path, require_seed
from lenscope.errors import LenscopeError
from lenscope.visible_text import printable

if TYPE_CHECKING:
    from lenscope.detection.attack_detector import AttackDetector
    from lenscope.detection.detector import Detector
    from lenscope.detection.detector_trials import SavedScores
    from lenscope.detection.detector_trials_results import DetectorTrials
    from lenscope.detection.labelled_prompts import LabelledPrompt
    from lenscope.experiments.report import Report
    from lenscope.models.language_model import LM

PUBLISHED = (
    "Published linear probes on the last token's state of a middle layer (Llama-3.1-8B, 18 data sets, arXiv "
    "2602.14161) have an AUROC of .996 in distribution, and of .912 on data sets that were left out of training."
)


@common_options()
def evaluate_detectors_command(
    folders: Annotated[
        list[str] | None,
        typer.Argument(metavar="DETECTOR", help="Folders that detect fit wrote, tried on prompts they have not seen."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "-d",
            help="File of prompts with labels, .jsonl: text, label (1: attack), and if known source, category, host, "
            "span, insert_into; may be repeated.",
        ),
    ] = None,
    lens: Lenses = None,
    transferred: Transferred = False,
    layers: Annotated[
        str | None, typer.Option(help="Layers to read: 12, a list 0,6,12 or a range 0:31:5; default: ten of them.")
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(help="Attacks, harmless prompts and hosts of a data set at most, drawn at random; default: all."),
    ] = None,
    write_card: Annotated[
        bool, typer.Option("--write-card", help="Write what came out into the README.md of each detector of attacks.")
    ] = False,
    seed: Seed = 0,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Folder for a report: Markdown, HTML, JSON and Parquet.")
    ] = None,
    *,
    common: CommonOptions,
) -> None:
    """Train and try detectors of attacks on prompts with labels.

    Tried are linear probes of states and trajectories, words (TF-IDF), length, perplexity, a detector of normal prompts
    alone, and saved detectors: in distribution, with each data set left out of training, and with families of attacks
    left out; against harmless insertions, and on data sets of harmless prompts alone.

    \b
    Examples:
      lenscope detect evaluate -d attacks.jsonl -d notinject.jsonl --lens tuned=lens --lens logit -o report
      lenscope detect evaluate detector -d other.jsonl --write-card
    """  # fmt: skip
    if not data:
        raise LenscopeError("no prompts: give files of prompts with labels with --data FILE.jsonl")
    for path in data:
        require_path(path, "file")
    require_effect("--transferred", transferred, bool(lens), "applies to --lens")
    require_effect("--write-card", write_card, bool(folders), "is for the detectors that are given")
    require_seed(seed)
    if prompts is not None and prompts < 5:
        raise LenscopeError(f"--prompts {prompts}: give at least 5, which a data set needs to be tested")
    wanted = parse_indices(layers, "layers")
    places: dict[str, str | None] = lenses_by_name(lens) if lens else {LOGIT: None}
    for where in places.values():
        if where is not None:
            require_lens(where, transferred)
    for folder in folders or ():
        if not (Path(folder) / "config.json").is_file():
            raise LenscopeError(
                f"{folder}: is no detector (no folder with a config.json); lenscope detect fit makes one"
            )
    names = _names_of_folders(folders or [])
    from lenscope.detection.prompt_sets import prompts_of_sets, read_prompt_sets
    from lenscope.detection.trial_designs import plan_trials

    many, left_out = prompts_of_sets(read_prompt_sets(data), most=prompts, seed=seed)
    # what cannot be tested is told before a model is loaded
    plan_trials(many, seed=seed)
    require_model(common.model)
    place = None if output is None else make_folder(output)
    lm = common.load()
    many = _within_context(many, lm, left_out)
    for why, count in left_out.items():
        tell(f"left out: {count} × {why}")
    from lenscope.detection.detector_trials import try_detectors
    from lenscope.detection.probe_features import measure_probe_features

    lenses = lenses_as_named(places, lm, transferred)
    with progress_bar("prompts measured") as advance:
        features = measure_probe_features(
            lenses,
            [p.text for p in many],
            None if wanted is None else resolve_layers(wanted, lm.n_layers),
            progress=advance,
        )
    opened, saved = _saved_detectors(names, lm, many)
    with progress_bar("detectors trained") as advance:
        trials = try_detectors(many, features, saved=saved, seed=seed, progress=advance)
    settings = {"data": data, "lenses": list(places), "prompts": len(many), "seed": seed}
    report = _report_of(trials, lm, settings, left_out)
    if common.as_json:
        print_json(report.to_json())
    else:
        _show_trials(report, lm)
    flush()
    if place is not None:
        report.save(place)
        if not common.as_json:
            tell(f"saved {place / 'report.md'}")
    if write_card:
        _write_cards(names, opened, trials)


def _names_of_folders(folders: Sequence[str]) -> dict[str, str]:
    """Folders by the name that tables have: their last part, the whole path where two end alike."""
    ends = Counter(Path(f).resolve().name for f in folders)
    return {(Path(f).resolve().name if ends[Path(f).resolve().name] == 1 else f): f for f in folders}


def _within_context(many: "list[LabelledPrompt]", lm: "LM", left_out: Counter[str]) -> "list[LabelledPrompt]":
    longest = lm.context or 1 << 40
    short = [p for p in many if len(lm.encoder.ids(p.text)) <= longest]
    if len(short) < len(many):
        left_out["prompt longer than the model's context"] += len(many) - len(short)
    return short


def _saved_detectors(
    names: Mapping[str, str], lm: "LM", many: "Sequence[LabelledPrompt]"
) -> "tuple[dict[str, AttackDetector | Detector], dict[str, SavedScores]]":
    """The detectors that were given, and what they say of all prompts."""
    import numpy as np

    from lenscope.detection.attack_detector import AttackDetector
    from lenscope.detection.detector import load_detector
    from lenscope.detection.detector_trials import SavedScores

    opened, saved = {}, {}
    for name, where in names.items():
        detector = opened[name] = load_detector(where, lm)
        with progress_bar(f"prompts scored by {name}") as advance:
            scores = np.empty(len(many))
            for start in range(0, len(many), 64):
                block = [p.text for p in many[start : start + 64]]
                scores[start : start + len(block)] = detector.score(block)
                advance(start + len(block), len(many))
        seen = np.array([detector.saw(p.text) for p in many])
        thresholds = {detector.false_positives: detector.threshold}
        if isinstance(detector, AttackDetector):
            thresholds = dict(detector.thresholds)
        saved[name] = SavedScores(scores, seen, thresholds, isinstance(detector, AttackDetector))
    return opened, saved


def _report_of(trials: "DetectorTrials", lm: "LM", settings: dict[str, Any], left_out: Counter[str]) -> "Report":
    from lenscope.experiments.report import Report
    from lenscope.models.provenance import provenance

    tables: dict[str, Sequence[Mapping[str, Any]]] = dict(trials.tables)
    if left_out:
        tables["left out"] = [{"why": why, "number": count} for why, count in left_out.items()]
    return Report("detect evaluate", lm.name, PUBLISHED, trials.verdict(), tables, (), settings, provenance(lm))


def _show_trials(report: "Report", lm: "LM") -> None:
    console = Screen()
    console.print(headline(lm, f"{report.settings['prompts']} prompts", console.width, "detectors of attacks"))
    for title in report.tables:
        console.print(Text(f"\n{printable(title)}", style="bold"))
        show(console, report.table(title, width=console.width))
    console.print()
    for line in map(printable, report.reading.split("\n")):
        console.print(Text(line))


def _write_cards(
    names: Mapping[str, str], opened: "Mapping[str, AttackDetector | Detector]", trials: "DetectorTrials"
) -> None:
    """The cards of detectors of attacks anew, with the tables' rows of each."""
    from lenscope.detection.attack_detector import AttackDetector
    from lenscope.detection.detector_card import detector_card
    from lenscope.files.writing import write_text

    for name, detector in opened.items():
        if isinstance(detector, AttackDetector):
            path = Path(names[name]) / "README.md"
            write_text(path, detector_card(detector, {"detector": name, **trials.tables}))
            tell(f"saved {path}")
        else:
            tell(f"{names[name]}: is a detector of normal prompts alone, which has no card")
