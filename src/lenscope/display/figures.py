"""Figures: labelled numbers as pictures.

Knows: how curves, bars, points and heat maps are drawn, colours, fonts, files.
Does not know: what the numbers mean, models.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lenscope import visible_text as visible
from lenscope.files.file_names import safe_name
from lenscope.files.writing import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# after Okabe and Ito: told apart by the colour-blind
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
WIDTH, HEIGHT, COLUMNS = 5.2, 3.6, 3
# inches that a legend beside its panel takes; characters of a title, of a name in a legend or at a tick
LEGEND, TITLE, NAME = 1.8, 60, 40


@dataclass(frozen=True)
class Series:
    """One curve, one set of bars or points: y over x, with the ends of intervals if known; controls are `dashed`."""

    label: str
    x: Sequence[Any]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Series on common axes; the x of bars are names. `level` is a dotted line across, such as chance."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    kind: Literal["lines", "bars", "points"] = "lines"
    log: bool = False
    level: float | None = None


@dataclass(frozen=True)
class Heatmap:
    """values (rows, columns) over the numbers or names of both; `colour` says what they are."""

    title: str
    x: str
    y: str
    columns: Sequence[Any]
    rows: Sequence[Any]
    values: Any
    colour: str


@dataclass(frozen=True)
class Figure:
    """Panels beside each other, three in a line; `name` is that of its file.

    Heat maps whose `colour` says the same have one scale, so that their colours compare. Legends stand outside.
    """

    name: str
    panels: Sequence[Panel | Heatmap]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Draw into NAME.png in a folder; LenscopeError if it cannot be written."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas

        columns = min(COLUMNS, len(self.panels))
        lines = -(-len(self.panels) // columns)
        labels = [tuple(one.label for one in p.series if one.label) for p in self.panels if isinstance(p, Panel)]
        shared = len(set(filter(None, labels))) == 1 and len(labels) > 1
        width = WIDTH + (0 if shared or not any(labels) else LEGEND)
        canvas = Canvas(figsize=(width * columns, HEIGHT * lines), layout="constrained", dpi=110)
        FigureCanvasAgg(canvas)
        axes = canvas.subplots(lines, columns, squeeze=False).reshape(-1)
        for panel, at in zip(self.panels, axes, strict=False):
            if isinstance(panel, Heatmap):
                _draw_heatmap(
                    at, panel, _colour_range([p for p in self.panels if isinstance(p, Heatmap)], panel.colour)
                )
            else:
                _draw_panel(at, panel, not shared)
        if shared:
            first = next(at for at, p in zip(axes, self.panels, strict=False) if _labelled(p))
            handles, names = first.get_legend_handles_labels()
            most = max(1, min(len(names), int(columns * WIDTH / (0.6 + 0.075 * max(map(len, names))))))
            canvas.legend(handles, names, loc="outside lower center", frameon=False, fontsize=8, ncols=most)
        for at in axes[len(self.panels) :]:
            at.set_axis_off()
        path = Path(folder) / f"{safe_name(self.name)}.png"
        with whole_file(path) as making:
            canvas.savefig(making, format="png")
        return path


def _figure_text(text: object, width: int | None = None) -> str:
    """A text for matplotlib as it stands: no formulas, nothing invisible, and a label even where it begins with _."""
    shown = visible.cut_to_width(visible.printable(text), width).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _labelled(panel: Panel | Heatmap) -> bool:
    return isinstance(panel, Panel) and any(one.label for one in panel.series)


def _colour_range(maps: Sequence[Heatmap], colour: str) -> tuple[float, float] | None:
    """The least and greatest value of all heat maps of one kind; None where nothing is known."""
    values = [np.asarray(m.values, dtype=float).reshape(-1) for m in maps if m.colour == colour]
    known = np.concatenate(values) if values else np.zeros(0)
    known = known[np.isfinite(known)]
    return (float(known.min()), float(known.max())) if known.size else None


def _draw_panel(axes: "Axes", panel: Any, legend: bool) -> None:
    draw = {"lines": _line, "bars": _bars, "points": _points}[panel.kind]
    for n, one in enumerate(panel.series):
        draw(axes, one, n, len(panel.series))
    if panel.level is not None:
        axes.axhline(panel.level, color="#999999", linestyle=":", linewidth=1)
    if panel.log:
        axes.set_yscale("log")
    _labels(axes, panel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    if legend and _labelled(panel):
        # beside the axes, where no data are
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)


def _line(axes: "Axes", one: Series, n: int, _: int) -> None:
    colour = COLOURS[n % len(COLOURS)]
    y = np.asarray(one.y, dtype=float)
    axes.plot(
        one.x,
        y,
        color=colour,
        label=_figure_text(one.label, NAME),
        linewidth=1.6,
        linestyle="--" if one.dashed else "-",
    )
    if len(y) < 40:
        axes.plot(one.x, y, ".", color=colour, markersize=4)
    if one.low is not None and one.high is not None:
        low, high = np.asarray(one.low, dtype=float), np.asarray(one.high, dtype=float)
        axes.fill_between(one.x, low, high, color=colour, alpha=0.18, linewidth=0)


def _points(axes: "Axes", one: Series, n: int, _: int) -> None:
    axes.plot(
        one.x, one.y, ".", color=COLOURS[n % len(COLOURS)], label=_figure_text(one.label, NAME), markersize=4, alpha=0.6
    )


def _bars(axes: "Axes", one: Series, n: int, total: int) -> None:
    width = 0.8 / total
    y = np.asarray(one.y, dtype=float)
    places = np.arange(len(y)) + (n - (total - 1) / 2) * width
    apart = None
    if one.low is not None and one.high is not None:
        apart = np.stack([y - np.asarray(one.low, dtype=float), np.asarray(one.high, dtype=float) - y]).clip(min=0)
    look: dict[str, Any] = {"hatch": "///", "alpha": 0.55} if one.dashed else {}
    thin = {"elinewidth": 1, "ecolor": "#333333"}
    axes.bar(
        places,
        y,
        width,
        color=COLOURS[n % len(COLOURS)],
        label=_figure_text(one.label, NAME),
        yerr=apart,
        error_kw=thin,
        **look,
    )
    long = max((len(str(x)) for x in one.x), default=0) * len(y) > 40
    axes.set_xticks(
        range(len(y)),
        [_figure_text(x, NAME) for x in one.x],
        rotation=40 if long else 0,
        ha="right" if long else "center",
    )


def _draw_heatmap(axes: "Axes", panel: Any, ends: tuple[float, float] | None) -> None:
    values = np.asarray(panel.values, dtype=float)
    low, high = ends or (0.0, 1.0)
    # a scale around a single value would show all of them as the middle of it
    scale: dict[str, Any] = {"vmin": low, "vmax": high if high > low else low + 1}
    image = axes.imshow(values, origin="lower", aspect="auto", cmap="viridis", interpolation="nearest", **scale)
    for names, place in ((panel.columns, axes.set_xticks), (panel.rows, axes.set_yticks)):
        step = max(1, len(names) // 10)
        place(range(0, len(names), step), [_figure_text(v, NAME) for v in list(names)[::step]])
    bar = axes.figure.colorbar(image, ax=axes)
    bar.set_label(_figure_text(panel.colour), fontsize=8)
    _labels(axes, panel)


def _labels(axes: "Axes", panel: Any) -> None:
    axes.set_title(_figure_text(panel.title, TITLE), fontsize=10)
    axes.set_xlabel(_figure_text(panel.x), fontsize=9)
    axes.set_ylabel(_figure_text(panel.y), fontsize=9)
    axes.tick_params(labelsize=8)
