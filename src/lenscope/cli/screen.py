"""The terminal as results are drawn on it: width, colours, tables with their captions, bars of progress on stderr.

Knows: that nothing from outside may act on the terminal. Does not know: any command, what tables say.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table

from lenscope.cli.streams import writing
from lenscope.visible_text import plain


class Screen(Console):
    """A console on which text is text: no markup, no emoji codes, and no character that a terminal acts on."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is drawn, every part of its text visible; tables and lines make their text visible before, to fit."""
        for part in super().render(renderable, options):
            safe = part.control or part.text.isprintable() or part.text == "\n"
            yield part if safe else Segment("\n".join(map(plain, part.text.split("\n"))), part.style)

    def print(self, *objects: Any, **how: Any) -> None:
        """Draw; what cannot be written is left to who runs the command (streams.failure)."""
        with writing():
            super().print(*objects, **how)

    def on_broken_pipe(self) -> None:
        """No reason to end the process, as it is for rich."""
        raise


def show(console: Console, table: Table) -> None:
    """The table, then its caption over the whole width: within a narrow table it would be broken to pieces."""
    caption, table.caption = table.caption, None
    console.print(table)
    if caption is not None:
        console.print(caption)


def bar(total: int, unit: str) -> Progress:
    """A bar on stderr for work of several items; nothing for a single one."""
    console = Screen(stderr=True)
    columns = TextColumn(plain(unit), markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    progress = Progress(*columns, console=console, transient=True, disable=total < 2 or not console.is_terminal)
    progress.add_task(unit, total=total)
    return progress


@contextmanager
def counted(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work that itself says how much of it is done: what is yielded takes (done, in all or 0)."""
    with bar(2, unit) as progress:

        def advance(done: int, total: int) -> None:
            progress.update(progress.task_ids[0], completed=done, total=total or None)

        yield advance
