"""Heat tables for a terminal: texts in cells that numbers colour, rows from below.

Knows: colours, which columns fit a width, how a token is made visible. Does not know: what the texts and numbers are
of, where the table is printed.
"""

from collections.abc import Callable, Sequence

import numpy as np
from rich.cells import set_cell_size
from rich.style import Style
from rich.table import Table
from rich.text import Text

from lenscope import visible_text as visible
from lenscope.display.numbers import figure
from lenscope.display.style import blended, text_on
from lenscope.display.tables import TableColumn, dim, plain_table

# The narrowest and widest cell, in terminal columns; a cell from FIGURE on also shows the measure as a number.
NARROW, WIDE, FIGURE = 6, 18, 11
# Dark blue → teal → yellow: even steps of lightness, also for the colour-blind (points of the viridis map).
SCALE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
# What stands before the label of a row that is not to be trusted, the grey that its colours are mixed with, and how
# much of that there is: text reads on it as well as on any other colour.
DOUBT, GREY, GREYED = "?", "#707070", 0.7
# Measures for which a small value means a prediction near its end.
SMALL_IS_SURE = {"entropy", "kl", "cross_entropy", "rank", "js", "total_variation", "kl_back"}


def heat_table(
    columns: Sequence[TableColumn],
    labels: Sequence[str],
    texts: Sequence[Sequence[str]],
    shades: np.ndarray,
    caption: str,
    *,
    bold: np.ndarray | None = None,
    corner: str = "",
    gap: int = 1,
    doubted: Sequence[bool] = (),
) -> Table:
    """Rows, the last on top, of texts that shades colour.

    Args:
        columns: the columns, but for that of the labels.
        labels: what stands before each row.
        texts: (rows, columns) what stands in the cells.
        shades: (rows, columns) 0 … 1 as `shades_of` gives them, NaN where there is no value.
        caption: what the colours mean, as `colour_caption` says it.
        bold: (rows, columns) which cells are bold.
        corner: the heading of the labels.
        gap: the columns of the terminal between two columns of the table.
        doubted: which rows are not to be trusted: these stand back and have a mark; none where it is empty. The caption
            says why (`with_doubts`).
    """
    rows = []
    for n in reversed(range(len(labels))):
        back = bool(len(doubted)) and bool(doubted[n])
        looks = [style_of(float(shade), back) for shade in shades[n]]
        if bold is not None:
            looks = [look + Style(bold=bool(b)) for look, b in zip(looks, bold[n], strict=True)]
        rows.append([dim(DOUBT + labels[n] if back else labels[n]), *map(Text, texts[n], looks)])
    return plain_table([TableColumn(corner, "right"), *columns], rows, caption, gap=gap)


def token_and_figure(token: str, value: float, measure: str, size: int) -> str:
    """A token in `size` columns, with a measure's value behind it where there is room."""
    if size < FIGURE:
        return visible.printable_token(token, size)
    number = figure(value, measure)
    return set_cell_size(visible.printable_token(token, size - 5), size - len(number)) + number


def fit_columns(columns: int, digits: int, width: int | None) -> tuple[range, int]:
    """Which columns are shown beside labels of so many digits, the last ones first, and how wide each is."""
    if width is None:
        return range(columns), FIGURE + 3
    room = max(width - max(digits, 2) - 2, NARROW)
    size = min(WIDE, room // columns - 1)
    if size < NARROW:
        size = NARROW + 2
        fits = max(1, (room + 1) // (size + 1))
        size = min(size, room)
        return range(columns - fits, columns), size
    return range(columns), size


def shades_of(values: np.ndarray, measure: str) -> np.ndarray:
    """0 … 1 per cell, 1 the surest; NaN where there is no value."""
    v = values.astype(float)
    v[~np.isfinite(v)] = np.nan
    if measure == "rank":
        v[v < 0] = np.nan  # no target
        v = np.log1p(v)
    if measure in ("max_probability", "total_variation"):
        low, high = 0.0, 1.0
    else:
        finite = v[np.isfinite(v)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    shade = np.clip((v - low) / max(high - low, 1e-12), 0, 1)
    return 1 - shade if measure in SMALL_IS_SURE else shade


def with_doubts(caption: str, doubts: str) -> str:
    """A caption, and in a line below it what the mark of rows that are not to be trusted says, if there are any."""
    return f"{caption}\n{DOUBT} and grey: {visible.printable(doubts)}" if doubts else caption


def style_of(shade: float, back: bool = False) -> Style:
    """The colour of a shade 0 … 1, with black or white text, greyed where it stands `back`; dim where there is none."""
    if np.isnan(shade):
        return Style(dim=True)
    at = shade * (len(SCALE) - 1)
    i = min(int(at), len(SCALE) - 2)
    r, g, b = (round(x + (y - x) * (at - i)) for x, y in zip(SCALE[i], SCALE[i + 1], strict=True))
    ground = f"#{r:02x}{g:02x}{b:02x}"
    ground = blended(ground, GREY, GREYED) if back else ground
    return Style(color=text_on(ground), bgcolor=ground)


def colour_caption(
    measure: str,
    values: np.ndarray,
    hidden: int,
    unit: str,
    note: str,
    *,
    number: Callable[[float, str], str] = figure,
    of: str = "positions",
) -> str:
    """What the colours mean, from where to where, and what does not fit.

    Args:
        measure: the name of what colours the cells.
        values: all its values.
        hidden: how many columns are left out.
        unit: the measure's unit.
        note: what else is said.
        number: how a value is shown.
        of: what the columns are.
    """
    finite = values[np.isfinite(values)]
    finite = finite[finite >= 0] if measure == "rank" else finite
    span = f" {number(finite.min(), measure)} … {number(finite.max(), measure)}" if finite.size else ""
    text = f"colour: {measure}{span} ({unit})" + (f"; {note}" if note else "")
    if hidden:
        text += f"; the first {hidden} {of} do not fit: choose with positions, or a wider terminal"
    return visible.printable(text)
