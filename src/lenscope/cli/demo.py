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
TOKENS = 20_000
# columns that a token has in the comparison of the two lenses
WORD = 16


def demo_command(
    output: Annotated[str, typer.Option("-o", "--output", help="Folder for the report and the lens.")] = "demo",
    model: Model = DEFAULT_MODEL,
) -> None:
    """Show the main steps once, on the built-in model.

    Reads a prompt through the logit lens, fits a tuned lens in about two minutes, reads the prompt through it, asks the
    model what a state means, and writes a page.
    """
    require_model(model)
    folder = make_folder(output)
    began = time.perf_counter()
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

    console = Screen()
    plain = Lens(lm).trajectory(PROMPT, target=TARGET)
    console.print(headline(lm, repr(PROMPT), console.width))
    verified = lm.runner.verified
    line = f"readout {verified.readout.description}; verified, deviation {verified.deviation:.1e}"
    console.print(Text(visible(line), style="dim"))
    show(console, plain.table(width=console.width))
    console.print(rank_line(plain))

    corpus = Corpus.open(lm, installed_texts())
    how: dict[str, Any] = {"tokens": TOKENS, "recipe": "muon", "held_out": 0.1, "seed": 0}
    console.print()
    if finished is None or other_run(finished, lm, corpus, **how):
        console.print("fitting a tuned lens on texts that came with Python: about two minutes")
        with progress_bar("tokens") as advance:
            f: Any = fit(lm, corpus, progress=advance, **how)
        f.save(folder / "lens")
    else:
        f = finished
    seconds, read = f.report["seconds"], f.report["tokens"]
    console.print(headline(lm, f"fitted on {read:,} tokens in {seconds:.0f} s", console.width, "tuned lens"))
    show(console, fitted_table(f.report))
    tuned = Lens(lm, f).trajectory(PROMPT, target=TARGET)
    console.print()
    console.print(headline(lm, repr(PROMPT), console.width, "tuned lens"))
    show(console, beside(plain, tuned))

    states = lm.read(ENTITY, positions=-1)
    explained = Patchscope(lm, named_target("entity")).generate(states, "same", max_new_tokens=12)
    console.print()
    console.print(headline(lm, repr(ENTITY), console.width, "patchscope"))
    show(console, explained.table(width=console.width))
    report = folder / "index.html"
    write_text(report, page([tuned, plain], title=PROMPT))
    console.print()
    console.print(visible(f"{time.perf_counter() - began:.0f} s; look at {report.resolve()}"), soft_wrap=True)
    console.print(visible(f"ask for yourself, in a browser: {view_command(folder / 'lens', model)}"), soft_wrap=True)


def view_command(lens: Path, model: str) -> str:
    """Return the command that opens the view with a lens, as this shell finds it: the program as it was started."""
    started_as = Path(sys.argv[0])
    on_path = shutil.which("lenscope")
    if started_as.name != "lenscope":
        program = f"{sys.executable} -m lenscope"
    else:
        program = "lenscope" if on_path and started_as.resolve() == Path(on_path).resolve() else str(started_as)
    chosen = [] if model == DEFAULT_MODEL else ["--model", model]
    return f"{program} {shlex.join(['serve', *chosen, '--lens', str(lens), '--open'])}"


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
