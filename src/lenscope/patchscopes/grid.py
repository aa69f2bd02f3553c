"""Grids: what a model said of hidden states patched into it, cell by cell, with their addresses and provenance.

Knows: which source went where, the tokens and measures of each cell, what of them files hold.
Does not know: models, how cells are computed, how they are drawn.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table

from lenscope.display.figures import Figure
from lenscope.display.page import Drawn
from lenscope.display.payload import packed, vocabulary_payload
from lenscope.display.tables import fit_to_width
from lenscope.errors import LenscopeError
from lenscope.files.digests import FORMAT, Column, unstamped
from lenscope.files.json_values import (
    check_most_probable,
    check_within,
    float_array,
    object_value,
    text_value,
    text_values,
    to_lists,
    vocabulary_value,
    whole_array,
    whole_number,
    whole_numbers,
)
from lenscope.files.parquet_tables import list_column, number_column, reordered, row_order, text_column
from lenscope.files.records import Lists, Record, load_record
from lenscope.patchscopes import grid_table
from lenscope.patchscopes.grid_cells import BELOW, ENDED, Cell, Source, Spot, unit_of


@dataclass(frozen=True, eq=False, repr=False)
class Grid(Record, Drawn):
    """What a Patchscope gave: one cell for each source, target prompt and layer. `grid[n]` is a cell.

    Cells run over targets, then sources, then layers; `cells` shows them as (sources, layers).

    Attributes:
        kind: "predict" (next tokens) or "generate" (texts).
        sources: the hidden states that were patched in, by their addresses.
        targets: the target prompts.
        source: the number of each cell's source, (N,).
        target: the number of each cell's target prompt, (N,).
        layer: the target layer of each cell, (N,).
        ids: the k most probable next tokens (N, k), or the tokens that were written (N, n), filled up with -1.
        log_probs: their natural log-probabilities, under the patched run, or under the contrasted distribution where
            there is a `contrast`, at temperature 1; NaN where `ids` is filled up.
        texts: the text of the most probable token, or all that was written.
        ended: why each text ended: "end", "stop" or "length"; empty for next tokens.
        measures: by name, a number for each cell (N,), in the units of `unit`.
        vocabulary: the text of every id that occurs.
    """

    kind: str
    model: str
    n_layers: int
    sources: tuple[Source, ...]
    targets: tuple[Spot, ...]
    source: np.ndarray
    layer: np.ndarray
    target: np.ndarray
    ids: np.ndarray
    log_probs: np.ndarray
    texts: tuple[str, ...]
    ended: tuple[str, ...]
    measures: dict[str, np.ndarray]
    vocabulary: dict[int, str]
    provenance: dict[str, Any] = field(default_factory=dict)

    file_kind = file_mark = "grid"

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        layers = len(np.unique(self.layer))
        return f"Grid({self.kind}: {len(self)} cells, {len(self.sources)} sources, {layers} layers, {self.model})"

    def __iter__(self) -> Iterator[Cell]:
        return (self[n] for n in range(len(self)))

    def __getitem__(self, n: int) -> Cell:
        if not -len(self) <= n < len(self):
            raise IndexError(f"cell {n}: the grid has cells 0–{len(self) - 1}")
        written = self.ids[n] >= 0
        ids = tuple(self.ids[n][written].tolist())
        return Cell(
            self.sources[self.source[n]],
            self.targets[self.target[n]],
            int(self.layer[n]),
            self.texts[n],
            ids,
            tuple(self.vocabulary[i] for i in ids),
            tuple(self.log_probs[n][written].tolist()),
            {name: float(values[n]) for name, values in self.measures.items()},
            self.ended[n] if self.ended else "",
        )

    @property
    def contrast(self) -> float:
        """The α of (1 + α) · patched - α · unpatched logits, which all numbers are of; 0: of the patched runs alone."""
        return float(self.provenance.get("contrast", 0.0))

    @property
    def layers(self) -> tuple[int, ...]:
        """The target layers, ascending."""
        return tuple(np.unique(self.layer).tolist())

    def cells(self, name: str = "text", target: int = 0) -> np.ndarray:
        """Give a measure, "text", "ids" or "log_probs" of one target as (sources, layers, …).

        Raises LenscopeError where the cells are not every source at every layer.
        """
        at = np.flatnonzero(self.target == target)
        rows, columns = np.unique(self.source[at]), np.unique(self.layer[at])
        if len(at) != len(rows) * len(columns) or not len(at):
            raise LenscopeError(
                f"cells: {len(at)} cells of target {target} are not a full grid of {len(rows)} sources × "
                f"{len(columns)} layers; go through the grid cell by cell"
            )
        values = self.column(name)[at]
        order = np.lexsort((self.layer[at], self.source[at]))
        return values[order].reshape(len(rows), len(columns), *values.shape[1:])

    def column(self, name: str) -> np.ndarray:
        """Give a measure, "text", "ids" or "log_probs" of every cell, (N, …)."""
        plain = {"ids": self.ids, "log_probs": self.log_probs, "text": np.array(self.texts, dtype=object)}
        if name not in plain and name not in self.measures:
            raise LenscopeError(f"measure {name!r}: this grid has {', '.join([*plain, *self.measures])}")
        return plain[name] if name in plain else self.measures[name]

    def unit(self, name: str) -> str:
        """Give the unit of a measure."""
        return unit_of(name, self.contrast)

    def table(self, measure: str = "", *, width: int | None = None) -> Table:
        """Show the cells in a terminal: a heat map where one target has every source at several layers, else lines.

        `measure` colours the cells; "" is the first answer's log-probability where the grid has answers, else the
        probability of the top or first token.
        """
        return fit_to_width(lambda room: self._drawn(measure, room), width)

    def figure(self, measure: str = "") -> Figure:
        """Draw a panel for each target: source × target layers as a heat map, or a line for each position.

        Lines show cells that go to one layer each. `measure` is as of `table`.
        """
        measure, unit = self._coloured(measure)
        values = self.column(measure)
        panels = []
        for n, target in enumerate(self.targets):
            at = np.flatnonzero(self.target == n)
            if len(at):
                sources = [self.sources[s] for s in self.source[at]]
                texts = [self.texts[i] for i in at]
                title = f"{self.model}, {target.text.strip()[-40:]}"
                panels.append(grid_table.panel(title, sources, self.layer[at], texts, values[at], measure, unit))
        return Figure(f"grid {measure}", panels)

    def _coloured(self, measure: str) -> tuple[str, str]:
        """The measure that colours cells where none is asked for, or the one that is, and its unit."""
        if not len(self):
            raise LenscopeError("the grid has no cells to show")
        answers = [name for name in self.measures if name.startswith(grid_table.ANSWER)]
        measure = measure or (answers[0] if answers else "max_probability")
        if measure not in self.measures:
            raise LenscopeError(f"measure {measure!r}: give one of {', '.join(self.measures)}")
        unit = self.unit(measure)
        if self.kind == "generate" and measure == "max_probability":
            unit = unit.replace("the top token", "the first token that was written")
        return measure, unit

    def page_data(self) -> dict[str, Any]:
        """Give what a page needs: addresses (N,), ids and log-probabilities (N, k), and values (M, N) of the cells.

        "answers" are those that were asked for; the page marks them in what cells say. More may be put there.
        """
        named = [name.partition(":")[2] for name in self.measures if name.startswith(grid_table.ANSWER)]
        titles = dict.fromkeys(s.text or s.label for s in self.sources)
        head = {
            **self._head(to_lists),
            "kind": "grid",
            "title": " · ".join(list(titles)[:4]) + (" …" if len(titles) > 4 else ""),
            "written": self.kind == "generate",
            "vocabulary": vocabulary_payload(self.vocabulary),
            "colour": self._coloured("")[0] if len(self) else None,
            "answers": named,
            "texts": list(self.texts),
            "ended": list(self.ended),
        }
        arrays = {name: getattr(self, name) for name in ("source", "layer", "target", "ids", "log_probs")}
        values = np.array([self.measures[name] for name in self.measures]).reshape(len(self.measures), len(self))
        return packed(head, {**arrays, "values": values})

    def _drawn(self, measure: str, width: int | None) -> Table:
        measure, unit = self._coloured(measure)
        answers = [name for name in self.measures if name.startswith(grid_table.ANSWER)]
        shown = np.unique(self.source).tolist()
        full = len(self.targets) == 1 and len(self.layers) > 1 and len(self.sources) > 1
        if full and len(self) == len(shown) * len(self.layers):
            return grid_table.heat_map(
                [self.sources[n] for n in shown],
                self.layers,
                self.cells("text"),
                self.cells(measure),
                measure,
                unit,
                [name for name in answers if name != measure],
                width,
            )
        measured = {name: self.column(name) for name in (measure, *(name for name in answers if name != measure))}
        return grid_table.cell_lines(list(self), measured, unit, self.kind == "generate", width)

    def _document(self, lists: Lists) -> dict[str, Any]:
        cells: dict[str, Any] = {name: getattr(self, name).tolist() for name in ("source", "layer", "target")}
        cells["ids"] = [[i for i in row if i >= 0] for row in self.ids.tolist()]
        known = [len(row) for row in cells["ids"]]
        cells["log_probs"] = [row[:n] for row, n in zip(lists(self.log_probs), known, strict=True)]
        cells |= {name: lists(v) for name, v in self.measures.items()}
        return {**self._head(lists), "cells": cells, "texts": list(self.texts), "ended": list(self.ended)}

    @classmethod
    def _from_document(cls, data: dict[str, Any]) -> "Grid":
        cells = data["cells"]
        n, width = len(cells["source"]), whole_number(data["width"], "width", 1)
        sources = tuple(
            Source(**{**s, **{k: -1 for k in ("position", "layer") if s[k] is None}}) for s in data["sources"]
        )
        grid = Grid(
            kind=data["kind"],
            model=text_value(data["model"], "model"),
            n_layers=whole_number(data["n_layers"], "n_layers"),
            sources=sources,
            targets=tuple(
                Spot(t["text"], text_values(t["tokens"], "tokens"), tuple(t["positions"]), t["below"])
                for t in data["targets"]
            ),
            source=whole_array(cells["source"], "source", (n,)),
            layer=whole_array(cells["layer"], "layer", (n,)),
            target=whole_array(cells["target"], "target", (n,)),
            ids=whole_array(_filled(cells["ids"], width, -1), "ids", (n, width)),
            log_probs=float_array(_filled(cells["log_probs"], width, None), "log_probs", (n, width)),
            texts=text_values(data["texts"], "texts"),
            ended=text_values(data["ended"], "ended"),
            measures={name: float_array(cells[name], name, (n,)) for name in data["measures"]},
            vocabulary=vocabulary_value(data["vocabulary"]),
            provenance=object_value(data["provenance"], "provenance"),
        )
        grid._check()
        return grid

    @classmethod
    def _from_columns(cls, head: dict[str, Any], columns: dict[str, Column]) -> "Grid":
        if "cell" in columns:
            columns = reordered(columns, row_order(columns, {"cell": np.arange(len(columns["cell"]))}))
        head = unstamped(head, columns)
        cells: dict[str, Any] = {name: columns[name] for name in ("source", "layer", "target", *head["measures"])}
        for name in ("ids", "log_probs"):
            lengths, values = columns[name]
            cells[name] = [row.tolist() for row in np.split(values, np.cumsum(lengths)[:-1])] if len(lengths) else []
        cells["log_probs"] = [[None if v != v else _exact(v) for v in row] for row in cells["log_probs"]]
        ended = columns["ended"] if head["kind"] == "generate" else []
        return Grid.from_json({**head, "cells": cells, "texts": columns["text"], "ended": ended})

    def _check(self) -> None:
        """ValueError for values that no Patchscope gives."""
        n, generated = len(self), self.kind == "generate"
        contrast = self.provenance.get("contrast", 0.0)
        if isinstance(contrast, bool) or not isinstance(contrast, int | float) or not 0 <= contrast < np.inf:
            raise ValueError(f"contrast {str(contrast)[:40]}: is no number of at least 0")
        if self.kind not in ("predict", "generate"):
            raise ValueError(f"kind {str(self.kind)[:40]}: there are predict and generate")
        for s in self.sources:
            text_values([s.label, s.model, s.text, s.token], "source")
            whole_numbers([s.position, s.layer], "source", -1)
        for t in self.targets:
            text_value(t.text, "target")
            whole_numbers(t.positions, "positions", 0, len(t.tokens) - 1)
            if t.below not in BELOW:
                raise ValueError(f"below {str(t.below)[:40]}: there are {', '.join(BELOW)}")
        for name, count in (("source", len(self.sources)), ("target", len(self.targets)), ("layer", self.n_layers + 1)):
            check_within(getattr(self, name), name, 0, count - 1, 0)
        if len(self.texts) != n or len(self.ended) != (n if generated else 0) or not {*self.ended} <= {*ENDED}:
            raise ValueError("its texts, or why they ended, are not one of each cell")
        known = self.ids >= 0
        if (self.ids < -1).any() or (known[:, 1:] & ~known[:, :-1]).any() or (~np.isnan(self.log_probs) & ~known).any():
            raise ValueError("ids: are not tokens, or have gaps")
        lacking = {*np.unique(self.ids[known]).tolist()} - self.vocabulary.keys()
        if lacking:
            raise ValueError(f"vocabulary: has no text of token {min(lacking)}")
        check_within(self.log_probs, "log-probabilities", high=0.0)
        for name, values in self.measures.items():
            low, high = _RANGES.get(name.split(":")[0], (np.nan, np.nan))
            if np.isnan(low):
                raise ValueError(f"measure {name[:40]!r}: is none of a grid")
            check_within(values, name[:40], low, high)
        if not generated and "max_probability" in self.measures:
            finite = known.all(1) & ~np.isnan(self.measures["max_probability"])
            check_most_probable(self.log_probs[finite], self.measures["max_probability"][finite])

    def _head(self, lists: Lists) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "version": FORMAT,
            "model": self.model,
            "n_layers": self.n_layers,
            "width": self.ids.shape[1],
            "sources": [
                {k: None if k in ("position", "layer") and v < 0 else v for k, v in asdict(s).items()}
                for s in self.sources
            ],
            "targets": [asdict(t) for t in self.targets],
            "measures": {name: self.unit(name) for name in self.measures},
            "vocabulary": {str(i): t for i, t in self.vocabulary.items()},
            "provenance": self.provenance,
        }

    def _rows(self) -> pa.Table:
        sources = [self.sources[n] for n in self.source.tolist()]
        known = self.ids >= 0

        def places(name: str) -> pa.Array:
            numbers = np.array([getattr(s, name) for s in sources], dtype=np.int32)
            return pa.array(numbers, mask=numbers < 0)

        return pa.table(
            {
                "cell": pa.array(np.arange(len(self))),
                "model": text_column([self.model] * len(self)),
                "source": pa.array(self.source),
                "source_label": text_column(s.label for s in sources),
                "source_prompt": text_column(s.text for s in sources),
                "source_token": text_column(s.token for s in sources),
                "source_layer": places("layer"),
                "source_position": places("position"),
                "target": pa.array(self.target),
                "target_prompt": text_column(self.targets[n].text for n in self.target.tolist()),
                "layer": pa.array(self.layer),
                "text": pa.array(list(self.texts), type=pa.string()),
                "ended": text_column(list(self.ended) or [""] * len(self)),
                "ids": list_column(known.sum(1), self.ids[known]),
                "log_probs": list_column(known.sum(1), self.log_probs[known]),
                **{name: number_column(values) for name, values in self.measures.items()},
            }
        )


# name → lowest and highest value
_RANGES = {
    "max_probability": (0.0, 1.0),
    "entropy": (0.0, np.inf),
    "kl": (0.0, np.inf),
    "surprisal": (0.0, np.inf),
    "precision": (0.0, 1.0),
    "mean_log_prob": (-np.inf, 0.0),
    "log_prob": (-np.inf, 0.0),
    "pmi": (-np.inf, np.inf),
}


def _filled(rows: Any, width: int, gap: Any) -> list[list[Any]]:
    """Lists filled up to one length."""
    if not all(isinstance(row, list) and len(row) <= width for row in rows):
        raise ValueError(f"ids: are not lists of up to {width}")
    return [[*row, *[gap] * (width - len(row))] for row in rows]


def _exact(value: float) -> Any:
    return value if np.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


def load_grid(path: str | os.PathLike[str]) -> Grid:
    """Load what `Grid.save` wrote, equal to what was saved; LenscopeError if the file is no grid, or a damaged one."""
    grid: Grid = load_record(path, (Grid,))
    return grid
