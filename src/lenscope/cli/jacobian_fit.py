"""What `lenscope fit --recipe jacobian` does: it reads text in two halves, and tells how far their lenses agree.

Knows: how many tokens there are in both halves, what is shown while it runs and at its end, what an interruption
leaves. Does not know: how a Jacobian lens is fitted (fitting/jacobian_lens.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from lenscope.cli.streams import first_process, print_json, tell
from lenscope.cli.terminal import LINES, Screen, Stopped, headline, noted_progress_bar, progress_bar, show
from lenscope.errors import LenscopeError
from lenscope.visible_text import printable

if TYPE_CHECKING:
    from lenscope.cli.options import CommonOptions
    from lenscope.mappings.mapping import Affine
    from lenscope.models.language_model import LM
    from lenscope.text.corpus import Corpus

RECIPE = "jacobian"


def parse_part(value: str | None) -> tuple[int, int]:
    """Read --part, such as 1/2; without it, all there is."""
    number, slash, count = (value or "1/1").partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise LenscopeError(f"--part {value}: give k/n with k from 1 to n, such as 1/2")
    return int(number), int(count)


def load_for_fit(common: "CommonOptions", stream: bool) -> "LM":
    """Load the model, or, to be streamed, all but its blocks, with what a lens keeps of its identity."""
    if not stream:
        return common.load()
    with progress_bar("blocks") as advance:
        lm = common.load_in_blocks(advance, identify=True)
    assert lm.runner.stream is not None
    # what runs next has a bar of its own
    lm.runner.stream.progress = None
    return lm


def fit_jacobian(
    lm: "LM", corpus: "Corpus", folder: Path, tokens: int, asked: bool, how: dict[str, Any], as_json: bool, again: str
) -> None:
    """Fit a Jacobian lens into a folder, and show how it was measured.

    Args:
        lm: the model.
        corpus: the text, in rows as this lens takes them.
        folder: where sums and lens are saved.
        tokens: how many tokens are read at most.
        asked: whether that number was asked for; else less is read where there is less.
        how: further arguments of `fit_jacobian_lens`.
        as_json: whether the report goes to stdout as JSON.
        again: the options that name the model, for the command that reads through the lens.
    """
    from lenscope.fitting.jacobian_lens import fit_jacobian_lens, rows_of_halves

    if not asked:
        parts = how["part"][1]
        rows = rows_of_halves(corpus.split(how["held_out"])[0], tokens, parts, all_there=False)
        tokens = min(tokens, 2 * rows * parts * corpus.length)
    try:
        with noted_progress_bar("tokens" if lm.runner.stream is None else "blocks of prompts") as (advance, note):

            def tell_error(least: float) -> None:
                note(f"halves agree at cosine {least:.3f} or more")

            lens = fit_jacobian_lens(
                lm, corpus, tokens=tokens, folder=folder, progress=advance, report_error=tell_error, **how
            )
    except KeyboardInterrupt as stop:
        raise Stopped(_left(folder, lm.runner.stream is not None)) from stop
    if lm.runner.stream is not None:
        tell(f"read the weights of {lm.name} {lm.runner.stream.passes:.3g} times")
    if first_process():
        show_jacobian_lens(lm, lens, folder, corpus.name, as_json, again)


def show_jacobian_lens(
    lm: "LM", lens: "Affine", folder: Path | str, text: str, as_json: bool, again: str, kind: str = "fit"
) -> None:
    """Show what a Jacobian lens says of itself, and the command that reads through it."""
    report = lens.report
    if as_json:
        print_json({"kind": kind, "folder": str(folder), **report})
    else:
        console = Screen()
        seconds = f" in {report['seconds']:,.0f} s" if "seconds" in report else ""
        read = f"{report['prompts']:,} prompts of {report['length']} tokens of {text}{seconds}"
        console.print(headline(lm, read, console.width, str(report["lens"])))
        if "layers" in report:
            show(console, _agreement_table(report))
        console.print(Text(printable(f'lenscope lens "…"{again} --lens {folder}'), style="bold"), soft_wrap=True)
    tell(f"saved {folder}")


def _agreement_table(report: dict[str, Any]) -> Table:
    """How far the halves agree, and the held-out KL, of every few layers."""
    from lenscope.display.tables import TableColumn, dim, plain_table

    rows = report["layers"]
    step = -(-len(rows) // LINES)
    lines: list[list[str | Text]] = []
    for row in rows[::-step][::-1]:
        ends = row["cosine_95"]
        interval = f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "–"
        shares = [f"{row[name]:.3f}" for name in ("top1", "top10", "cosine")]
        nats = ["–" if row[name] is None else f"{row[name]:.2f}" for name in ("kl", "kl_logit_lens")]
        lines.append([dim(str(row["layer"])), *shares, interval, *nats])
    held = report["held_out"]
    parts = [
        "top1, top10, cosine: agreement of the readouts of two halves of the prompts (the lens itself errs less)",
        f"KL(model ‖ lens) in nats; both on {held['tokens'][1]:,} tokens of {held['documents'][1]:,} documents that "
        "were not fitted",
    ]
    drawn = [row for row in report["shrinkage"] if row["weight"]]
    parts += [f"{len(drawn)} layers were drawn towards cheaper estimates"] * bool(drawn)
    parts += [f"one layer in {step} is shown"] * (step > 1) + ([held["note"]] if "note" in held else [])
    names = ("layer", "top1", "top10", "cosine", "95 %", "KL", "KL, logit lens")
    return plain_table([TableColumn(name, "right") for name in names], lines, "; ".join(parts), gap=2)


def _left(folder: Path, streamed: bool) -> str:
    """What an interrupted fit leaves."""
    from lenscope.fitting.jacobian_sums import SUMS, JacobianSums

    try:
        prompts = sum(JacobianSums.load(folder / SUMS).prompts)
    except LenscopeError:
        return "interrupted before the first prompt was done: nothing is kept"
    more = " and the prompt that was on its way" if streamed else ""
    return f"interrupted: {folder} keeps {prompts} prompts{more}; the same command goes on from there"
