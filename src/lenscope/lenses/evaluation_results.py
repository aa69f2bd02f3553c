"""Evaluations: how good lenses are on held-out text, layer by layer, with intervals; and layer-transfer matrices.

Knows: what was measured, in which units, the file formats, how it looks as a table in a terminal.
Does not know: models, how anything is measured (evaluating.py).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from rich.style import Style
from rich.table import Table
from rich.text import Text

from lenscope import contents
from lenscope import visible_text as visible
from lenscope.contents import exactly, listed
from lenscope.display import heat_table as tables
from lenscope.files import records as resultfiles
from lenscope.files.untrusted import reading
from lenscope.lenses.trajectory import FORMAT, check_measure

# name → unit
MEASURES = {
    "cross_entropy": "nats per token, of the text's next token",
    "bits_per_byte": "bits per byte of text",
    "kl": "nats per token, KL(model ‖ lens)",
    "agreement": "share of positions, 0–1, with the model's top token on top",
    "entropy": "nats per token",
    "calibration": "expected calibration error, 0–1",
    "bias": "nats, KL(mean model ‖ mean lens)",
}
TRANSFERRED = {"cross_entropy": MEASURES["cross_entropy"], "kl": MEASURES["kl"]}
# the highest value of what has one; none is below 0
_HIGHEST = {"agreement": 1.0, "calibration": 1.0}
BOUNDS = ("", "_low", "_high")
# A column of the table with the space behind it: a value, and a value with its interval.
VALUE, WITH_INTERVAL = 8, 19
# How a measure heads a column.
SHORT = {"cross_entropy": "CE", "bits_per_byte": "bits/B", "kl": "KL", "agreement": "agree", "calibration": "ECE"}


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(contents.Compared):
    """Lenses measured on the same text: per measure (lenses, layers, 3), value, low and high end of the 95 % interval.

    `differences` are those of each lens from the `baseline`, the logit lens (None, and empty, without one), from the
    same resamples; `own` (3,) are the model's own values. Units are in `MEASURES`; NaN is what could not be measured:
    bits per byte of text whose bytes are not known, a lens at a layer it has no weights for, intervals of one unit.
    `rows`, `units`, `tokens` and `bytes` count the text, the units that are resampled (rows, or
    documents where rows name theirs), the predictions, and the bytes of the tokens predicted.
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

    def __repr__(self) -> str:
        names = ", ".join(self.lenses)
        return f"Evaluation({self.model}: {names} × {len(self.layers)} layers, {self.tokens} tokens)"

    def measure(self, name: str) -> np.ndarray:
        """One measure's values, (lenses, layers)."""
        check_measure(name, MEASURES)
        return self.values[name][..., 0]

    def interval(self, name: str) -> np.ndarray:
        """The low and high ends of one measure's 95 % intervals, (lenses, layers, 2)."""
        check_measure(name, MEASURES)
        return self.values[name][..., 1:]

    def table(self, measures: str | Sequence[str] = ("kl", "agreement", "bias"), *, width: int | None = None) -> Table:
        """Layers × lenses for a terminal, the model's own values last: one measure with its intervals, or several.

        Bold is what differs from the baseline by more than the 95 % interval of the difference. What does not fit
        `width` columns, intervals first, then the last measures, is left out, and the caption says so.
        """
        names = [measures] if isinstance(measures, str) else list(measures)
        for name in names:
            check_measure(name, MEASURES)
        return tables.fitted(lambda room: self._table(names, room), width)

    def _table(self, names: list[str], width: int | None) -> Table:
        room = (width or 10**4) - 7
        bounds = len(names) == 1 and room >= len(self.lenses) * WITH_INTERVAL
        fits = max(1, room // (len(self.lenses) * VALUE))
        shown, hidden = names[:fits], names[fits:]
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        table.add_column("layer", justify="right", no_wrap=True, vertical="bottom")
        size = (WITH_INTERVAL if bounds else VALUE) - 1
        for lens in self.lenses:
            for name in shown:
                heading = Text(f"{visible.plain(lens)}\n{SHORT.get(name, name)}", overflow="fold")
                table.add_column(heading, justify="right", width=size, vertical="bottom")
        for n, layer in enumerate(self.layers):
            cells = [
                self._cell(self.values[name][i, n], bounds, self._differs(name, i, n))
                for i in range(len(self.lenses))
                for name in shown
            ]
            table.add_row(Text(str(layer), style="dim"), *cells)
        own = [self._cell(self.own[name], bounds, False) for _ in self.lenses for name in shown]
        table.add_row(Text("model", style="dim"), *own)
        table.caption = Text(self._caption(shown, hidden, bounds or len(names) > 1), style="dim", justify="left")
        return table

    def _differs(self, name: str, lens: int, layer: int) -> bool:
        if name not in self.differences:
            return False
        _, low, high = self.differences[name][lens, layer]
        return bool(low > 0 or high < 0)

    @staticmethod
    def _cell(value: np.ndarray, bounds: bool, strong: bool) -> Text:
        middle, low, high = (_figure(v) for v in value)
        text = Text(middle, style=Style(bold=strong))
        if bounds and np.isfinite(value[1:]).all():
            text.append(f" {low}–{high}", style="dim")
        return text

    def _caption(self, shown: Sequence[str], hidden: Sequence[str], whole: bool) -> str:
        text = "; ".join(f"{SHORT.get(name, name)}: {MEASURES[name]}" for name in shown)
        text += f"; {self.tokens:,} tokens in {self.rows:,} rows, {self.units:,} units resampled"
        text += (
            f"; bold: differs from {visible.plain(self.baseline)} (95 %)"
            if self.baseline and len(self.lenses) > 1
            else ""
        )
        text += f"; {', '.join(hidden)} do not fit: a wider terminal, or fewer measures" if hidden else ""
        return text + ("" if whole else "; intervals do not fit")

    def to_json(self) -> dict[str, Any]:
        """The evaluation as JSON values; NaN as None."""
        return resultfiles.sealed(self._document(listed))

    def _document(self, values: Any) -> dict[str, Any]:
        parts = {"values": self.values, "differences": self.differences}
        return {**self._head(values), **{p: {k: values(v) for k, v in found.items()} for p, found in parts.items()}}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Evaluation":
        """The inverse of `to_json`. Raises LenscopeError for values that no evaluation has."""
        with reading("data", f"is no evaluation of format {FORMAT}"):
            if data["kind"] != "evaluation":
                raise ValueError(f"kind {str(data['kind'])[:40]}")
            n_layers = contents.whole(data["n_layers"], "n_layers")
            lenses, layers = contents.texts(data["lenses"], "lenses"), contents.layers(data["layers"], n_layers)
            shape = (len(lenses), len(layers), 3)
            made = Evaluation(
                model=contents.text(data["model"], "model"),
                n_layers=n_layers,
                lenses=lenses,
                layers=layers,
                baseline=None if data["baseline"] is None else contents.text(data["baseline"], "baseline"),
                rows=contents.whole(data["rows"], "rows", 1),
                units=contents.whole(data["units"], "units", 1),
                tokens=contents.whole(data["tokens"], "tokens", 1),
                bytes=None if data["bytes"] is None else contents.whole(data["bytes"], "bytes"),
                values={k: _floats(data["values"][k], k, shape) for k in MEASURES},
                differences={k: _floats(v, k, shape) for k, v in data["differences"].items()},
                own={k: _floats(data["own"][k], k, (3,)) for k in MEASURES},
                provenance=contents.mapping(data["provenance"], "provenance"),
            )
            made._check()
            return made

    @staticmethod
    def from_columns(head: dict[str, Any], columns: dict[str, Any]) -> "Evaluation":
        """An evaluation of the head and the columns of a Parquet file; ValueError or LenscopeError for what is none."""
        lenses, layers = head["lenses"], head["layers"]
        numbers = {name: n for n, name in enumerate(lenses)}
        named = {**columns, "lens": np.array([numbers[name] for name in columns["lens"]])}
        wanted = {"lens": np.repeat(np.arange(len(lenses)), len(layers)), "layer": np.tile(layers, len(lenses))}
        columns = resultfiles.arranged(columns, resultfiles.matched(named, wanted))
        head = resultfiles.checked(head, columns)
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
        for found in (self.values, self.own):
            for name, values in found.items():
                contents.within(values, name.replace("_", " "), 0.0, _HIGHEST.get(name, np.inf))
        for found in (self.values, self.own, self.differences):
            for name, values in found.items():
                with np.errstate(invalid="ignore"):
                    contents.within(values[..., 2] - values[..., 1], f"interval of {name.replace('_', ' ')}", 0.0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a .parquet (one row per lens and layer) or .json file; complete or not at all."""
        resultfiles.save(path, self._document(exactly), "evaluation", self._head(exactly), self._rows())

    def to_dataframe(self) -> Any:
        """A pandas.DataFrame with a row per lens and layer, as the Parquet file has them; needs pandas."""
        return resultfiles.data_frame(self._rows())

    def _rows(self) -> pa.Table:
        lenses, layers = np.meshgrid(self.lenses, self.layers, indexing="ij")
        columns: dict[str, Any] = {"lens": lenses.reshape(-1).tolist(), "layer": layers.reshape(-1)}
        columns["model"] = [self.model] * layers.size
        for prefix, found in (("", self.values), ("difference_", self.differences)):
            for name, v in found.items():
                ends = enumerate(BOUNDS)
                columns |= {f"{prefix}{name}{end}": resultfiles.numeric(v[..., n].reshape(-1)) for n, end in ends}
        return pa.table(columns)

    def _head(self, values: Any) -> dict[str, Any]:
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
            "own": {name: values(v) for name, v in self.own.items()},
            "provenance": self.provenance,
        }


@dataclass(frozen=True, eq=False, repr=False)
class Transfer(contents.Compared):
    """A lens's translators on other layers' states: (translators, layers tested), both being `layers`.

    `cross_entropy` and `kl` (KL(model ‖ lens)) in nats per token of the translator of layers[i] on the states of
    layers[j] (Belrose et al. 2023, Fig. 7).
    """

    model: str
    n_layers: int
    lens: str
    layers: tuple[int, ...]
    rows: int
    tokens: int
    cross_entropy: np.ndarray
    kl: np.ndarray
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Transfer({self.model}: {self.lens}, {len(self.layers)} layers, {self.tokens} tokens)"

    def penalty(self, name: str = "cross_entropy") -> np.ndarray:
        """What a measure loses by transfer: minus the tested layer's own translator's, (translators, layers tested)."""
        check_measure(name, TRANSFERRED)
        values: np.ndarray = getattr(self, name)
        return values - np.diagonal(values)

    def by_distance(self, distance: int, name: str = "cross_entropy") -> float:
        """The median penalty of translators trained `distance` layers later (negative: earlier) than they are tested.

        Distance counts layers, also where only some of them were measured; NaN where no two are so far apart.
        """
        numbers = np.array(self.layers)
        found = self.penalty(name)[numbers[:, None] - numbers == distance]
        return float(np.median(found)) if found.size else float("nan")

    def table(self, measure: str = "cross_entropy", *, width: int | None = None) -> Table:
        """The penalties for a terminal: a line per translator, a column per layer tested; fits `width` if given."""
        values = self.penalty(measure)
        return tables.fitted(lambda room: self._table(measure, values, room), width)

    def _table(self, measure: str, values: np.ndarray, width: int | None) -> Table:
        step = max(1, -(-len(self.layers) // max(1, ((width or 10**4) - 8) // 7)))
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        table.add_column("trained", justify="right", no_wrap=True)
        for layer in self.layers[::step]:
            table.add_column(str(layer), justify="right", no_wrap=True, width=6)
        for layer, line in zip(self.layers[::step], values[::step, ::step], strict=True):
            table.add_row(Text(str(layer), style="dim"), *(Text(_figure(v)) for v in line))
        text = (
            f"{measure.replace('_', ' ')} of a layer's translator on another layer's states, minus its own one's; nats"
        )
        text += f"; {self.tokens:,} tokens" + (f"; only every {step}th layer fits" if step > 1 else "")
        table.caption = Text(text, style="dim", justify="left")
        return table

    def to_json(self) -> dict[str, Any]:
        """The matrices as JSON values; NaN as None."""
        return resultfiles.sealed(self._document(listed))

    def _document(self, values: Any) -> dict[str, Any]:
        return {**self._head(), **{name: values(getattr(self, name)) for name in TRANSFERRED}}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Transfer":
        """The inverse of `to_json`. Raises LenscopeError for values that no transfer matrix has."""
        with reading("data", f"is no transfer matrix of format {FORMAT}"):
            if data["kind"] != "transfer":
                raise ValueError(f"kind {str(data['kind'])[:40]}")
            n_layers = contents.whole(data["n_layers"], "n_layers")
            layers = contents.layers(data["layers"], n_layers)
            made = Transfer(
                model=contents.text(data["model"], "model"),
                n_layers=n_layers,
                lens=contents.text(data["lens"], "lens"),
                layers=layers,
                rows=contents.whole(data["rows"], "rows", 1),
                tokens=contents.whole(data["tokens"], "tokens", 1),
                cross_entropy=_floats(data["cross_entropy"], "cross-entropy", (len(layers), len(layers))),
                kl=_floats(data["kl"], "kl", (len(layers), len(layers))),
                provenance=contents.mapping(data["provenance"], "provenance"),
            )
            for name in TRANSFERRED:
                contents.within(getattr(made, name), name.replace("_", " "), 0.0)
            return made

    @staticmethod
    def from_columns(head: dict[str, Any], columns: dict[str, Any]) -> "Transfer":
        """A matrix of the head and the columns of a Parquet file; ValueError or LenscopeError for what is none."""
        layers = head["layers"]
        wanted = {"translator": np.repeat(layers, len(layers)), "layer": np.tile(layers, len(layers))}
        columns = resultfiles.arranged(columns, resultfiles.matched(columns, wanted))
        head = resultfiles.checked(head, columns)
        found = {name: columns[name].reshape(len(layers), len(layers)) for name in TRANSFERRED}
        return Transfer.from_json({**head, **found})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a .parquet (one row per translator and layer tested) or .json file; complete or not at all."""
        resultfiles.save(path, self._document(exactly), "evaluation", self._head(), self._rows())

    def to_dataframe(self) -> Any:
        """A pandas.DataFrame with a row per translator and layer tested, as the Parquet file has them; needs pandas."""
        return resultfiles.data_frame(self._rows())

    def _rows(self) -> pa.Table:
        translators, tested = np.meshgrid(self.layers, self.layers, indexing="ij")
        columns: dict[str, Any] = {"translator": translators.reshape(-1), "layer": tested.reshape(-1)}
        columns |= {"model": [self.model] * tested.size, "lens": [self.lens] * tested.size}
        columns |= {name: resultfiles.numeric(getattr(self, name).reshape(-1)) for name in TRANSFERRED}
        return pa.table(columns)

    def _head(self) -> dict[str, Any]:
        return {
            "kind": "transfer",
            "version": FORMAT,
            "model": self.model,
            "n_layers": self.n_layers,
            "lens": self.lens,
            "layers": list(self.layers),
            "rows": self.rows,
            "tokens": self.tokens,
            "measures": TRANSFERRED,
            "provenance": self.provenance,
        }


def load_evaluation(path: str | os.PathLike[str]) -> Evaluation | Transfer:
    """Read what `Evaluation.save` or `Transfer.save` wrote, equal to what was saved.

    Raises LenscopeError if the file holds neither, or a damaged one.
    """
    data, columns = resultfiles.load(path, ("evaluation", "transfer"))
    with resultfiles.opening(path, "is no evaluation that lenscope saved"):
        made: Any = Transfer if data["kind"] == "transfer" else Evaluation
        return made.from_json(data) if columns is None else made.from_columns(data, columns)


def _floats(values: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    return contents.float_array(values, name, shape, np.float64)


def _figure(value: float) -> str:
    """A value in at most five characters, with a sign six."""
    if not np.isfinite(value):
        return "–" if np.isnan(value) else "∞"
    size = abs(value)
    return f"{value:.3f}" if size < 9.9995 else f"{value:.2f}" if size < 99.995 else f"{value:.0f}"
