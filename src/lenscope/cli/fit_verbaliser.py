"""The command that trains a verbaliser: a small map that makes a model say what a vector means.

Knows: where vectors and labels come from, what is shown of the report. Does not know: how a map is trained
(fitting/verbaliser.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from lenscope.cli.options import (
    CommonOptions,
    Seed,
    common_options,
    parse_indices,
    resolve_layers,
)
from lenscope.cli.streams import print_json, tell
from lenscope.cli.terminal import Screen, Stopped, headline, progress_bar, show
from lenscope.cli.validation import make_folder, require_effect, require_model, require_name, require_path
from lenscope.errors import LenscopeError
from lenscope.visible_text import printable

if TYPE_CHECKING:
    from lenscope.models.language_model import LM
    from lenscope.patchscopes.verbaliser import Verbaliser


@common_options()
def fit_verbaliser_command(
    output: Annotated[str, typer.Option("-o", "--output", help="Folder for the verbaliser and for its checkpoint.")],
    titles: Annotated[
        str | None,
        typer.Option(help="Titles, one a line: each gets the vector of a chat turn 'Tell me about TITLE.'"),
    ] = None,
    vectors: Annotated[
        str | None, typer.Option(help="File of vectors, one a row (.safetensors, .npy, .parquet), with --labels.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="What each of --vectors is called: lines of text, or .jsonl with label.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="A .jsonl file with prompt, token and label in each line: the token's state.")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Layers whose states are read, or that --vectors were read at: 12, 6,12 or 6:24:6; default: 60 % deep."
        ),
    ] = None,
    shape: Annotated[
        str, typer.Option(help="The map: affine, scale_only, low_rank, low_rank_only or full.")
    ] = "affine",
    rank: Annotated[int | None, typer.Option(help="Rank of a low-rank map; default: 8.")] = None,
    own_weights: Annotated[
        bool, typer.Option("--each-layer", help="Give each of several layers weights of its own.")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="Steps at most; default: 160.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes that the steps may take; default: no limit.")] = None,
    seed: Seed = 0,
    *,
    common: CommonOptions,
) -> None:
    """Train a small map that makes a frozen model say what a vector means.

    Each vector is written into a question about its meaning, and the map is trained until the model answers with the
    vector's label. Some labels are held out: they measure what the vector adds, beside controls. A run that is killed
    continues with the same command.

    \b
    Examples:
      lenscope fit-verbaliser --titles titles.txt -o says
      lenscope fit-verbaliser --vectors v.safetensors --labels names.txt -o says
      lenscope patch "The Eiffel Tower is in" --at Tower --verbaliser says
    """
    given = {"--titles": titles, "--vectors": vectors, "--prompts": prompts}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise LenscopeError(f"{' and '.join(named) or 'no vectors'}: give one of {', '.join(given)}")
    require_effect("--labels", labels, vectors is not None, "names the vectors of --vectors")
    if vectors is not None and labels is None:
        raise LenscopeError("--vectors: give --labels too, which says what each is called")
    from lenscope.fitting.verbaliser_steps import SHAPES

    require_name("shape", shape, SHAPES)
    if rank is not None and rank < 1:
        raise LenscopeError(f"--rank {rank}: give at least 1")
    require_effect("--rank", rank, shape.startswith("low_rank"), "applies to --shape low_rank or low_rank_only")
    chosen = parse_indices(layers, "layers")
    require_effect(
        "--each-layer", own_weights, layers is not None and ("," in layers or ":" in layers), "needs several --layers"
    )
    for file in (titles, vectors, labels, prompts):
        if file is not None:
            require_path(file, "file")
    require_model(common.model)
    if steps is not None and steps < 1:
        raise LenscopeError(f"--steps {steps}: give at least 1")
    if minutes is not None and not 0 < minutes < 1e6:
        raise LenscopeError(f"--minutes {minutes}: give a number above 0")
    # whatever is wrong with files shows before the model is loaded
    read = _read_files(titles, vectors, labels, prompts)
    folder = make_folder(Path(output))
    lm = common.load()
    from lenscope.fitting.verbaliser import STEPS, VerbaliserInterrupted, fit_verbaliser

    how: dict[str, Any] = {
        "shape": shape, "rank": 8 if rank is None else rank, "pooled": not own_weights,
        "steps": STEPS if steps is None else steps, "minutes": minutes, "seed": seed,
    }  # fmt: skip
    wanted = None if chosen is None else resolve_layers(chosen, lm.n_layers)
    h, texts, where, center = _vectors_to_train_on(lm, read, wanted)
    how |= {"layers": where, "center": center}

    def heard(step: int, loss: float) -> None:
        tell(f"step {step}: {loss:.3f} nats per token of held-out labels")

    try:
        with progress_bar("steps") as advance:
            verbaliser = fit_verbaliser(lm, h, texts, folder=folder, progress=advance, heard=heard, **how)
    except VerbaliserInterrupted as stop:
        done = stop.verbaliser.report["steps_made"]
        raise Stopped(f"interrupted: {folder} keeps the run after {done} steps; the same command goes on") from stop
    if common.as_json:
        print_json({"kind": "fit-verbaliser", "folder": str(folder), **verbaliser.report})
        return
    _show_verbaliser(lm, verbaliser, common.model_again, output)


def _read_files(titles: str | None, vectors: str | None, labels: str | None, prompts: str | None) -> tuple[str, Any]:
    """What the files hold, and of which kind it is."""
    from lenscope.files.text_files import read_lines
    from lenscope.files.vector_files import read_labels, read_token_rows, read_vectors

    if titles is not None:
        return "titles", list(dict.fromkeys(line.strip() for line in read_lines(titles) if line.strip()))
    if prompts is not None:
        return "prompts", read_token_rows(prompts)
    return "vectors", (read_vectors(vectors or ""), read_labels(labels or ""))


def _vectors_to_train_on(lm: "LM", read: tuple[str, Any], layers: list[int] | None) -> tuple[Any, Any, Any, Any]:
    """Vectors, their labels, the layers that they are of (None: none), and what was taken from states to make them."""
    kind, content = read
    if kind == "vectors":
        return (*content, layers, None)
    from lenscope.text.topic_vectors import LabelledToken, labelled_states, topic_vectors

    with progress_bar(kind) as advance:
        if kind == "titles":
            read_states = topic_vectors(lm, content, layers, progress=advance)
        else:
            read_states = labelled_states(lm, [LabelledToken(*row) for row in content], layers, progress=advance)
    return read_states.vectors, read_states.labels, read_states.layers, read_states.mean


def _show_verbaliser(lm: "LM", verbaliser: "Verbaliser", again: str, output: str) -> None:
    console, report = Screen(), verbaliser.report
    measures = report["measured"]
    steps = f"{report['steps_made']} steps in {report['seconds']:,.0f} s"
    console.print(headline(lm, steps, console.width, repr(verbaliser.map)))
    table = Table(title=None, box=None, pad_edge=False)
    for name in ("written", "nats per label token", "trained less this"):
        table.add_column(name, justify="left" if name == "written" else "right")
    for name, value in measures["log-likelihood per token"].items():
        gap = measures["trained less"].get(name)
        table.add_row(name, _estimate_as_text(value), "" if gap is None else _estimate_as_text(gap))
    share = measures["bias share"]
    remark = "" if share is None or share[0] is None else f" The bias alone has {share[0]:.0%} of the gain."
    table.caption = f"{measures['labels']} labels that were not trained on; 95 % intervals over labels.{remark}"
    show(console, table)
    console.print(
        Text(printable(f'lenscope patch "…" --at …{again} --verbaliser {output}'), style="bold"), soft_wrap=True
    )
    tell(f"saved {output}")


def _estimate_as_text(value: list[float]) -> str:
    return f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"
