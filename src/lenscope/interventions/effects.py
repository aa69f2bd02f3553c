"""Effects: what interventions on a prompt's own run did to an answer, by layer and place, with their provenance.

Knows: which cell was intervened on, the units of effects, the file formats, which of them a table shows.
Does not know: models, how cells are computed .
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table

from lenscope import visible_text as visible
from lenscope.display.figures import Figure
from lenscope.display.heat_table import colour_caption, heat_table, shades_of
from lenscope.display.measure_maps import measure_map, token_names
from lenscope.display.numbers import signed_figure
from lenscope.display.page import Drawn
from lenscope.display.payload import packed
from lenscope.display.tables import TableColumn, fit_to_width
from lenscope.errors import LenscopeError
from lenscope.files.digests import FORMAT, Column, unstamped
from lenscope.files.json_values import (
    check_within,
    float_array,
    layer_numbers,
    object_value,
    text_value,
    text_values,
    to_lists,
    whole_array,
    whole_number,
    whole_numbers,
)
from lenscope.files.parquet_tables import number_column, reordered, text_column
from lenscope.files.records import Lists, Record, load_record

# name → unit; the base run is the one intervened on: corrupted for tracing and patching, clean for knockout
MEASURES = {
    "probability": "0–1, of the answer under the intervention",
    "effect": "probability under the intervention - that of the base run (causal tracing: the indirect effect)",
    "standard_error": "of the effect, over noise samples",
    "log_prob": "nats, ln p(answer) under the intervention",
    "log_effect": "nats, ln p(answer) under the intervention - that of the base run",
    "difference": "nats, ln p(answer) - ln p(alternative) under the intervention",
    "recovered": "1 as in the clean run, 0 as in the corrupted one",
}
TOTALS = {
    "clean": "0–1, probability of the answer in the clean run",
    "corrupted": "0–1, probability of the answer in the corrupted run",
    "total_effect": "clean - corrupted probability",
    "clean_log_prob": "nats, ln p(answer) in the clean run",
    "corrupted_log_prob": "nats, ln p(answer) in the corrupted run",
    "clean_difference": "nats, ln p(answer) - ln p(alternative) in the clean run",
    "corrupted_difference": "nats, ln p(answer) - ln p(alternative) in the corrupted run",
    "noise": "standard deviation of the noise added to each number of the subject's states at layer 0",
}
# name → lowest and highest value of what has some
_RANGES = {
    **dict.fromkeys(("probability", "clean", "corrupted"), (0.0, 1.0)),
    **dict.fromkeys(("effect", "total_effect"), (-1.0, 1.0)),
    **dict.fromkeys(("standard_error", "noise"), (0.0, np.inf)),
    **dict.fromkeys(("log_prob", "clean_log_prob", "corrupted_log_prob"), (-np.inf, 0.0)),
}
# measures and totals that are shown in per cent
SHARES = ("probability", "effect", "standard_error", "clean", "corrupted", "total_effect")
# Terminal columns of a cell: what the numbers need, and at most a token's.
NARROW, WIDE = 6, 14


@dataclass(frozen=True)
class TracedPrompt:
    """One prompt's run: its tokens, the places that were intervened on, and the answer whose probability is measured.

    A place is one position, or several at once. `marked` are the positions of the subject that was corrupted, or the
    queries that were kept from looking; `other` is the prompt that clean states came from, where it is another.
    """

    text: str
    tokens: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]
    answer: str
    alternative: str = ""
    marked: tuple[int, ...] = ()
    other: str = ""

    def label(self, place: int) -> str:
        """The tokens of a place as text."""
        return "".join(self.tokens[p] for p in self.places[place])


@dataclass(frozen=True, eq=False, repr=False)
class Effects(Record, Drawn):
    """What interventions do to an answer: one cell for each layer and place of each prompt's run.

    Cells go over runs, then layers, then places; `cells` shows one run's as (layers, places).

    Attributes:
        run: which run each cell is of, (N,).
        layer: its layer, (N,).
        place: the number of its place among the run's places, (N,).
        measures: by name, a number for each cell (N,), in the units of `unit`.
        totals: by name, one number for each run, (R,).
    """

    method: str
    model: str
    n_layers: int
    runs: tuple[TracedPrompt, ...]
    run: np.ndarray
    layer: np.ndarray
    place: np.ndarray
    measures: dict[str, np.ndarray]
    totals: dict[str, np.ndarray]
    provenance: dict[str, Any] = field(default_factory=dict)

    file_kind = file_mark = "effects"

    def __len__(self) -> int:
        return len(self.run)

    def __repr__(self) -> str:
        prompts = "1 prompt" if len(self.runs) == 1 else f"{len(self.runs)} prompts"
        return f"Effects({self.method}: {prompts}, {len(self)} cells, {self.model})"

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that were intervened on, ascending."""
        return tuple(np.unique(self.layer).tolist())

    def column(self, name: str) -> np.ndarray:
        """A measure of every cell, (N,)."""
        if name not in self.measures:
            raise LenscopeError(f"measure {name!r}: these effects have {', '.join(self.measures)}")
        return self.measures[name]

    def cells(self, name: str = "effect", run: int = 0) -> np.ndarray:
        """A measure of one run's cells, (layers, places)."""
        if not -len(self.runs) <= run < len(self.runs):
            raise LenscopeError(f"run {run}: there are runs 0–{len(self.runs) - 1}")
        mine = self.run == run % len(self.runs)
        return self.column(name)[mine].reshape(len(self.layers), -1)

    def unit(self, name: str) -> str:
        """The unit of a measure or a total."""
        return {**MEASURES, **TOTALS}[name]

    def table(self, measure: str = "effect", *, run: int = 0, width: int | None = None) -> Table:
        """Layers (last on top) × places of one run for a terminal, coloured by a measure; fits `width` if given.

        Places that do not fit are left out from the start of the prompt, and the caption says so.
        """
        values = self.cells(measure, run)
        return fit_to_width(lambda room: self._drawn(measure, values, run, room), width)

    def figure(self, measure: str = "effect", *, run: int = 0) -> Figure:
        """Layers × places of one run as a figure, coloured by a measure; * marks the subject."""
        values, mine = self.cells(measure, run), self.runs[run]
        stars = ["*" if set(place) & set(mine.marked) else "" for place in mine.places]
        names = [token_names([mine.label(n)])[0] + star for n, star in enumerate(stars)]
        title = f"{self.method}, answer {mine.answer!r}, {self.model}"
        numbers = [[_value_text(value, measure) for value in row] for row in values]
        axes = ("token", "layer")
        drawn = measure_map(title, axes, names, self.layers, values, measure, self.unit(measure), numbers)
        return Figure(f"effects {measure}", [drawn])

    def page_data(self) -> dict[str, Any]:
        """Give what a page needs: run, layer and place (N,) of the cells, and their values (M, N)."""
        texts = " · ".join(dict.fromkeys(run.text for run in self.runs))
        head = {**self._head(to_lists), "layers": list(self.layers), "title": f"{self.method}: {texts}"}
        head |= {"shares": list(SHARES), "total_units": {name: TOTALS[name] for name in self.totals}}
        values = np.stack([self.measures[name] for name in self.measures])
        return packed(head, {"run": self.run, "layer": self.layer, "place": self.place, "values": values})

    def _drawn(self, measure: str, values: np.ndarray, run: int, width: int | None) -> Table:
        mine = self.runs[run]
        longest = max(len(visible.printable_token(mine.label(n))) for n in range(len(mine.places)))
        room = (width or 10**4) - 4
        size = max(NARROW, min(WIDE, longest, room // len(mine.places) - 1))
        first = max(0, len(mine.places) - max(1, (room + 1) // (size + 1)))
        columns = []
        for n in range(first, len(mine.places)):
            star = "*" if set(mine.places[n]) & set(mine.marked) else ""
            columns.append(TableColumn(visible.printable_token(mine.label(n), size - len(star)) + star, "right", size))
        # an empty column, so that the caption of a narrow table is not broken to pieces
        room_for_caption = TableColumn("", width=max(1, 64 - (size + 1) * len(columns)))
        totals = ", ".join(f"{name} {_value_text(v[run], name)}" for name, v in self.totals.items())
        colours = colour_caption(
            measure,
            values,
            first,
            self.unit(measure),
            "*: marked" if mine.marked else "",
            number=lambda value, name: _value_text(float(value), name),
            of="places",
        )
        return heat_table(
            [*columns, room_for_caption],
            [str(layer) for layer in self.layers],
            [[_value_text(value, measure).rjust(size) for value in row] for row in values[:, first:]],
            shades_of(values, measure)[:, first:],
            f"{visible.printable(f'{self.method}, answer {mine.answer!r}; {totals}')}\n{colours}",
        )

    def _document(self, lists: Lists) -> dict[str, Any]:
        cells: dict[str, Any] = {name: getattr(self, name).tolist() for name in ("run", "layer", "place")}
        return {**self._head(lists), "cells": {**cells, **{name: lists(v) for name, v in self.measures.items()}}}

    @classmethod
    def _from_document(cls, data: dict[str, Any]) -> "Effects":
        cells, count = data["cells"], len(data["runs"])
        n = len(cells["run"])
        addresses = {k: whole_array(cells[k], k, (n,)) for k in ("run", "layer", "place")}
        order = np.lexsort((addresses["place"], addresses["layer"], addresses["run"]))
        effects = Effects(
            method=text_value(data["method"], "method"),
            model=text_value(data["model"], "model"),
            n_layers=whole_number(data["n_layers"], "n_layers"),
            runs=tuple(
                TracedPrompt(
                    r["text"],
                    text_values(r["tokens"], "tokens"),
                    tuple(whole_numbers(p, "places", 0, len(r["tokens"]) - 1) for p in r["places"]),
                    r["answer"],
                    r["alternative"],
                    whole_numbers(r["marked"], "marked", 0, len(r["tokens"]) - 1),
                    r["other"],
                )
                for r in data["runs"]
            ),
            **{name: values[order] for name, values in addresses.items()},
            measures={k: float_array(cells[k], k, (n,))[order] for k in data["measures"]},
            totals={k: float_array(v, k, (count,)) for k, v in data["totals"].items()},
            provenance=object_value(data["provenance"], "provenance"),
        )
        effects._check()
        return effects

    @classmethod
    def _from_columns(cls, head: dict[str, Any], columns: dict[str, Column]) -> "Effects":
        order = np.lexsort((columns["place"], columns["layer"], columns["run"]))
        columns = reordered(columns, order)
        head = unstamped(head, columns)
        names = ("run", "layer", "place", *head["measures"])
        return Effects.from_json({**head, "cells": {name: columns[name] for name in names}})

    def _check(self) -> None:
        """ValueError for values that no intervention gives."""
        for r in self.runs:
            text_values([r.text, r.answer, r.alternative, r.other], "run")
            if not r.places or not all(r.places):
                raise ValueError("places: a run has none")
        layers = layer_numbers(list(self.layers), self.n_layers)
        places = [len(r.places) for r in self.runs]
        if len(self) != len(layers) * sum(places):
            raise ValueError(f"it has {len(self)} cells, which are not every layer at every place")
        sizes = [len(layers) * p for p in places]
        wanted = (
            np.repeat(np.arange(len(places)), sizes),
            np.concatenate([np.repeat(layers, p) for p in places]),
            np.concatenate([np.tile(np.arange(p), len(layers)) for p in places]),
        )
        if not all(map(np.array_equal, wanted, (self.run, self.layer, self.place))):
            raise ValueError("its cells are not every layer at every place")
        if not {*self.measures} <= {*MEASURES} or not {*self.totals} <= {*TOTALS}:
            raise ValueError("it has measures that no effects have")
        for name, values in {**self.measures, **self.totals}.items():
            check_within(values, name.replace("_", " "), *_RANGES.get(name, (-np.inf, np.inf)))

    def _rows(self) -> pa.Table:
        runs, places = [self.runs[r] for r in self.run.tolist()], self.place.tolist()
        last = [r.places[p][-1] for r, p in zip(runs, places, strict=True)]

        return pa.table(
            {
                "run": pa.array(self.run),
                "model": text_column([self.model] * len(self)),
                "prompt": text_column(r.text for r in runs),
                "answer": text_column(r.answer for r in runs),
                "layer": pa.array(self.layer),
                "place": pa.array(self.place),
                "position": pa.array(np.array(last, dtype=np.int64)),
                "token": text_column(r.label(p) for r, p in zip(runs, places, strict=True)),
                **{name: number_column(values) for name, values in self.measures.items()},
            }
        )

    def _head(self, lists: Lists) -> dict[str, Any]:
        return {
            "kind": "effects",
            "version": FORMAT,
            "method": self.method,
            "model": self.model,
            "n_layers": self.n_layers,
            "runs": [asdict(r) | {"places": [list(p) for p in r.places]} for r in self.runs],
            "measures": {name: self.unit(name) for name in self.measures},
            "totals": {name: lists(v) for name, v in self.totals.items()},
            "provenance": self.provenance,
        }


def effect_measures(lp: np.ndarray, base: np.ndarray) -> dict[str, np.ndarray]:
    """What an intervention did to ln p(answer), (layers, places, S), beside its base run's (S,): means over samples."""
    return {
        "probability": np.exp(lp).mean(-1),
        "effect": (np.exp(lp) - np.exp(base)).mean(-1),
        "log_prob": lp.mean(-1),
        "log_effect": (lp - base).mean(-1),
    }


def base_run_totals(clean: float, corrupted: np.ndarray) -> dict[str, float]:
    """The runs without intervention, the corrupted one averaged over its samples (S,)."""
    gone = float(np.exp(corrupted).mean())
    return {
        "clean": float(np.exp(clean)),
        "corrupted": gone,
        "total_effect": float(np.exp(clean)) - gone,
        "clean_log_prob": float(clean),
        "corrupted_log_prob": float(corrupted.mean()),
    }


def assemble_effects(
    method: str, model: str, n_layers: int, layers: Sequence[int], traced: Sequence[Any], provenance: dict[str, Any]
) -> Effects:
    """Put together the effects of several runs.

    Args:
        method: the name of the intervention.
        model: the name of the model.
        n_layers: how many layers it has.
        layers: which of them were intervened on.
        traced: for each run itself, its measures by name (layers, places), and its totals by name.
        provenance: where the numbers come from.
    """
    runs, measures, totals = zip(*traced, strict=True)
    sizes = [len(layers) * len(r.places) for r in runs]
    return Effects(
        method=method,
        model=model,
        n_layers=n_layers,
        runs=runs,
        run=np.repeat(np.arange(len(runs)), sizes),
        layer=np.concatenate([np.repeat(layers, len(r.places)) for r in runs]),
        place=np.concatenate([np.tile(np.arange(len(r.places)), len(layers)) for r in runs]),
        measures={k: _float32(np.concatenate([m[k].reshape(-1) for m in measures])) for k in measures[0]},
        totals={k: _float32([t[k] for t in totals]) for k in totals[0]},
        provenance=provenance,
    )


def load_effects(path: str | os.PathLike[str]) -> Effects:
    """Load what `Effects.save` wrote, equal to what was saved; LenscopeError if it holds none, or damaged ones."""
    effects: Effects = load_record(path, (Effects,))
    return effects


def _value_text(value: float, name: str) -> str:
    """The value of a measure or a total as a table shows it."""
    return signed_figure(value, name in SHARES)


def _float32(values: Any) -> np.ndarray:
    return np.array(values, dtype=np.float32)
