"""Cells of a grid as tables for a terminal: a heat map of source layers × target layers, or a line per cell.

Knows: which cells fit a width, which token of a cell is worth showing. Does not know: models, files, where the table is
printed.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from lenscope import visible_text as visible
from lenscope.display.heat_table import colour_caption, heat_table, shades_of, style_of
from lenscope.display.measure_maps import measure_map
from lenscope.display.numbers import figure
from lenscope.display.panels import Heatmap, Panel, Series
from lenscope.display.tables import TableColumn, dim, plain_table
from lenscope.patchscopes.grid_cells import Cell, Source

# The narrowest cell that can show a token; below it a heat map is colours alone.
NARROW = 4
# columns of an answer above its numbers, and how the measures of answers begin that tell how probable they are
ANSWERED, ANSWER = 12, "log_prob:"
# columns of a source's or a target's name
NAME = 24


def heat_map(
    sources: Sequence[Source],
    layers: Sequence[int],
    texts: np.ndarray,
    values: np.ndarray,
    measure: str,
    unit: str,
    others: Sequence[str],
    width: int | None,
) -> Table:
    """Sources (the last on top) × target layers; a cell is the top token, or the first word written.

    Args:
        sources: one for each row.
        layers: the target layers, one for each column.
        texts: (sources, layers) what the cells say.
        values: (sources, layers) what colours them.
        measure: the name of the values; those of an answer are shown, as the text is of another.
        unit: the unit of the values.
        others: names of what else is measured of answers.
        width: the columns of the terminal, None for as many as it takes.
    """
    shades = shades_of(values, measure)
    names = [_source_name(source) for source in sources]
    room = (width or 10**4) - max(map(len, names)) - 1
    size = min(12, room // len(layers) - 1) if width else 10
    bare = size < NARROW
    step = 1 if not bare else max(1, -(-len(layers) * 2 // max(room, 2)))
    shown = range(0, len(layers), step)

    def text(row: int, n: int) -> str:
        # tenths of the way from the least to the surest, which is all there is where no colours are
        if bare:
            return _tenth(shades[row, n])
        # of an answer, which is what is asked for, not the top token
        return (
            figure(float(values[row, n]), measure)
            if ":" in measure
            else visible.printable_token(_word(texts[row, n]), size)
        )

    # every fifth number where two columns hold no more
    heads = [str(layers[n]) if not bare or layers[n] % 5 == 0 else "" for n in shown]
    note = "rows: source layer, columns: target layer" if sources[0].layer >= 0 else "columns: target layer"
    if others:
        note += f"; also measured: {', '.join(others)}"
    if bare:
        note += "; digits: tenths of the way from the least sure (0) to the surest (9)"
    if step > 1:
        note += f"; every {step}th column fits: a wider terminal shows more"
    return heat_table(
        [TableColumn(head, width=2 if bare else size) for head in heads],
        [f"{name} " for name in names],
        [[text(row, n).ljust(2) for n in shown] for row in range(len(names))],
        shades[:, ::step],
        colour_caption(measure, values, 0, unit, note),
        gap=0 if bare else 1,
    )


def panel(
    title: str,
    sources: Sequence[Source],
    layers: np.ndarray,
    texts: Sequence[str],
    values: np.ndarray,
    measure: str,
    unit: str,
) -> Heatmap | Panel:
    """The cells of one target as a panel of a figure: lines where each goes to a layer of its own, else a heat map.

    Args:
        title: what stands above.
        sources: that of each cell, N.
        layers: (N,) the target layers.
        texts: (N,) what the cells say.
        values: (N,) what colours them.
        measure: the name of the values.
        unit: the unit of the values.
    """
    groups: dict[tuple[str, int, str], list[int]] = {}
    for n, source in enumerate(sources):
        placed = source.layer >= 0
        groups.setdefault((source.text, source.position, source.token if placed else source.label), []).append(n)
    at = np.array([s.layer if s.layer >= 0 else layer for s, layer in zip(sources, layers.tolist(), strict=True)])
    if all(len({*at[cells].tolist()}) == len(cells) for cells in groups.values()):
        series = []
        for (_, _, token), cells in groups.items():
            order = sorted(cells, key=lambda n: at[n])
            name = visible.printable_token(token, NAME) if len(groups) > 1 else ""
            series.append(Series(name, at[order].tolist(), values[order].tolist()))
        x = "source layer" if sources[0].layer >= 0 else "target layer"
        return Panel(title, x, f"{measure.replace('_', ' ')}: {unit}", series)
    rows = list(dict.fromkeys(sources))
    columns = sorted({*layers.tolist()})
    place = {source: n for n, source in enumerate(rows)}
    table = np.full((len(rows), len(columns)), np.nan)
    words = [[""] * len(columns) for _ in rows]
    for source, layer, value, text in zip(sources, layers.tolist(), values, texts, strict=True):
        row, column = place[source], columns.index(layer)
        table[row, column] = value
        words[row][column] = figure(float(value), measure) if ":" in measure else visible.printable_token(_word(text))
    names = [_source_name(source) if len(groups) < 2 else source.label for source in rows]
    axes = ("target layer", "source layer" if rows[0].layer >= 0 else "source")
    return measure_map(title, axes, columns, names, table, measure, unit, words)


def cell_lines(
    cells: Sequence[Cell], measured: Mapping[str, np.ndarray], unit: str, generated: bool, width: int | None
) -> Table:
    """One line per cell: source, target layer, the measure, each answer's log-probability, what it says.

    Args:
        cells: the cells, N.
        measured: name → values (N,); the first one is what the caption is about.
        unit: the unit of the first.
        generated: whether texts were written, and not next tokens predicted.
        width: the columns of the terminal, None for as many as it takes.
    """
    measure = next(iter(measured))
    several = len({(c.source.text, c.source.position) for c in cells}) > 1
    targets = len({c.target for c in cells}) > 1
    same = all(c.source.layer == c.layer for c in cells)
    shades = {name: shades_of(values[None], name)[0] for name, values in measured.items()}
    heads = ["layer" if same else "source → target", *(_heading(name, generated) for name in measured)]
    heads = [*(["source"] if several else []), *(["target"] if targets else []), *heads]
    rows: list[list[Text]] = []
    for n, cell in enumerate(cells):
        row = [Text(visible.printable_token(cell.source.token or cell.source.label, NAME))] if several else []
        row += [Text(visible.printable_token(cell.target.text[-NAME:], NAME))] if targets else []
        row.append(dim(str(cell.layer) if same else f"{_source_name(cell.source)} → {cell.layer}"))
        row += [Text(_number_text(float(v[n]), name), style_of(shades[name][n])) for name, v in measured.items()]
        rows.append(row)
    columns = []
    room = width or 10**4
    for n, head in enumerate(heads):
        size = max(cell_len(head), *(row[n].cell_len for row in rows))
        columns.append(TableColumn(head, "left" if head in ("source", "target") else "right", size))
        room -= size + 1
    # what it says takes what is left, and is cut there
    columns.append(TableColumn("says", most=max(room, len("says"))))
    note = "in brackets the probability of the answer" if any(m.startswith(ANSWER) for m in measured) else ""
    if generated and measure == "max_probability":
        note = "it says nothing of later tokens, nor how true the text is"
    return plain_table(
        columns,
        [[*row, _text_of(cell, generated)] for row, cell in zip(rows, cells, strict=True)],
        colour_caption(measure, measured[measure], 0, unit, note),
    )


def _heading(measure: str, generated: bool) -> str:
    """What stands above a column of numbers."""
    kind, _, answer = measure.partition(":")
    if answer:
        return f"{'ln p' if kind == 'log_prob' else kind} {visible.printable_token(answer, ANSWERED)}"
    if measure == "max_probability":
        return "p(1st)" if generated else "p(top)"
    return measure


def _number_text(value: float, measure: str) -> str:
    """A measure's value; an answer's with its probability."""
    if not measure.startswith(ANSWER) or not np.isfinite(value):
        return figure(value, measure)
    p = float(np.exp(value))
    return f"{value:.2f} ({f'{100 * p:.0f}%' if p >= 0.01 else f'{p:.0e}'})"


def _text_of(cell: Cell, generated: bool) -> str:
    if generated:
        return visible.printable_token(cell.text).lstrip("·")
    shares = zip(cell.tokens, np.exp(cell.log_probs), strict=True)
    return "  ".join(f"{visible.printable_token(token)} {100 * share:.0f}%" for token, share in shares)


def _source_name(source: Source) -> str:
    return str(source.layer) if source.layer >= 0 else source.label


def _word(text: str) -> str:
    """The first word with a letter or digit in it, else the text itself."""
    words = [w for w in text.split() if any(c.isalnum() for c in w)]
    return words[0] if words else text


def _tenth(shade: float) -> str:
    return "  " if np.isnan(shade) else f"{min(9, int(10 * shade))} "
