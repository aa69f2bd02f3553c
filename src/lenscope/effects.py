"""Effects: what interventions on a prompt's own run did to an answer, by layer and place, with their provenance.

Knows: which cell was intervened on, the units of effects, the file formats, effects as a table for a terminal.
Does not know: models, how cells are computed (interventions.py).
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from lenscope import tables, visible
from lenscope.errors import LenscopeError
from lenscope.results import FORMAT, listed
from lenscope.writing import whole_file, write_text

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
SHARES = ("probability", "effect", "standard_error")
# Terminal columns of a cell: what the numbers need, and at most a token's.
NARROW, WIDE = 6, 14


@dataclass(frozen=True)
class Run:
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


@dataclass(frozen=True, eq=False)
class Effects:
    """N cells, each one intervention at a layer and a place of a prompt's run.

    `run`, `layer` and `place` (N,) say which cell is which (`place` numbers the run's places); `measures` are (N,) in
    the units of `unit`, `totals` (R,) one number per run. Cells go over runs, then layers, then places; `cells` shows
    one run's as (layers, places).
    """

    method: str
    model: str
    n_layers: int
    runs: tuple[Run, ...]
    run: np.ndarray
    layer: np.ndarray
    place: np.ndarray
    measures: dict[str, np.ndarray]
    totals: dict[str, np.ndarray]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.run)

    def __repr__(self) -> str:
        return f"Effects({self.method}: {len(self.runs)} prompts, {len(self)} cells, {self.model})"

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
        return tables.fitted(lambda room: self._table(measure, values, run, room), width)

    def _table(self, measure: str, values: np.ndarray, run: int, width: int | None) -> Table:
        mine = self.runs[run]
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        longest = max(len(visible.token(mine.label(n))) for n in range(len(mine.places)))
        room = (width or 10**4) - 4
        size = max(NARROW, min(WIDE, longest, room // len(mine.places) - 1))
        shown = range(max(0, len(mine.places) - max(1, (room + 1) // (size + 1))), len(mine.places))
        made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True, header_style="bold")
        made.add_column("", justify="right", no_wrap=True)
        for n in shown:
            star = "*" if set(mine.places[n]) & set(mine.marked) else ""
            head = visible.token(mine.label(n), size - len(star)) + star
            made.add_column(Text(head), width=size, no_wrap=True, justify="right")
        # an empty column, so that the caption of a narrow table is not broken to pieces
        made.add_column("", width=max(1, 64 - (size + 1) * len(shown)))
        for row in reversed(range(len(self.layers))):
            shades = (values[row] - low) / max(high - low, 1e-12)
            cells = [
                Text(_figure(values[row, n], measure).rjust(size), style=tables.style(float(shades[n]))) for n in shown
            ]
            made.add_row(Text(str(self.layers[row]), style="dim"), *cells)
        span = f" {_figure(low, measure)} … {_figure(high, measure)}" if finite.size else ""
        sums = ", ".join(f"{n} {_figure(v[run], n)}" for n, v in self.totals.items())
        note = f"{self.method}, answer {mine.answer!r}; {sums}\ncolour: {measure}{span} ({self.unit(measure)})"
        note += "; *: marked" if mine.marked else ""
        if shown.start:
            note += f"; the first {shown.start} places do not fit: choose with positions, or a wider terminal"
        made.caption = Text("\n".join(map(visible.plain, note.split("\n"))), style="dim", justify="left")
        return made

    def to_json(self) -> dict[str, Any]:
        """The effects as JSON values."""
        return {**self._head(), "cells": self._columns()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Effects":
        """The inverse of `to_json`; LenscopeError if it is no effects."""
        try:
            if data["kind"] != "effects":
                raise ValueError(f"kind {data['kind']!r}")
            cells = data["cells"]
            n = len(cells["run"])
            made = Effects(
                method=data["method"],
                model=data["model"],
                n_layers=data["n_layers"],
                runs=tuple(
                    Run(
                        r["text"],
                        tuple(r["tokens"]),
                        tuple(tuple(p) for p in r["places"]),
                        r["answer"],
                        r["alternative"],
                        tuple(r["marked"]),
                        r["other"],
                    )
                    for r in data["runs"]
                ),
                run=np.array(cells["run"], dtype=np.int64),
                layer=np.array(cells["layer"], dtype=np.int64),
                place=np.array(cells["place"], dtype=np.int64),
                measures={name: _floats(cells[name]).reshape(n) for name in data["measures"]},
                totals={name: _floats(v).reshape(len(data["runs"])) for name, v in data["totals"].items()},
                provenance=data["provenance"],
            )
            places = np.array([len(r.places) for r in made.runs])
            if not (np.bincount(made.run, minlength=len(places)) == len(made.layers) * places).all():
                raise ValueError("its cells are not every layer at every place")
            return made
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise LenscopeError(f"not effects of format {FORMAT}: {type(error).__name__} {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a .parquet file (one row per cell) or a .json file; complete or not at all."""
        path = Path(path)
        if path.suffix == ".json":
            write_text(path, json.dumps(self.to_json(), ensure_ascii=False))
        elif path.suffix == ".parquet":
            names = [self.runs[r].label(p) for r, p in zip(self.run.tolist(), self.place.tolist(), strict=True)]
            last = [self.runs[r].places[p][-1] for r, p in zip(self.run.tolist(), self.place.tolist(), strict=True)]
            rows = pa.table(
                {
                    "run": pa.array(self.run),
                    "layer": pa.array(self.layer),
                    "place": pa.array(self.place),
                    "position": pa.array(np.array(last, dtype=np.int64)),
                    "token": pa.array(names, type=pa.string()).dictionary_encode(),
                    **{name: pa.array(values) for name, values in self.measures.items()},
                }
            )
            meta = {"effects": json.dumps(self._head(), ensure_ascii=False)}
            with whole_file(path) as making:
                pq.write_table(rows.replace_schema_metadata(meta), making)
        else:
            raise LenscopeError(f"{path}: effects are saved as .parquet or .json")

    def _head(self) -> dict[str, Any]:
        return {
            "kind": "effects",
            "version": FORMAT,
            "method": self.method,
            "model": self.model,
            "n_layers": self.n_layers,
            "runs": [asdict(r) | {"places": [list(p) for p in r.places]} for r in self.runs],
            "measures": {name: self.unit(name) for name in self.measures},
            "totals": {name: listed(values) for name, values in self.totals.items()},
            "provenance": self.provenance,
        }

    def _columns(self) -> dict[str, Any]:
        found = {"run": self.run.tolist(), "layer": self.layer.tolist(), "place": self.place.tolist()}
        return {**found, **{name: listed(values) for name, values in self.measures.items()}}


def measured(lp: np.ndarray, base: np.ndarray) -> dict[str, np.ndarray]:
    """What an intervention did to ln p(answer), (layers, places, S), beside its base run's (S,): means over samples."""
    return {
        "probability": np.exp(lp).mean(-1),
        "effect": (np.exp(lp) - np.exp(base)).mean(-1),
        "log_prob": lp.mean(-1),
        "log_effect": (lp - base).mean(-1),
    }


def baselines(clean: float, corrupted: np.ndarray) -> dict[str, float]:
    """The runs without intervention, the corrupted one averaged over its samples (S,)."""
    gone = float(np.exp(corrupted).mean())
    return {
        "clean": float(np.exp(clean)),
        "corrupted": gone,
        "total_effect": float(np.exp(clean)) - gone,
        "clean_log_prob": float(clean),
        "corrupted_log_prob": float(corrupted.mean()),
    }


def assembled(
    method: str, model: str, n_layers: int, layers: Sequence[int], found: Sequence[Any], provenance: dict[str, Any]
) -> Effects:
    """Effects of what was found for each run: the run, its measures (layers, places) and its totals."""
    runs, measures, totals = zip(*found, strict=True)
    sizes = [len(layers) * len(r.places) for r in runs]
    return Effects(
        method=method,
        model=model,
        n_layers=n_layers,
        runs=runs,
        run=np.repeat(np.arange(len(runs)), sizes),
        layer=np.concatenate([np.repeat(layers, len(r.places)) for r in runs]),
        place=np.concatenate([np.tile(np.arange(len(r.places)), len(layers)) for r in runs]),
        measures={k: _floats(np.concatenate([m[k].reshape(-1) for m in measures])) for k in measures[0]},
        totals={k: _floats([t[k] for t in totals]) for k in totals[0]},
        provenance=provenance,
    )


def load_effects(path: str | os.PathLike[str]) -> Effects:
    """Read what `Effects.save` wrote, equal to what was saved; LenscopeError if the file holds no effects."""
    path = Path(path)
    if not path.is_file():
        raise LenscopeError(f"{path}: no such file")
    try:
        if path.suffix == ".json":
            return Effects.from_json(json.loads(path.read_text(encoding="utf-8")))
        table = pq.read_table(path)
        head = json.loads((table.schema.metadata or {})[b"effects"])
        names = ["run", "layer", "place", *head["measures"]]
        return Effects.from_json({**head, "cells": {name: table[name].to_numpy() for name in names}})
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        if isinstance(error, LenscopeError):
            raise
        raise LenscopeError(f"{path}: is not lenscope effects ({' '.join(str(error).split())[:200]})") from error


def _floats(values: Any) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def _figure(value: float, measure: str) -> str:
    """A value in at most five characters: shares in per cent."""
    if not np.isfinite(value):
        return "–"
    if measure in SHARES or measure in ("clean", "corrupted", "total_effect"):
        return f"{100 * value:.0f}%" if abs(value) >= 0.1 or not value else f"{100 * value:.1f}%"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
