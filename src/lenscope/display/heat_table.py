"""Trajectories and comparisons as tables for a terminal.

Knows: colours, widths, how a token is made visible.
Does not know: models, files, where the table is printed.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from rich.cells import set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.style import Style
from rich.table import Table
from rich.text import Text

from lenscope import visible_text as visible
from lenscope.display.numbers import figure
from lenscope.errors import LenscopeError

if TYPE_CHECKING:
    from lenscope.lenses.comparison import Comparison
    from lenscope.lenses.trajectory import Trajectory

# The narrowest and widest cell, in terminal columns; a cell from FIGURE on also shows the measure as a number.
NARROW, WIDE, FIGURE = 6, 18, 11
# Dark blue → teal → yellow: even steps of lightness, also for the colour-blind (points of the viridis map).
SCALE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
# Measures for which a small value means a prediction near its end.
SMALL_IS_SURE = {"entropy", "kl", "cross_entropy", "rank", "js", "total_variation", "kl_back"}


class Fitted(Table):
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
            options = options.update(width=max(options.max_width, _whole(console, table)))
        yield from console.render(table, options)
        if caption is not None:
            yield from console.render(caption, options)

    def _repr_html_(self) -> str:
        return self._repr_mimebundle_([], [])["text/html"]


def fitted(make: Callable[[int | None], Table], width: int | None) -> Table:
    """What `make` makes for `width` columns; None: for those that there are when it is shown."""
    return Fitted(make) if width is None else make(width)


def _whole(console: Console, table: Table) -> int:
    return Measurement.get(console, console.options.update(width=10**5), table).maximum


def trajectory_table(t: "Trajectory", measure: str, top_k: int, width: int | None) -> Table:
    """Layers (last on top) × positions, each cell its top tokens; the prompt's tokens head the columns.

    Columns that do not fit `width` are left out from the start of the prompt, and the caption says so.
    """
    values = t.measure(measure)
    if not 1 <= top_k <= t.top_ids.shape[2]:
        raise LenscopeError(f"top_k {top_k}: this trajectory has the {t.top_ids.shape[2]} most probable tokens")
    shade = shades(values, measure)
    shown, size = _fit(len(t.positions), len(str(t.n_layers)), width)
    depth = t.prediction_depth
    table = _frame(t.layers)
    for column in shown:
        position = t.positions[column]
        table.add_column(
            Text(visible.token(t.vocabulary[t.ids[position]], size)), width=size, no_wrap=True, justify="left"
        )
    for row in reversed(range(len(t.layers))):
        cells = []
        for column in shown:
            lines = []
            for rank in range(top_k):
                token = t.vocabulary[int(t.top_ids[row, column, rank])]
                number = values[row, column] if top_k == 1 else float(np.exp(t.top_log_probs[row, column, rank]))
                lines.append(_line(token, number, measure if top_k == 1 else "max_probability", size))
            settled = 0 <= depth[column] <= t.layers[row]
            look = style(shade[row, column]) + Style(bold=bool(settled))
            cells.append(Text("\n".join(lines), style=look))
        table.add_row(Text(str(t.layers[row]), style="dim"), *cells)
    unit = t.units[measure]
    table.caption = caption(
        measure, values, len(t.positions) - len(shown), unit, "bold: the top token stays to the end"
    )
    return table


def comparison_table(c: "Comparison", measure: str, width: int | None) -> Table:
    """Layers (last on top) × paired positions, each cell the two top tokens, coloured by how far apart they are."""
    values = c.measure(measure)
    shade = shades(values, measure)
    shown, size = _fit(len(c.positions), len(str(c.first.n_layers)), width)
    table = _frame(c.layers)
    for column in shown:
        heads = [visible.token(t.vocabulary[t.ids[t.positions[column]]], size) for t in (c.first, c.second)]
        table.add_column(Text("\n".join(heads)), width=size, no_wrap=True)
    for row in reversed(range(len(c.layers))):
        cells = []
        for column in shown:
            a, b = (t.vocabulary[int(t.top_ids[row, column, 0])] for t in (c.first, c.second))
            text = _line(a, float(values[row, column]), measure, size) + "\n" + visible.token(b, size)
            cells.append(Text(text, style=style(shade[row, column])))
        table.add_row(Text(str(c.layers[row]), style="dim"), *cells)
    unit = c.units[measure]
    table.caption = caption(measure, values, len(c.positions) - len(shown), unit, "above: first, below: second")
    return table


def _line(token: str, value: float, measure: str, size: int) -> str:
    if size < FIGURE:
        return visible.token(token, size)
    number = figure(value, measure)
    return set_cell_size(visible.token(token, size - 5), size - len(number)) + number


def _frame(layers: tuple[int, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True, header_style="bold")
    table.add_column("layer" if max(layers) > 99 else "", justify="right", no_wrap=True)
    return table


def _fit(columns: int, digits: int, width: int | None) -> tuple[range, int]:
    """Which columns are shown, the last ones first, and how wide each is."""
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


def shades(values: np.ndarray, measure: str) -> np.ndarray:
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


def style(shade: float) -> Style:
    """The colour of a shade 0 … 1, with black or white text; dim where there is none."""
    if np.isnan(shade):
        return Style(dim=True)
    at = shade * (len(SCALE) - 1)
    i = min(int(at), len(SCALE) - 2)
    r, g, b = (round(x + (y - x) * (at - i)) for x, y in zip(SCALE[i], SCALE[i + 1], strict=True))
    light = 0.2126 * _linear(r) + 0.7152 * _linear(g) + 0.0722 * _linear(b)
    # black or white, whichever has the higher contrast (WCAG 2: they meet at a luminance of 0.179)
    return Style(color="rgb(0,0,0)" if light > 0.179 else "rgb(255,255,255)", bgcolor=f"rgb({r},{g},{b})")


def _linear(channel: int) -> float:
    c = channel / 255
    return c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4


def caption(measure: str, values: np.ndarray, hidden: int, unit: str, note: str) -> Text:
    """What the colours mean, from where to where, and what does not fit."""
    finite = values[np.isfinite(values)]
    finite = finite[finite >= 0] if measure == "rank" else finite
    span = f" {figure(finite.min(), measure)} … {figure(finite.max(), measure)}" if finite.size else ""
    text = f"colour: {measure}{span} ({unit})" + (f"; {note}" if note else "")
    if hidden:
        text += f"; the first {hidden} positions do not fit: choose with positions, or a wider terminal"
    return Text(visible.plain(text), style="dim", justify="left")
