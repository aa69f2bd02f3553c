"""Grids as tables for a terminal: a heat map of source layers × target layers, or a line per cell.

Knows: which cells fit a width, which token of a cell is worth showing. Does not know: models, files, where the table is
printed.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from lenscope import visible_text as visible
from lenscope.display import heat_table as tables
from lenscope.display import numbers
from lenscope.errors import LenscopeError

if TYPE_CHECKING:
    from lenscope.patchscopes.grid import Grid

# The narrowest cell that can show a token; below it a heat map is colours alone.
NARROW = 4
# columns of an answer above its numeric, and how the measures of answers begin that tell how probable they are
ANSWERED, ANSWER = 12, "log_prob:"
# columns of a source's or a target's name
NAME = 24


def table(grid: "Grid", measure: str, width: int | None) -> Table:
    """A heat map where one target's cells are every source at several layers, else a line per cell.

    `measure` colours the cells; "" is the first answer's log-probability where the grid has answers, else the
    probability of the top or first token.
    """
    if not len(grid):
        raise LenscopeError("the grid has no cells to show")
    answers = [name for name in grid.measures if name.startswith(ANSWER)]
    measure = measure or (answers[0] if answers else "max_probability")
    values = grid.column(measure)
    if values.dtype == object or values.ndim > 1:
        raise LenscopeError(f"measure {measure!r}: give one of {', '.join(grid.measures)}")
    full = len(grid.targets) == 1 and len(grid.layers) > 1 and len(grid.sources) > 1
    if full and len(grid) == len(np.unique(grid.source)) * len(grid.layers):
        return _heat(grid, measure, width)
    return _lines(grid, measure, answers, width)


def _heat(grid: "Grid", measure: str, width: int | None) -> Table:
    """Sources (the last on top) × target layers; a cell is the top token, or the first word written."""
    values, texts = grid.cells(measure), grid.cells("text")
    numeric = ":" in measure  # of an answer, which is what is asked for, not the top token
    shade = tables.shades(values, measure)
    names = [_name(grid, n) for n in np.unique(grid.source).tolist()]
    head = max(map(len, names))
    room = (width or 10**4) - head - 1
    columns = len(grid.layers)
    size = min(12, room // columns - 1) if width else 10
    bare = size < NARROW
    step = 1 if not bare else max(1, -(-columns * 2 // max(room, 2)))
    shown = range(0, columns, step)
    made = Table(box=None, pad_edge=False, padding=(0, 0 if bare else 1, 0, 0), header_style="bold")
    made.add_column("", justify="right", no_wrap=True)
    for n in shown:
        layer = grid.layers[n]
        # every fifth number where two columns hold no more
        label = str(layer) if not bare or layer % 5 == 0 else ""
        made.add_column(Text(label), width=2 if bare else size, no_wrap=True)
    for row in reversed(range(len(names))):
        cells = []
        for n in shown:
            # tenths of the way from the least to the surest, which is all there is where no colours are
            text = (
                _tenth(shade[row, n])
                if bare
                else (
                    numbers.figure(float(values[row, n]), measure)
                    if numeric
                    else visible.token(_first(texts[row, n]), size)
                )
            )
            cells.append(Text(text.ljust(2), style=tables.style(shade[row, n])))
        made.add_row(Text(names[row] + " ", style="dim"), *cells)
    note = "rows: source layer, columns: target layer" if grid.sources[0].layer >= 0 else "columns: target layer"
    others = [name for name in grid.measures if name.startswith(ANSWER) and name != measure]
    if others:
        note += f"; also measured: {', '.join(others)}"
    if bare:
        note += "; digits: tenths of the way from the least sure (0) to the surest (9)"
    if step > 1:
        note += f"; every {step}th column fits: a wider terminal shows more"
    made.caption = tables.caption(measure, values, 0, _unit(grid, measure), note)
    return made


def _lines(grid: "Grid", measure: str, answers: list[str], width: int | None) -> Table:
    """One line per cell: source, target layer, the measure, each answer's log-probability, what was said."""
    several = len({(s.text, s.position) for s in grid.sources}) > 1
    same = all(c.source.layer == c.layer for c in grid)
    numeric = [measure, *(name for name in answers if name != measure)]
    shade = {name: tables.shades(grid.column(name)[None], name)[0] for name in numeric}
    heads = ["layer" if same else "source → target", *(_heading(grid, name) for name in numeric)]
    heads = [*(["source"] if several else []), *(["target"] if len(grid.targets) > 1 else []), *heads]
    rows: list[list[Text]] = []
    for n, cell in enumerate(grid):
        row = [Text(visible.token(cell.source.token or cell.source.label, NAME))] if several else []
        row += [Text(visible.token(cell.target.text[-NAME:], NAME))] if len(grid.targets) > 1 else []
        row.append(Text(str(cell.layer) if same else f"{_name(grid, int(grid.source[n]))} → {cell.layer}", style="dim"))
        row += [Text(_number(float(grid.column(m)[n]), m), style=tables.style(shade[m][n])) for m in numeric]
        rows.append(row)
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    room = width or 10**4
    for n, head in enumerate(heads):
        size = max(cell_len(head), *(row[n].cell_len for row in rows))
        side: Any = "left" if head in ("source", "target") else "right"
        made.add_column(Text(head), justify=side, width=size, no_wrap=True)
        room -= size + 1
    # what is said takes what is left, and is cut there
    made.add_column("says", no_wrap=True, overflow="ellipsis", max_width=max(room, len("says")))
    for n, row in enumerate(rows):
        made.add_row(*row, Text(_said(grid, n)))
    note = "in brackets the probability of the answer" if any(m.startswith(ANSWER) for m in numeric) else ""
    if grid.kind == "generate" and measure == "max_probability":
        note = "it says nothing of the others, nor how true the text is"
    made.caption = tables.caption(measure, grid.column(measure), 0, _unit(grid, measure), note)
    return made


def _heading(grid: "Grid", measure: str) -> str:
    """What stands above a column of numeric."""
    kind, _, answer = measure.partition(":")
    if answer:
        return f"{'ln p' if kind == 'log_prob' else kind} {visible.token(answer, ANSWERED)}"
    if measure == "max_probability":
        return "p(1st)" if grid.kind == "generate" else "p(top)"
    return measure


def _number(value: float, measure: str) -> str:
    """A measure's value; an answer's with its probability."""
    if not measure.startswith(ANSWER) or not np.isfinite(value):
        return numbers.figure(value, measure)
    p = float(np.exp(value))
    return f"{value:.2f} ({f'{100 * p:.0f}%' if p >= 0.01 else f'{p:.0e}'})"


def _unit(grid: "Grid", measure: str) -> str:
    if grid.kind == "generate" and measure == "max_probability":
        return "probability of the first token that was written, 0–1"
    return grid.unit(measure)


def _said(grid: "Grid", n: int) -> str:
    cell = grid[n]
    if grid.kind == "generate":
        return visible.token(cell.text).lstrip("·")
    shares = zip(cell.tokens, np.exp(cell.log_probs), strict=True)
    return "  ".join(f"{visible.token(token)} {100 * share:.0f}%" for token, share in shares)


def _name(grid: "Grid", source: int) -> str:
    address = grid.sources[source]
    return str(address.layer) if address.layer >= 0 else address.label


def _first(text: str) -> str:
    """The first word with a letter or digit in it, else the text itself."""
    words = [w for w in text.split() if any(c.isalnum() for c in w)]
    return words[0] if words else text


def _tenth(shade: float) -> str:
    return "  " if np.isnan(shade) else f"{min(9, int(10 * shade))} "
