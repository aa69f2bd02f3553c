"""Tables for a terminal or a notebook: columns and lines of text, laid out for the width where they are shown.

Knows: sides, widths, captions, what a terminal and a notebook have room for. Does not know: what the texts say, where
they are printed.
"""

import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.measure import Measurement
from rich.style import Style
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class TableColumn:
    """A column: its heading, the side that its texts stand on, and its width in columns of the terminal.

    `width` None is that of its longest text, `most` the widest that it may be: what is longer is cut there. What
    `folds`, its heading or all of it, is broken into lines instead.
    """

    heading: str
    side: Literal["left", "right"] = "left"
    width: int | None = None
    most: int | None = None
    folds: Literal["none", "heading", "all"] = "none"


class FittedTable(Table):
    """A table that is laid out when it is shown, by a function of the width in columns (None: whole).

    A terminal gets what fits, a notebook all of it, to scroll through. The caption stands below, over the whole width:
    within a narrow table it would be broken to pieces.
    """

    def __init__(self, make: Callable[[int | None], Table]) -> None:
        # what a table is asked before it is shown: rows, columns, caption
        self.__dict__.update(vars(make(None)))
        self.make = make

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = self.make(None if console.is_jupyter else options.max_width)
        caption, table.caption = table.caption, None
        if console.is_jupyter:
            options = options.update(width=max(options.max_width, _whole_width(console, table)))
        yield from console.render(table, options)
        if caption is not None:
            yield from console.render(caption, options)

    def __str__(self) -> str:
        """The table as text, as wide as the terminal."""
        out = io.StringIO()
        Console(file=out, color_system=None, width=shutil.get_terminal_size().columns).print(self)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())

    def __repr__(self) -> str:
        """The same text, so that a prompt of Python shows the table."""
        return str(self)

    def _repr_html_(self) -> str:
        return self._repr_mimebundle_([], [])["text/html"]


def fit_to_width(make: Callable[[int | None], Table], width: int | None) -> Table:
    """What `make` makes for `width` columns; None: for those that there are when it is shown."""
    return FittedTable(make) if width is None else make(width)


def plain_table(
    columns: Sequence[TableColumn],
    rows: Sequence[Sequence[str | Text]],
    caption: str = "",
    *,
    gap: int = 1,
    headings: Literal["top", "bottom"] = "top",
) -> Table:
    """A table without lines: texts below headings, `gap` columns apart, with a dim caption if any.

    Args:
        columns: one for each text of a row; rows may be shorter.
        rows: texts, or texts with a look of their own.
        caption: what stands below, with every character visible.
        gap: the columns of the terminal between two columns of the table.
        headings: where headings of one line stand beside those of several.
    """
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(
            Text(column.heading, overflow=None if column.folds == "none" else "fold"),
            justify=column.side,
            width=column.width,
            max_width=column.most,
            no_wrap=column.folds == "none",
            overflow="fold" if column.folds == "all" else "ellipsis",
            vertical=headings,
        )
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    if caption:
        table.caption = dim(caption)
        table.caption.justify = "left"
    return table


def titled_tables(titles: Sequence[str], tables: Sequence[Table], beside: bool, caption: str = "") -> Table:
    """Tables with a title above each, `beside` each other or one above the other, as one table with a dim caption."""
    whole = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2 if beside else 0, 0, 0))
    blocks = [
        Group(Text(title, style="bold", no_wrap=True, overflow="ellipsis"), table)
        for title, table in zip(titles, tables, strict=True)
    ]
    if beside:
        whole.add_row(*blocks)
    else:
        for n, block in enumerate(blocks):
            whole.add_row(Group(Text(""), block) if n else block)
    if caption:
        whole.caption = dim(caption)
        whole.caption.justify = "left"
    return whole


def dim(text: str) -> Text:
    """A text that stands back."""
    return Text(text, style="dim")


def with_aside(text: str, aside: str, strong: bool) -> Text:
    """A text, bold where `strong`, and behind it one that stands back."""
    shown = Text(text, style=Style(bold=strong))
    return shown.append(aside, style="dim") if aside else shown


def _whole_width(console: Console, table: Table) -> int:
    return Measurement.get(console, console.options.update(width=10**5), table).maximum
