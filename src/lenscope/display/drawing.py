"""How panels are drawn: curves, bars, points and heat maps, with the colours of one palette.

Knows: matplotlib, sizes, fonts, text that may hold anything. Does not know: files, what the numbers mean.
"""

import logging
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lenscope import visible_text as visible
from lenscope.display.panels import Heatmap, Panel, Series
from lenscope.display.style import Palette, blended, text_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# inches of a panel; panels in a line
WIDTH, HEIGHT, COLUMNS = 5.2, 3.6, 3
# inches that a legend beside its panel takes; characters of a title, of a name in a legend or at a tick
LEGEND, TITLE, NAME = 1.8, 60, 40
# characters of a text in a cell; inches of a character and of a line there; around a heat map; of cells without texts
CELL, LETTER, LINE, SIDES, ENDS, BARE = 9, 0.072, 0.16, 2.4, 1.5, 0.14
# inches that no panel may exceed: beyond them cells have no texts
LARGEST = 40.0
# what draws the scripts that matplotlib's own font lacks, where it is installed
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Arabic", "Noto Sans Devanagari", "Arial")
# a log scale goes down to the largest value over this: what is less is rounding
LOG_SPAN = 1e4
MARKERS = "osD^vPX*"
# how much of the paper covers rows that are not to be trusted, and what stands before their names
VEIL, DOUBT = 0.65, "?"


@contextmanager
def canvas_of(panels: Sequence[Panel | Heatmap], palette: Palette, dots: int) -> Iterator[Any]:
    """Panels drawn on a canvas, up to three in a line; it is saved within the block, which has the settings for it.

    `dots` are those per inch of a picture of dots.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    labels = [tuple(one.label for one in p.series if one.label) for p in panels if isinstance(p, Panel)]
    shared = len(set(filter(None, labels))) == 1 and len(labels) > 1
    sizes = [_size(panel, not shared) for panel in panels]
    widths = [max(width for width, _ in sizes[n::columns]) for n in range(columns)]
    heights = [max(height for _, height in sizes[n * columns : (n + 1) * columns]) for n in range(lines)]
    look: Any = {
        "font.family": _fonts(),
        "svg.hashsalt": "lenscope",
        "pdf.fonttype": 42,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), palette.ink),
        **dict.fromkeys(("xtick.color", "ytick.color"), palette.faint),
        "axes.edgecolor": palette.faint,
        "hatch.color": palette.ink,
    }
    with matplotlib.rc_context(look), warnings.catch_warnings():
        # a character that no font has is drawn as a box
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        canvas = Canvas(figsize=(sum(widths), sum(heights)), layout="constrained", dpi=dots, facecolor=palette.paper)
        FigureCanvasAgg(canvas)
        grid = {"width_ratios": widths, "height_ratios": heights}
        axes = canvas.subplots(lines, columns, squeeze=False, gridspec_kw=grid).reshape(-1)
        for panel, at in zip(panels, axes, strict=False):
            at.set_facecolor(palette.paper)
            if isinstance(panel, Heatmap):
                _draw_heatmap(at, panel, _colour_range(panels, panel), palette)
            else:
                _draw_panel(at, panel, not shared, palette)
        if shared:
            first = next(at for at, p in zip(axes, panels, strict=False) if _labelled(p))
            handles, names = first.get_legend_handles_labels()
            most = max(1, min(len(names), int(sum(widths) / (0.6 + 0.075 * max(map(len, names))))))
            canvas.legend(handles, names, loc="outside lower center", frameon=False, fontsize=8, ncols=most)
        for at in axes[len(panels) :]:
            at.set_axis_off()
        yield canvas


@cache
def _fonts() -> list[str]:
    from matplotlib import font_manager

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    installed = {*font_manager.get_font_names()}
    return [name for name in FONTS if name in installed] or ["sans-serif"]


def _figure_text(text: object, width: int | None = None) -> str:
    """A text for matplotlib as it stands: no formulas, nothing invisible, and a label even where it begins with _."""
    shown = visible.cut_to_width(visible.printable(text), width).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _folded(text: str, inches: float) -> str:
    """A text in lines that fit an axis of so many inches."""
    return textwrap.fill(_figure_text(text), max(20, int(13 * (inches - 0.6))))


def _labelled(panel: Panel | Heatmap) -> bool:
    return isinstance(panel, Panel) and any(one.label for one in panel.series)


def _size(panel: Panel | Heatmap, own_legend: bool) -> tuple[float, float]:
    """Inches of a panel: those of a heat map with texts are what its cells take."""
    if isinstance(panel, Panel):
        return WIDTH + (LEGEND if own_legend and _labelled(panel) else 0), HEIGHT
    rows, columns = np.shape(panel.values)
    cell = _cell_size(panel)
    if cell is None:
        return min(LARGEST, max(WIDTH, BARE * columns + ENDS)), min(LARGEST, max(HEIGHT, BARE * rows + ENDS))
    return max(WIDTH, cell[0] * columns + SIDES), max(2.4, cell[1] * rows + ENDS)


def _cell_size(panel: Heatmap) -> tuple[float, float] | None:
    """Inches of a cell that holds its text; None where there are none, or the picture would be too large."""
    if panel.texts is None:
        return None
    rows, columns = np.shape(panel.values)
    lines = [line for row in panel.texts for text in row for line in text.split("\n")]
    longest = min(CELL, max((len(line) for line in (*lines, *map(str, panel.columns))), default=1))
    height = LINE * max((text.count("\n") + 1 for row in panel.texts for text in row), default=1) + 0.04
    width = LETTER * max(longest, 3) + 0.1
    return (width, height) if width * columns < LARGEST and height * rows < LARGEST else None


def _colour_range(panels: Sequence[Panel | Heatmap], panel: Heatmap) -> tuple[float, float]:
    """The least and greatest value of all heat maps of one kind; 0 and 1 where nothing is known."""
    alike = [m for m in panels if isinstance(m, Heatmap) and m.colour == panel.colour]
    known = np.concatenate([np.asarray(m.values, dtype=float).reshape(-1) for m in alike])
    known = known[np.isfinite(known) & ((known >= 0) | (not panel.log))]
    if not known.size:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    tops = [m.high for m in alike if m.high is not None]
    # a scale around a single value would show all of them as the middle of it
    high = min(high, max(tops)) if tops and len(tops) == len(alike) else high
    return low, high if high > low else low + 1


def _draw_panel(axes: "Axes", panel: Panel, legend: bool, palette: Palette) -> None:
    draw_series: Callable[..., None] = {"lines": _line, "bars": _bars, "points": _points}[panel.kind]
    for n, one in enumerate(panel.series):
        draw_series(axes, one, n, len(panel.series), palette)
    if panel.level is not None:
        axes.axhline(panel.level, color=palette.faint, linestyle=":", linewidth=1.2)
    known = [float(v) for one in panel.series for v in one.y if np.isfinite(v) and v > 0]
    # without a value above 0 a log scale has no numbers
    if panel.log and known:
        axes.set_yscale("log")
        if min(known) < max(known) / LOG_SPAN:
            axes.set_ylim(bottom=max(known) / LOG_SPAN)
    _labels(axes, panel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=palette.rule, linewidth=0.6)
    axes.set_axisbelow(True)
    if legend and _labelled(panel):
        # beside the axes, where no data are
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)


def _line(axes: "Axes", one: Series, n: int, _: int, palette: Palette) -> None:
    colour, y = palette.lines[n % len(palette.lines)], np.asarray(one.y, dtype=float)
    dots: dict[str, Any] = {"marker": MARKERS[n % len(MARKERS)], "markersize": 3} if len(y) < 40 else {}
    dash = "--" if one.dashed else "-"
    axes.plot(one.x, y, color=colour, label=_figure_text(one.label, NAME), linewidth=1.6, linestyle=dash, **dots)
    if one.low is not None and one.high is not None:
        low, high = np.asarray(one.low, dtype=float), np.asarray(one.high, dtype=float)
        axes.fill_between(one.x, low, high, color=colour, alpha=0.18, linewidth=0)


def _points(axes: "Axes", one: Series, n: int, _: int, palette: Palette) -> None:
    colour = palette.lines[n % len(palette.lines)]
    look: dict[str, Any] = {"marker": MARKERS[n % len(MARKERS)], "markersize": 3.2, "alpha": 0.7, "linestyle": ""}
    axes.plot(one.x, one.y, color=colour, label=_figure_text(one.label, NAME), **look)


def _bars(axes: "Axes", one: Series, n: int, total: int, palette: Palette) -> None:
    width = 0.8 / total
    y = _drawable(one.y)
    places = np.arange(len(y)) + (n - (total - 1) / 2) * width
    apart = None
    if one.low is not None and one.high is not None:
        apart = np.stack([y - _drawable(one.low), _drawable(one.high) - y]).clip(min=0)
    look: dict[str, Any] = {"hatch": "///", "alpha": 0.55} if one.dashed else {}
    look |= {"color": palette.lines[n % len(palette.lines)], "error_kw": {"elinewidth": 1, "ecolor": palette.ink}}
    axes.bar(places, y, width, label=_figure_text(one.label, NAME), yerr=apart, **look)
    long = max((len(str(x)) for x in one.x), default=0) * len(y) > 40
    names = [_figure_text(x, NAME) for x in one.x]
    axes.set_xticks(range(len(y)), names, rotation=40 if long else 0, ha="right" if long else "center")


def _drawable(values: Sequence[float]) -> np.ndarray:
    """Values of which NaN stands for those that no axis has."""
    known = np.asarray(values, dtype=float)
    return np.where(np.isfinite(known), known, np.nan)


def _draw_heatmap(axes: "Axes", panel: Heatmap, ends: tuple[float, float], palette: Palette) -> None:
    from matplotlib.colors import FuncNorm, LinearSegmentedColormap, Normalize

    values = np.asarray(panel.values, dtype=float)
    ramp = LinearSegmentedColormap.from_list("lenscope", palette.ramp).with_extremes(bad=palette.wash)
    norm: Any = FuncNorm((np.log1p, np.expm1), *ends) if panel.log else Normalize(*ends)
    # -1 is a rank that is not known
    values = np.where(values < 0, np.nan, values) if panel.log else values
    image = axes.imshow(values, origin="lower", aspect="auto", cmap=ramp, norm=norm, interpolation="nearest")
    cell = _cell_size(panel)
    _ticks(axes, panel, cell)
    beyond = np.isfinite(values).any() and np.nanmax(values) > ends[1]
    bar = axes.figure.colorbar(image, ax=axes, extend="max" if beyond else "neither", pad=0.02, aspect=30)
    bar.set_label(_folded(panel.colour, _size(panel, False)[1]), fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=2)
    _labels(axes, panel)
    for row in np.flatnonzero(panel.doubted):
        axes.axhspan(row - 0.5, row + 0.5, facecolor=palette.paper, alpha=VEIL, linewidth=0)
        if cell is None:  # hatching behind texts would be read with them
            axes.axhspan(row - 0.5, row + 0.5, facecolor="none", edgecolor=palette.faint, hatch="////", linewidth=0)
    if cell is None or panel.texts is None:
        return
    bold = np.zeros(values.shape, dtype=bool) if panel.bold is None else np.asarray(panel.bold, dtype=bool)
    for (row, column), value in np.ndenumerate(values):
        ground = _hex(ramp(norm(value))) if np.isfinite(value) else palette.wash
        if len(panel.doubted) and panel.doubted[row]:
            ground = blended(ground, palette.paper, VEIL)
        shown = "\n".join(_figure_text(line, CELL) for line in panel.texts[row][column].split("\n"))
        look: dict[str, Any] = {"color": text_on(ground), "weight": "bold" if bold[row, column] else "normal"}
        axes.text(column, row, shown, ha="center", va="center", fontsize=7, linespacing=1.1, **look)


def _ticks(axes: "Axes", panel: Heatmap, cell: tuple[float, float] | None) -> None:
    """Names at rows and columns: all of them beside texts, as many as there is room for without."""
    width, height = _size(panel, False)
    room = (max(10, int(2 * width)), max(10, int(2 * height))) if cell is None else (10**6, 10**6)
    marks = [DOUBT if doubted else "" for doubted in panel.doubted] or [""] * len(panel.rows)
    rows = [f"{mark}{name}" for mark, name in zip(marks, panel.rows, strict=True)]
    for names, place, most in ((panel.columns, axes.set_xticks, room[0]), (rows, axes.set_yticks, room[1])):
        step = max(1, -(-len(names) // most))
        place(range(0, len(names), step), [_figure_text(v, NAME if cell is None else CELL * 2) for v in names[::step]])
    wide = max((len(str(name)) for name in panel.columns), default=0)
    longer = wide * min(len(panel.columns), room[0]) > 6 * room[0] if cell is None else wide * LETTER > cell[0]
    if longer:
        axes.tick_params(axis="x", rotation=60)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in colour[:3])


def _labels(axes: "Axes", panel: Panel | Heatmap) -> None:
    axes.set_title(_figure_text(panel.title, TITLE), fontsize=10)
    note = panel.note if isinstance(panel, Heatmap) else ""
    below = "\n" + _folded(f"{DOUBT} and pale: {note}", _size(panel, False)[0]) if note else ""
    axes.set_xlabel(_figure_text(panel.x) + below, fontsize=9)
    axes.set_ylabel(_folded(panel.y, _size(panel, False)[1]), fontsize=9)
    axes.tick_params(labelsize=8)
