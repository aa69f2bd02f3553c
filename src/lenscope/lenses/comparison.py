"""Comparisons: how far two prompts' predictions are apart at every layer, or two lenses' of one prompt.

Knows: which distances there are, their units, what of them files hold, which of it a table shows.
Does not know: models, how distances are computed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table

from lenscope import visible_text as visible
from lenscope.display.figures import Figure
from lenscope.display.heat_table import (
    colour_caption,
    fit_columns,
    heat_table,
    shades_of,
    token_and_figure,
    with_doubts,
)
from lenscope.display.measure_maps import measure_map, token_names
from lenscope.display.page import Drawn
from lenscope.display.payload import packed
from lenscope.display.tables import TableColumn, fit_to_width
from lenscope.files.digests import FORMAT
from lenscope.files.json_values import check_within, float_array, whole_numbers
from lenscope.files.parquet_tables import number_column, repeated_text
from lenscope.files.records import Lists, Record, check_measure
from lenscope.lenses.lens_reports import doubts_in_words
from lenscope.lenses.trajectory import POINTS, Trajectory

DISTANCES = {
    "js": "nats, Jensen–Shannon",
    "total_variation": "0–1, half the sum of differences",
    "kl": "nats, KL(first ‖ second)",
    "kl_back": "nats, KL(second ‖ first)",
}


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Record, Drawn):
    """How far two predictions are apart, layer by layer. `Lens.compare` makes it.

    Attributes:
        layers: the layers that were read.
        positions: pairs: a position of the first prompt with one of the second.
        js: Jensen–Shannon divergence in nats, (L, P).
        total_variation: half the sum of absolute differences, 0–1, (L, P).
        kl: KL(first ‖ second) in nats, (L, P).
        kl_back: KL(second ‖ first) in nats, (L, P).
        first: the trajectory of the first prompt.
        second: the trajectory of the second.
    """

    texts: tuple[str, str]
    lenses: tuple[str, str]
    models: tuple[str, str]
    layers: tuple[int, ...]
    positions: tuple[tuple[int, int], ...]
    js: np.ndarray
    total_variation: np.ndarray
    kl: np.ndarray
    kl_back: np.ndarray
    first: Trajectory
    second: Trajectory

    units = DISTANCES
    file_kind = "comparison"

    def __repr__(self) -> str:
        texts = [t if len(t) <= 30 else t[:27] + "…" for t in self.texts]
        size = f"{len(self.layers)} layers × {len(self.positions)} positions"
        return f"Comparison({texts[0]!r} and {texts[1]!r}: {size}, {self.first.read_by} and {self.second.read_by})"

    @property
    def same_top(self) -> np.ndarray:
        """Whether both predict the same token first, (L, P)."""
        return self.first.top_ids[..., 0] == self.second.top_ids[..., 0]

    @property
    def doubts(self) -> dict[int, str]:
        """Those of `layers` at which one of the lenses is not to be trusted, and why: {layer: words}."""
        sides = {side.lens: side.doubts for side in (self.second, self.first)}
        return {layer: doubts[layer] for doubts in sides.values() for layer in sorted(doubts)}

    def _document(self, lists: Lists) -> dict[str, Any]:
        numbers = {name: lists(getattr(self, name)) for name in DISTANCES}
        return {
            "kind": "comparison",
            "version": FORMAT,
            "layers": list(self.layers),
            "positions": [list(p) for p in self.positions],
            "measures": {**numbers, "same_top": self.same_top.tolist()},
            "first": self.first._document(lists),
            "second": self.second._document(lists),
        }

    @classmethod
    def _from_document(cls, data: dict[str, Any]) -> "Comparison":
        first, second = (Trajectory.from_json(data[side]) for side in ("first", "second"))
        shape = first.entropy.shape
        comparison = Comparison(
            texts=(first.text, second.text),
            lenses=(first.lens, second.lens),
            models=(first.model, second.model),
            layers=whole_numbers(data["layers"], "layers"),
            positions=tuple((a, b) for a, b in data["positions"]),
            first=first,
            second=second,
            **{name: float_array(data["measures"][name], name, shape) for name in DISTANCES},
        )
        pairs = tuple(zip(first.positions, second.positions, strict=True))
        if comparison.layers != first.layers or comparison.layers != second.layers or comparison.positions != pairs:
            raise ValueError("its layers or positions are not those of its trajectories")
        if first.points != second.points:
            raise ValueError("points: are not the same of both trajectories")
        if data["measures"]["same_top"] != comparison.same_top.tolist():
            raise ValueError("same top: is not what its trajectories say")
        for name, high in (("js", np.log(2)), ("total_variation", 1.0), ("kl", np.inf), ("kl_back", np.inf)):
            check_within(getattr(comparison, name), name.replace("_", " "), 0.0, high)
        return comparison

    def _rows(self) -> pa.Table:
        layers, pairs = len(self.layers), len(self.positions)
        columns: dict[str, Any] = {"layer": np.repeat(self.layers, pairs)}
        for n, side in enumerate((self.first, self.second)):
            end = ("first", "second")[n]
            columns[f"prompt_{end}"] = repeated_text(side.text, layers * pairs)
            columns[f"model_{end}"] = repeated_text(side.model, layers * pairs)
            columns[f"lens_{end}"] = repeated_text(side.lens, layers * pairs)
            columns[f"position_{end}"] = np.tile([p[n] for p in self.positions], layers)
            columns[f"token_{end}"] = [side.vocabulary[side.ids[p[n]]] for p in self.positions] * layers
            columns[f"top_token_{end}"] = [side.vocabulary.get(i, "") for i in side.top_ids[..., 0].flat]
        columns |= {name: number_column(getattr(self, name).reshape(-1)) for name in DISTANCES}
        return pa.table({**columns, "same_top": self.same_top.reshape(-1)})

    def page_data(self) -> dict[str, Any]:
        """Give what a page draws of it: both trajectories' payloads, and the distances (L, P) in a compressed block."""
        texts = dict.fromkeys(self.texts)
        return packed(
            {
                "kind": "comparison",
                "title": " / ".join(texts),
                "first": self.first.page_data(),
                "second": self.second.page_data(),
                "layers": list(self.layers),
                "positions": [list(pair) for pair in self.positions],
                "measures": dict(DISTANCES),
            },
            {name: self.measure(name) for name in DISTANCES},
        )

    def measure(self, name: str) -> np.ndarray:
        """Give one of the distances by name, (L, P)."""
        check_measure(name, DISTANCES)
        return getattr(self, name)

    def table(self, measure: str = "js", *, width: int | None = None) -> Table:
        """Show both top tokens as a table for a terminal, layers × paired positions, coloured by a distance."""
        return fit_to_width(lambda room: self._drawn(measure, room), width)

    def _drawn(self, measure: str, width: int | None) -> Table:
        """Layers (last on top) × paired positions, each cell the two top tokens, coloured by how far apart they are."""
        values = self.measure(measure)
        doubts = self.doubts
        shown, size = fit_columns(len(self.positions), len(str(self.first.n_layers)) + bool(doubts), width)
        sides = (self.first, self.second)
        heads = [[visible.printable_token(t.vocabulary[t.ids[t.positions[n]]], size) for t in sides] for n in shown]
        hidden, note = len(self.positions) - len(shown), "above: first, below: second"
        within = POINTS[self.first.points]
        note = f"{within} of each block; {note}" if within else note
        return heat_table(
            [TableColumn("\n".join(tokens), width=size) for tokens in heads],
            [str(layer) for layer in self.layers],
            [[self._cell(row, n, measure, size) for n in shown] for row in range(len(self.layers))],
            shades_of(values, measure)[:, shown.start : shown.stop],
            with_doubts(colour_caption(measure, values, hidden, self.units[measure], note), doubts_in_words(doubts)),
            corner="layer" if max(self.layers) > 99 else "",
            doubted=[layer in doubts for layer in self.layers],
        )

    def figure(self, measure: str = "js") -> Figure:
        """Draw both top tokens, layers × paired positions, coloured by a distance."""
        values, sides = self.measure(measure), (self.first, self.second)
        heads = [token_names([t.vocabulary[t.ids[p]] for p in t.positions]) for t in sides]
        tops = [[token_names([t.vocabulary.get(i, "") for i in row]) for row in t.top_ids[..., 0]] for t in sides]
        names = [a if a == b else f"{a} / {b}" for a, b in zip(*heads, strict=True)]
        texts = [["\n".join(pair) for pair in zip(*rows, strict=True)] for rows in zip(*tops, strict=True)]
        title = " / ".join(dict.fromkeys(side.read_by for side in sides))
        axes = ("token", "layer")
        doubted, why, unit = (
            [layer in self.doubts for layer in self.layers],
            doubts_in_words(self.doubts),
            self.units[measure],
        )
        drawn = measure_map(title, axes, names, self.layers, values, measure, unit, texts, None, doubted, why)
        return Figure(f"comparison {measure}", [drawn])

    def _cell(self, row: int, column: int, measure: str, size: int) -> str:
        first, second = (t.vocabulary[int(t.top_ids[row, column, 0])] for t in (self.first, self.second))
        value = float(self.measure(measure)[row, column])
        return f"{token_and_figure(first, value, measure, size)}\n{visible.printable_token(second, size)}"
