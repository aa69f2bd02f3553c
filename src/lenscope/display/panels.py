"""What figures show: curves, bars, points and heat maps as numbers with labels.

Knows: what each holds, how it goes into a page. Does not know: how it is drawn, what the numbers mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Series:
    """One curve, one set of bars or points: y over x, with the ends of intervals if known; controls are `dashed`."""

    label: str
    x: Sequence[Any]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False

    def page_data(self) -> dict[str, Any]:
        """The series as JSON values."""
        names = [str(x) if isinstance(x, str) else float(x) for x in self.x]
        ends = {name: None if v is None else plain_numbers(v) for name, v in (("low", self.low), ("high", self.high))}
        return {"label": str(self.label), "x": names, "y": plain_numbers(self.y), **ends, "dashed": bool(self.dashed)}


@dataclass(frozen=True)
class Panel:
    """Curves, bars or points on common axes.

    The x of bars are names. `level` is a dotted line across, such as chance.
    """

    title: str
    x: str
    y: str
    series: Sequence[Series]
    kind: Literal["lines", "bars", "points"] = "lines"
    log: bool = False
    level: float | None = None

    def page_data(self) -> dict[str, Any]:
        """The panel as JSON values."""
        return {
            "kind": self.kind,
            "title": str(self.title),
            "x": str(self.x),
            "y": str(self.y),
            "log": bool(self.log),
            "level": None if self.level is None else plain_numbers([self.level])[0],
            "series": [one.page_data() for one in self.series],
        }


@dataclass(frozen=True)
class Heatmap:
    """values (rows, columns) over the numbers or names of both; the first row is the lowest.

    `colour` says what the values are. `texts` (rows, columns) stand in the cells, in as many lines as they have, bold
    where `bold` (rows, columns) says so, and the picture grows to hold them. `log` colours by ln(1 + value). `high` is
    the value from which on the colour is full, where a few large ones would hide the others. Rows that are `doubted`
    stand back and have a mark; `note` is a line below that says why.
    """

    title: str
    x: str
    y: str
    columns: Sequence[Any]
    rows: Sequence[Any]
    values: Any
    colour: str
    texts: Sequence[Sequence[str]] | None = None
    bold: Any = None
    log: bool = False
    high: float | None = None
    doubted: Sequence[bool] = ()
    note: str = ""

    def page_data(self) -> dict[str, Any]:
        """The heat map as JSON values."""
        return {
            "kind": "heatmap",
            "title": str(self.title),
            "x": str(self.x),
            "y": str(self.y),
            "columns": [str(v) for v in self.columns],
            "rows": [str(v) for v in self.rows],
            "values": [plain_numbers(row) for row in np.asarray(self.values, dtype=float)],
            "colour": str(self.colour),
            "texts": None if self.texts is None else [[str(text) for text in row] for row in self.texts],
            "log": bool(self.log),
            "high": None if self.high is None else float(self.high),
            "doubted": [bool(d) for d in self.doubted],
            "note": str(self.note),
        }


def plain_numbers(values: Any) -> list[float | None]:
    """Numbers to six digits, and None for what is not finite."""
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in np.asarray(values, dtype=float).reshape(-1).tolist()]


def usual_high(values: Any) -> float | None:
    """The 95th percentile of values where a few are far above it: one and a half times; None where they are not."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if not known.size:
        return None
    usual = float(np.percentile(known, 95))
    return usual if usual > 0 and known.max() > 1.5 * usual else None
