"""Layer-transfer matrices: a lens's translator of every layer on the states of every other.

Knows: what was measured, in which units, what of it files hold, which of it a table shows.
Does not know: models, how anything is measured (evaluate.py).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table

from lenscope.display.figures import Figure
from lenscope.display.measure_maps import measure_map
from lenscope.display.numbers import four_digits
from lenscope.display.page import Drawn
from lenscope.display.payload import packed
from lenscope.display.tables import TableColumn, dim, fit_to_width, plain_table
from lenscope.files.digests import FORMAT, Column, unstamped
from lenscope.files.json_values import (
    check_within,
    float_array,
    layer_numbers,
    object_value,
    text_value,
    to_lists,
    whole_number,
)
from lenscope.files.parquet_tables import number_column, reordered, row_order
from lenscope.files.records import Lists, Record, check_measure

# name → unit
TRANSFERRED = {
    "cross_entropy": "nats per token, of the text's next token",
    "kl": "nats per token, KL(model ‖ lens)",
}


@dataclass(frozen=True, eq=False, repr=False)
class Transfer(Record, Drawn):
    """How well each layer's map of a lens reads the states of every other layer. `transfer` makes it.

    Attributes:
        layers: the layers that were compared.
        cross_entropy: in nats per token, (translators, layers tested): of the map of layers[i] on the states of
            layers[j].
        kl: KL(model ‖ lens) in nats, of the same shape (Belrose et al. 2023, Fig. 7).
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

    file_kind, file_mark = "transfer", "evaluation"

    def __repr__(self) -> str:
        return f"Transfer({self.model}: {self.lens}, {len(self.layers)} layers, {self.tokens} tokens)"

    def penalty(self, name: str = "cross_entropy") -> np.ndarray:
        """Give what a measure loses by transfer, (translators, layers tested).

        It is the measure minus what the tested layer's own map has.
        """
        check_measure(name, TRANSFERRED)
        values: np.ndarray = getattr(self, name)
        # NaN where both are infinite
        with np.errstate(invalid="ignore"):
            return values - np.diagonal(values)

    def by_distance(self, distance: int, name: str = "cross_entropy") -> float:
        """The median penalty of translators trained `distance` layers later (negative: earlier) than they are tested.

        Distance counts layers, also where only some of them were measured; NaN where no two are so far apart.
        """
        numbers = np.array(self.layers)
        penalties = self.penalty(name)[numbers[:, None] - numbers == distance]
        return float(np.median(penalties)) if penalties.size else float("nan")

    def table(self, measure: str = "cross_entropy", *, width: int | None = None) -> Table:
        """The penalties for a terminal: a line per translator, a column per layer tested; fits `width` if given."""
        values = self.penalty(measure)
        return fit_to_width(lambda room: self._drawn(measure, values, room), width)

    def figure(self, measure: str = "cross_entropy") -> Figure:
        """The penalties as a figure: trained on a layer (rows), tested on another (columns)."""
        axes = ("tested on layer", "trained on layer")
        values, unit = self.penalty(measure), f"{TRANSFERRED[measure]}, minus the layer's own translator's"
        drawn = measure_map(f"{self.lens}, {self.model}", axes, self.layers, self.layers, values, measure, unit)
        return Figure(f"transfer {measure}", [drawn])

    def page_data(self) -> dict[str, Any]:
        """Give what a page needs: values and penalties (M, translators, layers tested)."""
        values = np.stack([getattr(self, name) for name in TRANSFERRED])
        penalties = np.stack([self.penalty(name) for name in TRANSFERRED])
        head = {**self._head(to_lists), "title": f"{self.lens} of {self.model}, layers exchanged"}
        return packed(head, {"values": values, "penalties": penalties})

    def _drawn(self, measure: str, values: np.ndarray, width: int | None) -> Table:
        step = max(1, -(-len(self.layers) // max(1, ((width or 10**4) - 8) // 7)))
        layers = self.layers[::step]
        caption = (
            f"{measure.replace('_', ' ')} of a layer's translator on another layer's states, minus its own one's; nats"
        )
        caption += f"; {self.tokens:,} tokens" + (f"; only every {step}th layer fits" if step > 1 else "")
        return plain_table(
            [TableColumn("trained", "right"), *(TableColumn(str(layer), "right", 6) for layer in layers)],
            [
                [dim(str(layer)), *map(four_digits, line)]
                for layer, line in zip(layers, values[::step, ::step], strict=True)
            ],
            caption,
        )

    def _document(self, lists: Lists) -> dict[str, Any]:
        return {**self._head(lists), **{name: lists(getattr(self, name)) for name in TRANSFERRED}}

    @classmethod
    def _from_document(cls, data: dict[str, Any]) -> "Transfer":
        n_layers = whole_number(data["n_layers"], "n_layers")
        layers = layer_numbers(data["layers"], n_layers)
        shape = (len(layers), len(layers))
        transfer = Transfer(
            model=text_value(data["model"], "model"),
            n_layers=n_layers,
            lens=text_value(data["lens"], "lens"),
            layers=layers,
            rows=whole_number(data["rows"], "rows", 1),
            tokens=whole_number(data["tokens"], "tokens", 1),
            cross_entropy=float_array(data["cross_entropy"], "cross-entropy", shape, np.float64),
            kl=float_array(data["kl"], "kl", shape, np.float64),
            provenance=object_value(data["provenance"], "provenance"),
        )
        for name in TRANSFERRED:
            check_within(getattr(transfer, name), name.replace("_", " "), 0.0)
        return transfer

    @classmethod
    def _from_columns(cls, head: dict[str, Any], columns: dict[str, Column]) -> "Transfer":
        layers = head["layers"]
        wanted = {"translator": np.repeat(layers, len(layers)), "layer": np.tile(layers, len(layers))}
        columns = reordered(columns, row_order(columns, wanted))
        head = unstamped(head, columns)
        matrices = {name: columns[name].reshape(len(layers), len(layers)) for name in TRANSFERRED}
        return Transfer.from_json({**head, **matrices})

    def _rows(self) -> pa.Table:
        translators, tested = np.meshgrid(self.layers, self.layers, indexing="ij")
        columns: dict[str, Any] = {"translator": translators.reshape(-1), "layer": tested.reshape(-1)}
        columns |= {"model": [self.model] * tested.size, "lens": [self.lens] * tested.size}
        columns |= {name: number_column(getattr(self, name).reshape(-1)) for name in TRANSFERRED}
        return pa.table(columns)

    def _head(self, lists: Lists) -> dict[str, Any]:
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
