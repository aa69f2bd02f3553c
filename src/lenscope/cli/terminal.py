"""What is shown on the terminal: headlines, tables with their captions, and progress on stderr, as bars or lines.

Knows: that nothing from outside may act on the terminal, the tables that several commands show, that a log has no bars.
Does not know: any command; encodings and failures of streams (streams.py).
"""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from lenscope.cli.streams import failure, first_process, flush, print_json, tell, writing
from lenscope.visible_text import printable

if TYPE_CHECKING:
    from lenscope.lenses.trajectory import Trajectory
    from lenscope.models.language_model import LM

# lines of the table that a fit ends with
LINES = 12
# seconds between two lines of progress in a log, and what they are measured by
LINE_SECONDS = 60.0
clock = time.monotonic


class Stopped(Exception):
    """A command was interrupted, and says what it leaves: exit status 130."""


class Screen(Console):
    """A console on which text is text: no markup, no emoji codes, and no character that a terminal acts on."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, quiet=not first_process())

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is drawn, every part of its text visible; tables and lines make their text visible before, to fit."""
        for part in super().render(renderable, options):
            safe = part.control or part.text.isprintable() or part.text == "\n"
            yield part if safe else Segment("\n".join(map(printable, part.text.split("\n"))), part.style)

    def print(self, *objects: Any, **how: Any) -> None:
        """Draw; what cannot be written is left to who runs the command (streams.failure)."""
        with writing():
            super().print(*objects, **how)

    def on_broken_pipe(self) -> None:
        """No reason to end the process, as it is for rich."""
        raise


def show(console: Console, table: Table) -> None:
    """Print the table, then its caption over the whole width: within a narrow table it would be broken to pieces."""
    caption, table.caption = table.caption, None
    console.print(table)
    if caption is not None:
        console.print(caption)


def show_and_save(
    result: Any,
    lm: "LM",
    what: str,
    method: str,
    measure: str | list[str],
    as_json: bool,
    output: str | None,
    html: str | None = None,
) -> None:
    """Print a result as JSON or as a table, then save it: what cannot be saved was seen.

    Args:
        result: what has `to_json`, `table` and `save`.
        lm: the model that the headline names.
        what: of what the result is.
        method: how it was measured.
        measure: what the table shows.
        as_json: whether JSON is printed in place of the table.
        output: the file to save to, if any.
        html: the page to save, if any.
    """
    if as_json:
        print_json(result.to_json())
    else:
        console = Screen()
        console.print(headline(lm, what, console.width, method))
        show(console, result.table(measure, width=console.width))
    for path, save in ((output, result.save), (html, result.to_html)):
        if path:
            flush()
            save(path)
            tell(f"saved {path}")


class ProgressLines:
    """Lines on stderr about work that goes on, at most one a minute, where stderr is a file or a pipe, such as a log.

    A terminal has a bar in their place. What a program collects in memory is read when the work is done: it has none.
    """

    def __init__(self, console: Console) -> None:
        self._last = clock() if not console.is_terminal and _has_descriptor(sys.stderr) else None

    def offer(self, line: Callable[[], str]) -> None:
        """Write this line if a minute has passed since the last one, or since the work began."""
        if self._last is not None and clock() - self._last >= LINE_SECONDS:
            self._last = clock()
            tell(line())


class ItemBar(Progress):
    """A bar on stderr for work of several items, in a log a line a minute; nothing for a single item."""

    def __init__(self, total: int, unit: str) -> None:
        console = Screen(stderr=True)
        columns = TextColumn(printable(unit), markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        super().__init__(*columns, console=console, transient=True, disable=total < 2 or not console.is_terminal)
        self._unit, self._lines = unit, ProgressLines(console) if total > 1 else None
        self.add_task("", total=total)

    def reach(self, done: int, total: int) -> None:
        """Set how much is done, and of how much: 0 where nobody knows."""
        if not total:
            self.tasks[0].total = None
        self.update(self.task_ids[0], completed=done, total=total or None)

    def update(self, task_id: TaskID, **how: Any) -> None:
        """Set how much is done, or what else is shown of it."""
        super().update(task_id, **how)
        self._offer_line(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count some more items as done."""
        super().advance(task_id, advance)
        self._offer_line(task_id)

    def _offer_line(self, task_id: TaskID) -> None:
        if self._lines is not None:
            task = self._tasks[task_id]
            whole = f" of {task.total:,.0f}" if task.total else ""
            note = f", {task.description}" if task.description else ""
            self._lines.offer(lambda: f"{task.completed:,.0f}{whole} {self._unit}{note}")


def item_bar(total: int, unit: str) -> Progress:
    """Return a bar on stderr for work of several items; it draws nothing for a single one."""
    return ItemBar(total, unit)


def _has_descriptor(stream: Any) -> bool:
    try:
        return int(stream.fileno()) >= 0
    except (AttributeError, OSError, ValueError):
        return False


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Draw a bar for work that itself says how much of it is done: what is yielded takes (done, in all or 0)."""
    with ItemBar(2, unit) as progress:
        yield progress.reach


@contextmanager
def rate_line(unit: str) -> Iterator[Callable[[int], None]]:
    """Show how many of an unknown number of items are done, and how many a second; in the end say it on stderr.

    While it goes on a terminal is drawn on only where standard output goes elsewhere. What is yielded takes how many
    are done in all. Nothing is said of a single item, nor where standard output can take no more.
    """
    console = Screen(stderr=True)
    lines = ProgressLines(console)
    hidden = not console.is_terminal or sys.stdout.isatty()
    start, done = time.perf_counter(), 0

    def text() -> str:
        return f"{done:,} {unit}, {done / max(time.perf_counter() - start, 1e-9):.3g} a second"

    # what is printed meanwhile is for standard output, and not for the console of the bar
    with Progress(
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
        disable=hidden,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as progress:
        task = progress.add_task("")

        def advance(count: int) -> None:
            nonlocal done
            done = count
            progress.update(task, description=printable(text()))
            lines.offer(text)

        try:
            yield advance
        finally:
            last = text()
    if done > 1 and failure() is None:
        tell(last)


@contextmanager
def noted_progress_bar(unit: str) -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """Draw a bar as `progress_bar` does, with a note behind the unit that changes while the work goes on."""
    with ItemBar(2, unit) as progress:
        progress.columns = (*progress.columns, TextColumn("{task.description}", markup=False))
        task = progress.task_ids[0]
        yield progress.reach, lambda text: progress.update(task, description=printable(text))


def headline(lm: "LM", what: str, width: int, method: str = "logit lens") -> Text:
    """Return one line that says what is shown, and of which model."""
    kind = f"{lm.n_layers} layers, {str(lm.dtype).removeprefix('torch.')}"
    line = Text.assemble((printable(method), "bold"), (f"  {printable(lm.name)}, {kind}  ", "dim"), printable(what))
    line.truncate(width, overflow="ellipsis")
    return line


def rank_line(t: "Trajectory", before: str = "") -> Text:
    """Return the target's way up at the last position: rank and probability where its rank changes most.

    `before` stands in front.
    """
    token = t.vocabulary[t.target] if t.target is not None else ""
    ranks = t.rank[:, -1]
    steps = [0, *(i for i in range(1, len(ranks)) if ranks[i] < ranks[:i].min())]
    line = Text(f"\n{before}{token!r} at the last position, rank (0 is the top) by layer: ")
    for i in steps:
        probability = float(math.exp(-t.cross_entropy[i, -1]))
        line.append(f"  {t.layers[i]}: ", style="dim")
        line.append(f"{ranks[i]}" + (f" ({probability:.0%})" if probability >= 0.005 else ""))
    return line


def fitted_table(report: dict[str, Any]) -> Table:
    """Return the held-out KL of every few layers of a fitted lens and of the logit lens, and how surely it is less."""
    from lenscope.display.tables import TableColumn, dim, plain_table

    rows, step = report["layers"], math.ceil(len(report["layers"]) / LINES)
    sure = any("gain_95" in row for row in rows)  # version 0.1.0 knew no intervals
    headings = ("layer", "logit lens", str(report["lens"]), *(["less by, 95 %"] if sure else []))
    lines: list[list[str | Text]] = []
    for row in rows[::-step][::-1]:
        ends = row.get("gain_95")
        interval = [f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "–"] if sure else []
        lines.append([dim(str(row["layer"])), *(_nats(row[k]) for k in ("kl_logit_lens", "kl")), *interval])
    known = [[row[name] for row in rows if row[name] is not None] for name in ("kl_logit_lens", "kl")]
    lines.append([dim("mean"), *(_nats(sum(values) / len(values) if values else None) for values in known)])
    held = report["held_out"]
    of = f"tokens of {held['documents'][1]:,} documents" if "documents" in held else "tokens"
    parts = [f"KL(model ‖ lens) in nats, mean of {held['tokens'][1]:,} {of} that were not fitted"]
    parts += [f"one layer in {step} is shown"] * (step > 1) + ([held["note"]] if "note" in held else [])
    if worse := held.get("worse_than_logit_lens"):
        parts.append(f"worse than the logit lens at layers {', '.join(map(str, worse))}")
    columns = [TableColumn(printable(heading), "right") for heading in headings]
    return plain_table(columns, lines, "; ".join(parts), gap=2)


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
