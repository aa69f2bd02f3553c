"""Evaluations: how good lenses are on held-out text, layer by layer, with intervals.

Knows: what was measured, in which units, what of it files hold, which of it a table shows.
Does not know: models, how anything is measured (evaluate.py).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table
from rich.text import Text

from lenscope import visible_text as visible
from lenscope.display.figures import Figure
from lenscope.display.numbers import four_digits
from lenscope.display.page import Drawn
from lenscope.display.panels import Panel, Series
from lenscope.display.payload import packed
from lenscope.display.tables import TableColumn, dim, fit_to_width, plain_table, with_aside
from lenscope.files.digests import FORMAT, Column, unstamped
from lenscope.files.json_values import (
    check_within,
    float_array,
    layer_numbers,
    object_value,
    text_value,
    text_values,
    to_lists,
    whole_number,
)
from lenscope.files.parquet_tables import number_column, reordered, row_order
from lenscope.files.records import Lists, Record, check_measure, load_record
from lenscope.lenses.transfer_results import TRANSFERRED, Transfer

# name → unit
MEASURES = {
    "cross_entropy": TRANSFERRED["cross_entropy"],
    "bits_per_byte": "bits per byte of text",
    "kl": TRANSFERRED["kl"],
    "agreement": "share of positions, 0–1, with the model's top token on top",
    "entropy": "nats per token",
    "calibration": "expected calibration error, 0–1",
    "bias": "nats, KL(mean model ‖ mean lens)",
}
# the highest value of what has one; none is below 0
_HIGHEST = {"agreement": 1.0, "calibration": 1.0}
BOUNDS = ("", "_low", "_high")
# A column of the table with the space behind it: a value, and a value with its interval.
VALUE, WITH_INTERVAL = 8, 19
# How a measure heads a column.
HEADINGS = {"cross_entropy": "CE", "bits_per_byte": "bits/B", "kl": "KL", "agreement": "agree", "calibration": "ECE"}


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Record, Drawn):
    """How well lenses predict a model on text, by layer. `evaluate` makes it.

    Each measure is an array (lenses, layers, 3): value, low and high end of the 95 % interval. NaN is what could not be
    measured: bits per byte of text whose bytes are not known, a lens at a layer that it has no weights for, intervals
    of a single unit.

    Attributes:
        lenses: the names of the lenses.
        layers: the layers that were measured.
        values: the arrays by name; `lenscope.lenses.evaluation_results.MEASURES` has their units.
        differences: of each lens from the `baseline`, from the same resamples; empty without a baseline.
        baseline: the name of the logit lens among the lenses, or None.
        own: the model's own values (3,) by measure.
        rows: how many rows of text were read.
        units: how many units were resampled: documents, or rows where these do not name theirs.
        tokens: how many predictions count.
        bytes: the bytes of the tokens that were predicted.
    """

    model: str
    n_layers: int
    lenses: tuple[str, ...]
    layers: tuple[int, ...]
    baseline: str | None
    rows: int
    units: int
    tokens: int
    bytes: int | None
    values: dict[str, np.ndarray]
    differences: dict[str, np.ndarray]
    own: dict[str, np.ndarray]
    provenance: dict[str, Any] = field(default_factory=dict)

    units_of_measures = MEASURES
    file_kind = file_mark = "evaluation"

    def __repr__(self) -> str:
        names = ", ".join(self.lenses)
        return f"Evaluation({self.model}: {names} × {len(self.layers)} layers, {self.tokens} tokens)"

    def measure(self, name: str) -> np.ndarray:
        """Give one measure's values, (lenses, layers)."""
        check_measure(name, MEASURES)
        return self.values[name][..., 0]

    def interval(self, name: str) -> np.ndarray:
        """Give the low and high ends of one measure's 95 % intervals, (lenses, layers, 2)."""
        check_measure(name, MEASURES)
        return self.values[name][..., 1:]

    def table(self, measures: str | Sequence[str] = ("kl", "agreement", "bias"), *, width: int | None = None) -> Table:
        """Show layers × lenses as a table for a terminal: one measure with its intervals, or several.

        The model's own values come last. Bold is what differs from the baseline by more than the 95 % interval of the
        difference. What does not fit `width` columns, intervals first, then the last measures, is left out, and the
        caption says so.
        """
        names = [measures] if isinstance(measures, str) else list(measures)
        for name in names:
            check_measure(name, MEASURES)
        return fit_to_width(lambda room: self._drawn(names, room), width)

    def figure(self, measures: str | Sequence[str] = "kl", *, log: bool = False) -> Figure:
        """Draw each measure over the layers with its 95 % intervals; the dotted line is the model's own value."""
        names = [measures] if isinstance(measures, str) else list(measures)
        for name in names:
            check_measure(name, MEASURES)
        panels = []
        for name in names:
            series = [Series(lens, self.layers, *self.values[name][n].T) for n, lens in enumerate(self.lenses)]
            own = float(self.own[name][0])
            level = own if np.isfinite(own) and (own > 0 or not log) else None
            panels.append(Panel(name.replace("_", " "), "layer", MEASURES[name], series, log=log, level=level))
        return Figure(f"evaluation {' '.join(names)}", panels)

    def page_data(self) -> dict[str, Any]:
        """Give what a page needs: values (M, lenses, L, 3), and where there is a baseline differences of that shape."""
        head = self._head(to_lists)
        parts = {"values": self.values, "differences": self.differences}
        stacked = {part: np.stack([v[name] for name in MEASURES]) for part, v in parts.items() if v}
        return packed({**head, "title": f"Lenses of {self.model}"}, stacked)

    def _drawn(self, names: list[str], width: int | None) -> Table:
        room = (width or 10**4) - 7
        bounds = len(names) == 1 and room >= len(self.lenses) * WITH_INTERVAL
        fits = max(1, room // (len(self.lenses) * VALUE))
        shown, hidden = names[:fits], names[fits:]
        size = (WITH_INTERVAL if bounds else VALUE) - 1
        pairs = [(i, name) for i in range(len(self.lenses)) for name in shown]
        heads = [f"{visible.printable(self.lenses[i])}\n{HEADINGS.get(name, name)}" for i, name in pairs]
        rows = [
            [
                dim(str(layer)),
                *(self._cell(self.values[name][i, n], bounds, self._differs(name, i, n)) for i, name in pairs),
            ]
            for n, layer in enumerate(self.layers)
        ]
        own = [dim("model"), *(self._cell(self.own[name], bounds, False) for _, name in pairs)]
        return plain_table(
            [TableColumn("layer", "right"), *(TableColumn(head, "right", size, folds="heading") for head in heads)],
            [*rows, own],
            self._caption(shown, hidden, bounds or len(names) > 1),
            headings="bottom",
        )

    def _differs(self, name: str, lens: int, layer: int) -> bool:
        if name not in self.differences:
            return False
        _, low, high = self.differences[name][lens, layer]
        return bool(low > 0 or high < 0)

    @staticmethod
    def _cell(value: np.ndarray, bounds: bool, strong: bool) -> Text:
        middle, low, high = (four_digits(v) for v in value)
        return with_aside(middle, f" {low}–{high}" if bounds and np.isfinite(value[1:]).all() else "", strong)

    def _caption(self, shown: Sequence[str], hidden: Sequence[str], whole: bool) -> str:
        text = "; ".join(f"{HEADINGS.get(name, name)}: {MEASURES[name]}" for name in shown)
        text += f"; {self.tokens:,} tokens in {self.rows:,} rows, {self.units:,} units resampled"
        text += (
            f"; bold: differs from {visible.printable(self.baseline)} (95 %)"
            if self.baseline and len(self.lenses) > 1
            else ""
        )
        text += f"; {', '.join(hidden)} do not fit: a wider terminal, or fewer measures" if hidden else ""
        return text + ("" if whole else "; intervals do not fit")

    def _document(self, lists: Lists) -> dict[str, Any]:
        parts = {"values": self.values, "differences": self.differences}
        lists_by_part = {part: {name: lists(v) for name, v in values.items()} for part, values in parts.items()}
        return {**self._head(lists), **lists_by_part}

    @classmethod
    def _from_document(cls, data: dict[str, Any]) -> "Evaluation":
        n_layers = whole_number(data["n_layers"], "n_layers")
        lenses, layers = text_values(data["lenses"], "lenses"), layer_numbers(data["layers"], n_layers)
        shape = (len(lenses), len(layers), 3)
        evaluation = Evaluation(
            model=text_value(data["model"], "model"),
            n_layers=n_layers,
            lenses=lenses,
            layers=layers,
            baseline=None if data["baseline"] is None else text_value(data["baseline"], "baseline"),
            rows=whole_number(data["rows"], "rows", 1),
            units=whole_number(data["units"], "units", 1),
            tokens=whole_number(data["tokens"], "tokens", 1),
            bytes=None if data["bytes"] is None else whole_number(data["bytes"], "bytes"),
            values={k: _float64_array(data["values"][k], k, shape) for k in MEASURES},
            differences={k: _float64_array(v, k, shape) for k, v in data["differences"].items()},
            own={k: _float64_array(data["own"][k], k, (3,)) for k in MEASURES},
            provenance=object_value(data["provenance"], "provenance"),
        )
        evaluation._check()
        return evaluation

    @classmethod
    def _from_columns(cls, head: dict[str, Any], columns: dict[str, Column]) -> "Evaluation":
        lenses, layers = head["lenses"], head["layers"]
        numbers = {name: n for n, name in enumerate(lenses)}
        named = {**columns, "lens": np.array([numbers[name] for name in columns["lens"]])}
        wanted = {"lens": np.repeat(np.arange(len(lenses)), len(layers)), "layer": np.tile(layers, len(lenses))}
        columns = reordered(columns, row_order(named, wanted))
        head = unstamped(head, columns)
        shape = (len(lenses), len(layers), 3)
        parts = {
            part: {
                name: np.stack([columns[f"{prefix}{name}{end}"] for end in BOUNDS], -1).reshape(shape)
                for name in MEASURES
                if f"{prefix}{name}" in columns
            }
            for part, prefix in (("values", ""), ("differences", "difference_"))
        }
        return Evaluation.from_json({**head, **parts})

    def _check(self) -> None:
        """ValueError for values that `lenscope.evaluate` never gives."""
        if len(set(self.lenses)) < len(self.lenses) or not self.lenses:
            raise ValueError("lenses: have names twice, or there are none")
        if self.baseline is not None and self.baseline not in self.lenses:
            raise ValueError(f"baseline {self.baseline[:40]!r}: is none of the lenses")
        if not {*self.differences} <= {*MEASURES} or bool(self.differences) != (self.baseline is not None):
            raise ValueError("differences: are not those from the baseline")
        for by_measure in (self.values, self.own):
            for name, values in by_measure.items():
                check_within(values, name.replace("_", " "), 0.0, _HIGHEST.get(name, np.inf))
        for by_measure in (self.values, self.own, self.differences):
            for name, values in by_measure.items():
                with np.errstate(invalid="ignore"):
                    check_within(values[..., 2] - values[..., 1], f"interval of {name.replace('_', ' ')}", 0.0)

    def _rows(self) -> pa.Table:
        lenses, layers = np.meshgrid(self.lenses, self.layers, indexing="ij")
        columns: dict[str, Any] = {"lens": lenses.reshape(-1).tolist(), "layer": layers.reshape(-1)}
        columns["model"] = [self.model] * layers.size
        for prefix, by_measure in (("", self.values), ("difference_", self.differences)):
            for name, v in by_measure.items():
                ends = enumerate(BOUNDS)
                columns |= {f"{prefix}{name}{end}": number_column(v[..., n].reshape(-1)) for n, end in ends}
        return pa.table(columns)

    def _head(self, lists: Lists) -> dict[str, Any]:
        return {
            "kind": "evaluation",
            "version": FORMAT,
            "model": self.model,
            "n_layers": self.n_layers,
            "lenses": list(self.lenses),
            "layers": list(self.layers),
            "baseline": self.baseline,
            "rows": self.rows,
            "units": self.units,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "measures": MEASURES,
            "own": {name: lists(v) for name, v in self.own.items()},
            "provenance": self.provenance,
        }


def load_evaluation(path: str | os.PathLike[str]) -> Evaluation | Transfer:
    """Load what `Evaluation.save` or `Transfer.save` wrote, equal to what was saved.

    Raises LenscopeError if the file holds neither, or a damaged one.
    """
    record: Evaluation | Transfer = load_record(path, (Evaluation, Transfer))
    return record


def _float64_array(values: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    return float_array(values, name, shape, np.float64)
