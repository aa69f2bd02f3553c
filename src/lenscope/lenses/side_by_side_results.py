"""Trajectories of one prompt through several lenses: beside each other, with where they say the same.

Knows: what belongs together, how far lenses are apart, what of it files hold, what a table shows. Does not know:
models, how states are read or distances are computed (side_by_side.py).
"""

import json
from dataclasses import dataclass
from itertools import combinations
from math import ceil
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table
from rich.text import Text

from lenscope.display.figures import Figure
from lenscope.display.heat_table import DOUBT, fit_columns, shades_of
from lenscope.display.page import Drawn
from lenscope.display.payload import packed
from lenscope.display.tables import TableColumn, dim, fit_to_width, plain_table, titled_tables
from lenscope.files.digests import FORMAT, Column
from lenscope.files.json_values import check_within, float_array, whole_number
from lenscope.files.parquet_tables import number_column
from lenscope.files.records import Lists, Record
from lenscope.lenses.lens_reports import doubts_in_words
from lenscope.lenses.trajectory import MEASURES, Trajectory, file_rows
from lenscope.lenses.trajectory_rows import documents_of_rows
from lenscope.visible_text import printable

# the most layers that the table of agreement lists in a terminal
LINES = 12


@dataclass(frozen=True, eq=False, repr=False)
class SideBySide(Record, Drawn):
    """Trajectories of one prompt through n lenses, and how far these are apart. `read_side_by_side` makes it.

    Attributes:
        trajectories: of each lens, all of the same prompt, layers and positions.
        kl: KL(lens i ‖ lens j) in nats at every layer and position, (n, n, L, P).
    """

    trajectories: tuple[Trajectory, ...]
    kl: np.ndarray

    units = MEASURES
    file_kind, file_mark, in_lists = "side by side", "side_by_side", True

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else self.text[:57] + "…"
        size = f"{len(self.layers)} layers × {len(self.positions)} positions"
        return f"SideBySide({text!r}: {size}, {', '.join(self.lenses)})"

    @property
    def text(self) -> str:
        """The prompt."""
        return self.trajectories[0].text

    @property
    def model(self) -> str:
        """The name of the model that all lenses read."""
        return self.trajectories[0].model

    @property
    def lenses(self) -> tuple[str, ...]:
        """The names of the lenses, in the order in which they were given."""
        return tuple(t.lens for t in self.trajectories)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that were read through every lens."""
        return self.trajectories[0].layers

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions that were read."""
        return self.trajectories[0].positions

    @property
    def same_top(self) -> np.ndarray:
        """Whether two lenses have the same most probable token, at every layer and position, (n, n, L, P)."""
        top = np.stack([t.top_ids[..., 0] for t in self.trajectories])
        return top[:, None] == top[None]

    @property
    def agreement(self) -> np.ndarray:
        """The share of positions at which two lenses have the same most probable token, 0–1, by layer, (n, n, L)."""
        return self.same_top.mean(-1)

    @property
    def doubts(self) -> dict[str, dict[int, str]]:
        """Where each lens is not to be trusted, by its report, and why: {lens: {layer: words}}."""
        return {t.lens: t.doubts for t in self.trajectories}

    def table(self, measure: str = "max_probability", *, top_k: int = 1, width: int | None = None) -> Table:
        """Show the tables of all lenses, with the same columns, layers and colours.

        They stand beside each other where all columns of all of them fit, else one above the other. Layers at which a
        lens is not to be trusted are grey there, with a mark; a line below says why.
        """
        return fit_to_width(lambda room: self._drawn(measure, top_k, room), width)

    def agreement_table(self, *, width: int | None = None) -> Table:
        """Show by layer how often each two lenses have the same top token, and their KL, a mean over positions.

        Of many layers every few are listed, of many lenses the pairs that fit, those with the first lens first.
        """
        return fit_to_width(self._agreement_drawn, width)

    def _agreement_drawn(self, width: int | None) -> Table:
        pairs = list(combinations(range(len(self.trajectories)), 2))
        # the labels, and two columns for each pair
        fits = len(pairs) if width is None else max(1, (width - 5) // 20)
        columns = [TableColumn("layer", "right")]
        for i, j in pairs[:fits]:
            columns += [TableColumn(f"{i + 1} = {j + 1}", "right"), TableColumn(f"KL({i + 1} ‖ {j + 1})", "right")]
        agreement, kl = self.agreement, self.kl.mean(-1)
        step = ceil(len(self.layers) / LINES)
        doubted = {layer for doubts in self.doubts.values() for layer in doubts}
        rows: list[list[str | Text]] = []
        for n in range(len(self.layers))[::-step]:
            cells = [text for i, j in pairs[:fits] for text in (f"{agreement[i, j, n]:.0%}", f"{kl[i, j, n]:.3g}")]
            rows.append([dim(f"{DOUBT if self.layers[n] in doubted else ''}{self.layers[n]}"), *cells])
        positions = f"{len(self.positions)} positions" if len(self.positions) > 1 else "one position"
        caption = f"1 = 2: share of {positions} at which both have the same top token; KL: nats, mean over them"
        caption += f"; one layer in {step} is shown" if step > 1 else ""
        caption += f"; {len(pairs) - fits} more pairs do not fit" if fits < len(pairs) else ""
        return plain_table(columns, rows, caption, gap=2)

    def figure(self, measure: str = "max_probability") -> Figure:
        """Draw the top tokens of every lens, layers × positions, coloured by a measure on one scale."""
        panels = [panel for t in self.trajectories for panel in t.figure(measure).panels]
        return Figure(f"side by side {measure}", panels)

    def _drawn(self, measure: str, top_k: int, width: int | None) -> Table:
        sides, positions = self.trajectories, len(self.positions)
        values = np.concatenate([t.measure(measure) for t in sides], 1)
        shades = np.split(shades_of(values, measure), len(sides), 1)
        digits = len(str(sides[0].n_layers)) + any(map(bool, self.doubts.values()))
        room = None if width is None else (width - 2 * (len(sides) - 1)) // len(sides)
        shown, size = fit_columns(positions, digits, room)
        beside = len(shown) == positions
        if not beside:
            shown, size = fit_columns(positions, digits, width)
        tables = [t.heat(measure, top_k, shown, size, s) for t, s in zip(sides, shades, strict=True)]
        titles = [printable(f"{n + 1} {t.read_by}") for n, t in enumerate(sides)]
        lines = [sides[0].colours(measure, values, len(shown))]
        for title, t in zip(titles, sides, strict=True):
            if t.doubts:
                lines.append(f"{DOUBT} and grey: {title} is {printable(doubts_in_words(t.doubts))}")
        return titled_tables(titles, tables, beside, "\n".join(lines))

    def _document(self, lists: Lists) -> dict[str, Any]:
        return {
            "kind": self.file_kind,
            "version": FORMAT,
            "lenses": list(self.lenses),
            "kl": lists(self.kl),
            "same_top": self.agreement.tolist(),
            "trajectories": [t._document(lists) for t in self.trajectories],
        }

    @classmethod
    def _from_document(cls, data: dict[str, Any]) -> "SideBySide":
        sides = tuple(Trajectory.from_json(side) for side in data["trajectories"])
        result = SideBySide(sides, float_array(data["kl"], "kl", (len(sides), len(sides), *sides[0].entropy.shape)))
        result._check()
        if data["lenses"] != list(result.lenses) or data["same_top"] != result.agreement.tolist():
            raise ValueError("lenses or same top: are not those of its trajectories")
        return result

    def _check(self) -> None:
        """ValueError for values that `read_side_by_side` never gives."""
        sides, first = self.trajectories, self.trajectories[0]
        if len(sides) < 2 or len({*self.lenses}) < len(sides):
            raise ValueError("trajectories: are less than two, or two of them have one lens")
        for name in ("text", "ids", "model", "n_layers", "layers", "positions", "target", "points"):
            if any(getattr(side, name) != getattr(first, name) for side in sides):
                raise ValueError(f"{name}: differs among its trajectories")
        check_within(self.kl, "kl", 0.0)
        check_within(self.kl[range(len(sides)), range(len(sides))], "kl of a lens from itself", 0.0, 0.0)

    def _parquet(self) -> tuple[pa.Table, dict[str, str]]:
        return side_by_side_rows(0, self), side_by_side_metadata(True, len(self.trajectories))

    @classmethod
    def _from_columns(cls, head: dict[str, Any], columns: dict[str, Column]) -> "SideBySide | list[SideBySide]":
        n = whole_number(head["lenses"], "lenses", 2)
        names = [f"kl_to_{k + 1}" for k in range(n)]
        documents = documents_of_rows(head, columns, [*MEASURES, *names])
        if len(documents) % n or (head["single"] is True and len(documents) != n):
            raise ValueError(f"it holds {len(documents)} trajectories, and says that it holds those of {n} lenses")
        results = []
        for at in range(0, len(documents), n):
            own = documents[at : at + n]
            kl = np.array([[one["measures"][name] for name in names] for one in own])
            result = SideBySide(tuple(map(Trajectory.from_json, own)), float_array(kl, "kl"))
            result._check()
            results.append(result)
        return results[0] if head["single"] else results

    def _rows(self) -> pa.Table:
        tables = []
        for side, kl in zip(self.trajectories, self.kl, strict=True):
            rows = side._rows()
            for name, column in _kl_columns(kl).items():
                rows = rows.append_column(name, column)
            tables.append(rows)
        return pa.concat_tables(tables)

    def page_data(self) -> dict[str, Any]:
        """Give what a page draws of it: the payloads of its trajectories, and how far each two lenses are apart."""
        return packed(
            {
                "kind": "side by side",
                "title": self.text,
                "sides": [side.page_data() for side in self.trajectories],
                "lenses": list(self.lenses),
                "layers": list(self.layers),
                "positions": list(self.positions),
            },
            {"kl_between": self.kl, "same_top": self.agreement},
        )


def side_by_side_rows(number: int, result: SideBySide) -> pa.Table:
    """A result as the rows of a Parquet file, the `number`-th in it: those of its trajectories, each with its KLs."""
    n = len(result.trajectories)
    return pa.concat_tables(
        file_rows(number * n + i, side, _kl_columns(kl))
        for i, (side, kl) in enumerate(zip(result.trajectories, result.kl, strict=True))
    )


def side_by_side_metadata(single: bool, lenses: int) -> dict[str, str]:
    """The metadata of a Parquet file of results of so many lenses: a list of them, or a `single` one."""
    return {str(SideBySide.file_mark): json.dumps({"version": FORMAT, "single": single, "lenses": lenses})}


def _kl_columns(kl: np.ndarray) -> dict[str, pa.Array]:
    """KL of one lens from each, (n, L, P), as columns by name."""
    return {f"kl_to_{k + 1}": number_column(values.reshape(-1)) for k, values in enumerate(kl)}
