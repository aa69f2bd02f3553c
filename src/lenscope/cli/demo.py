"""The main job end to end on the built-in model: what it predicts layer by layer, a lens fitted on the spot, a page.

Knows: which prompts are shown. Does not know: how anything is computed.
"""

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from lenscope.cli.options import DEFAULT_MODEL, CommonOptions, Model
from lenscope.cli.terminal import Screen, fitted_table, headline, progress_bar, rank_line, show
from lenscope.cli.validation import make_folder, require_model
from lenscope.visible_text import printable as visible
from lenscope.visible_text import printable_token

if TYPE_CHECKING:
    from lenscope.lenses.trajectory import Trajectory

ENTITY = "Diana, Princess of Wales"
PROMPT, TARGET = "The capital of France is", " Paris"
# of the lens: enough to be much better than the logit lens, and few enough to end within two minutes on two old cores
TOKENS, LENGTH, RECIPE = 4096, 128, "ridge"
# columns that a token has in the comparison of the two lenses
WORD = 16


def demo_command(
    output: Annotated[str, typer.Option("-o", "--output", help="Folder for the report and the lens.")] = "demo",
    model: Model = DEFAULT_MODEL,
) -> None:
    """Show the main steps once, on the built-in model.

    Reads a prompt through the logit lens, fits a small tuned lens, reads the prompt through it, asks the model what a
    state means, and writes a page. It takes one to two minutes on two processor cores.
    """
    if model != DEFAULT_MODEL:  # which there is; looking for another takes the seconds in which the first line is read
        require_model(model)
    folder = make_folder(output)
    began = time.perf_counter()
    console = Screen()
    _explain(
        console,
        f"lenscope demo: what the layers of {model} say. It takes one to two minutes and writes to {folder}; "
        "the model loads now.",
    )
    from lenscope.fitting.tuned_lens import finished_lens, fit, other_run

    finished = finished_lens(folder / "lens")
    lm = CommonOptions(model).load()
    from lenscope.display.page import page
    from lenscope.files.writing import write_text
    from lenscope.lenses.lens import Lens
    from lenscope.patchscopes.methods import named_target
    from lenscope.patchscopes.patchscope import Patchscope
    from lenscope.text.corpus import Corpus
    from lenscope.text.installed import installed_texts

    _explain(
        console,
        f"1  The logit lens. A language model of {lm.n_layers} layers rewrites its state of every token {lm.n_layers} "
        "times and predicts the next token from the last state. The logit lens predicts from every layer: a row is a "
        "layer, the first layers below; a column is a token of the prompt; a cell is the next token that this layer "
        "predicts there, and its probability.",
    )
    plain = Lens(lm).trajectory(PROMPT, target=TARGET)
    console.print(headline(lm, repr(PROMPT), console.width))
    verified = lm.runner.verified
    line = f"readout {verified.readout.description}; verified, deviation {verified.deviation:.1e}"
    console.print(Text(visible(line), style="dim"))
    show(console, plain.table(width=console.width))
    console.print(rank_line(plain))

    corpus = Corpus.open(lm, installed_texts(), length=LENGTH)
    how: dict[str, Any] = {"tokens": TOKENS, "recipe": RECIPE, "held_out": 0.1, "seed": 0}
    _explain(
        console,
        "2  A tuned lens. The last layer's readout does not fit the states of earlier layers. A tuned lens translates "
        "them first: it has one affine map per layer, fitted so that the layer's prediction comes near the model's "
        "own. KL says how far the two predictions are apart: 0 means that they are equal.",
    )
    if finished is None or other_run(finished, lm, corpus, **how):
        console.print("fitting a tuned lens on texts that came with Python: about a minute on two cores")
        with progress_bar("tokens") as advance:
            f: Any = fit(lm, corpus, progress=advance, **how)
        f.save(folder / "lens")
    else:
        f = finished
    seconds, read = f.report["seconds"], f.report["tokens"]
    console.print(headline(lm, f"fitted on {read:,} tokens in {seconds:.0f} s", console.width, "tuned lens"))
    show(console, fitted_table(f.report))
    tuned = Lens(lm, f).trajectory(PROMPT, target=TARGET)
    _explain(console, "   Both lenses at the last token of the prompt, layer by layer:")
    console.print(headline(lm, repr(PROMPT), console.width, "tuned lens"))
    show(console, beside(plain, tuned))

    _explain(
        console,
        f"3  A Patchscope. The state of the last token of {ENTITY!r} is read at every layer and written into another "
        "prompt, one that asks what a name means; the model's own words are its answer. A small model is often wrong, "
        "and what it says is no proof of what the state holds.",
    )
    states = lm.read(ENTITY, positions=-1)
    explained = Patchscope(lm, named_target("entity")).generate(states, "same", max_new_tokens=12)
    console.print(headline(lm, repr(ENTITY), console.width, "patchscope"))
    show(console, explained.table(width=console.width))
    report = folder / "index.html"
    write_text(report, page([tuned, plain], title=PROMPT))

    kl = [sum(row[name] for row in f.report["layers"]) / lm.n_layers for name in ("kl_logit_lens", "kl")]
    _explain(console, f"Done in {time.perf_counter() - began:.0f} s:")
    done = [
        f"what every layer predicts after {PROMPT!r}, with the logit lens",
        f"a tuned lens in {folder / 'lens'}: mean KL on other text {kl[1]:.2f} nats, the logit lens has {kl[0]:.2f}",
        f"what the model says the state of {ENTITY!r} means",
        f"a page with both lenses, which any browser opens: {report.resolve()}",
    ]
    for n, line in enumerate(done, 1):
        console.print(f"  {n}  {visible(line)}", soft_wrap=True)
    _explain(console, "Try next:")
    for what, line in next_steps(folder / "lens", model):
        console.print(f"  {what:<26}  {visible(line)}", soft_wrap=True)


def _explain(console: Screen, text: str) -> None:
    console.print()
    console.print(visible(text))


def next_steps(lens: Path, model: str) -> list[tuple[str, str]]:
    """Return what one may do after the demo, and the command or page for it."""
    program = program_as_started()
    chosen = [] if model == DEFAULT_MODEL else ["--model", model]
    commands = {
        "the view, in a browser": ["serve", *chosen, "--lens", str(lens), "--open"],
        "a prompt of your own": ["lens", "The Eiffel Tower is in", *chosen, "--lens", str(lens)],
        "a lens on text of your own": ["fit", *chosen, "--data", "YOUR-TEXT.txt", "-o", "my-lens"],
    }
    steps = [(what, f"{program} {shlex.join(command)}") for what, command in commands.items()]
    return [*steps, ("the first fifteen minutes", "docs/start.md in the folder, or the site, of lenscope's source")]


def program_as_started() -> str:
    """Return the program as this shell finds it: as it was started."""
    started_as = Path(sys.argv[0])
    on_path = shutil.which("lenscope")
    if started_as.name != "lenscope":
        return f"{shlex.quote(sys.executable)} -m lenscope"
    same = on_path and started_as.resolve() == Path(on_path).resolve()
    return "lenscope" if same else shlex.quote(str(started_as))


def beside(plain: "Trajectory", tuned: "Trajectory") -> Table:
    """Return what both lenses predict at the last position, layer by layer: top token, its probability, the KL."""
    from lenscope.display.tables import TableColumn, dim, plain_table

    columns = [TableColumn("layer", "right")]
    for t in (plain, tuned):
        columns += [TableColumn(printable_token(t.lens)), TableColumn("p", "right"), TableColumn("KL", "right")]
    lines: list[list[str | Text]] = []
    for n in range(len(plain.layers))[::-1]:
        cells: list[str | Text] = [dim(str(plain.layers[n]))]
        for t in (plain, tuned):
            top = int(t.top_ids[n, -1, 0])
            style = "bold" if top == t.target else ""
            cells += [Text(printable_token(t.vocabulary[top], WORD), style=style), f"{t.max_probability[n, -1]:.0%}"]
            cells.append(f"{t.kl[n, -1]:.2f}")
        lines.append(cells)
    mean = [float(t.kl[:-1].mean()) for t in (plain, tuned)]
    caption = (
        f"KL(model ‖ lens) in nats; mean over all positions and layers: {mean[0]:.2f} with the logit lens, "
        f"{mean[1]:.2f} with the tuned lens"
    )
    return plain_table(columns, lines, caption, gap=2)
