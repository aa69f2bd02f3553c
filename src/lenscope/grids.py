"""Grids: what a model said of hidden states patched into it, cell by cell, with their addresses and provenance.

Knows: which source went where, the tokens and measures of each cell, the file formats.
Does not know: models, how cells are computed, drawing.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from lenscope import griddraw, tables
from lenscope.errors import LenscopeError
from lenscope.results import FORMAT, listed
from lenscope.writing import whole_file, write_text

# name → unit of what every cell may have; answers add "log_prob:ANSWER" and "pmi:ANSWER", in nats
MEASURES = {
    "max_probability": "probability of the top token, 0–1",
    "entropy": "nats",
    "kl": "nats, KL(unpatched ‖ patched)",
    "surprisal": "nats, of the top token under the source model's own prediction",
    "precision": "1 where the top token is the source model's own, else 0",
    "mean_log_prob": "nats per written token",
}
ANSWERS = {
    "log_prob": "nats, ln p(answer)",
    "pmi": "nats, ln p(answer | patched) - ln p(answer | unpatched)",
}


@dataclass(frozen=True)
class Source:
    """The address a vector came from; `label` alone where it came from no hidden state."""

    label: str
    model: str = ""
    text: str = ""
    token: str = ""
    position: int = -1
    layer: int = -1


@dataclass(frozen=True)
class Spot:
    """A target prompt: its text, its tokens' texts, and the positions that are patched."""

    text: str
    tokens: tuple[str, ...]
    positions: tuple[int, ...]
    below: str = "target"


@dataclass(frozen=True)
class Cell:
    """One cell of a grid."""

    source: Source
    target: Spot
    layer: int
    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    log_probs: tuple[float, ...]
    measures: dict[str, float]
    ended: str


@dataclass(frozen=True, eq=False)
class Grid:
    """N cells, each a source vector patched into a target prompt at a layer.

    `kind` "predict": `ids` (N, k) are the k most probable next tokens, with `log_probs` (N, k), and `texts` the first;
    "generate": ids (N, n) is what was written, filled up with -1 (log_probs: NaN), `texts` all of it, `ended` why each
    row ended ("end", "stop", "length"). `source`, `layer` and `target` (N,) say which cell is which; `measures` are
    (N,) in the units of `unit`. `vocabulary` has the text of every id that occurs. Cells run over targets, then
    sources, then layers; `cells` shows them as (sources, layers). All log-probabilities are natural logarithms.
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
        kept = self.ids[n] >= 0
        ids = tuple(self.ids[n][kept].tolist())
        return Cell(
            self.sources[self.source[n]],
            self.targets[self.target[n]],
            int(self.layer[n]),
            self.texts[n],
            ids,
            tuple(self.vocabulary[i] for i in ids),
            tuple(self.log_probs[n][kept].tolist()),
            {name: float(values[n]) for name, values in self.measures.items()},
            self.ended[n] if self.ended else "",
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """The target layers, ascending."""
        return tuple(np.unique(self.layer).tolist())

    def cells(self, name: str = "text", target: int = 0) -> np.ndarray:
        """A measure, "text", "ids" or "log_probs" of one target as (sources, layers, …).

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
        """A measure, "text", "ids" or "log_probs" of every cell, (N, …)."""
        plain = {"ids": self.ids, "log_probs": self.log_probs, "text": np.array(self.texts, dtype=object)}
        if name not in plain and name not in self.measures:
            raise LenscopeError(f"measure {name!r}: this grid has {', '.join([*plain, *self.measures])}")
        return plain[name] if name in plain else self.measures[name]

    def unit(self, name: str) -> str:
        """The unit of a measure."""
        return MEASURES.get(name) or ANSWERS[name.split(":")[0]]

    def table(self, measure: str = "", *, width: int | None = None) -> Table:
        """For a terminal: a heat map where the cells are a full grid, else one line per cell."""
        return tables.fitted(lambda room: griddraw.table(self, measure, room), width)

    def to_json(self) -> dict[str, Any]:
        """The grid as JSON values."""
        return {**self._head(), "cells": self._columns(), "texts": list(self.texts), "ended": list(self.ended)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Grid":
        """The inverse of `to_json`; LenscopeError if it is no grid."""
        try:
            if data["kind"] not in ("predict", "generate"):
                raise ValueError(f"kind {data['kind']!r}")
            cells = data["cells"]
            n, width = len(cells["source"]), data["width"]
            made = Grid(
                kind=data["kind"],
                model=data["model"],
                n_layers=data["n_layers"],
                sources=tuple(Source(**s) for s in data["sources"]),
                targets=tuple(
                    Spot(t["text"], tuple(t["tokens"]), tuple(t["positions"]), t["below"]) for t in data["targets"]
                ),
                source=np.array(cells["source"], dtype=np.int64),
                layer=np.array(cells["layer"], dtype=np.int64),
                target=np.array(cells["target"], dtype=np.int64),
                ids=np.array(cells["ids"], dtype=np.int64).reshape(n, width),
                log_probs=_floats(cells["log_probs"]).reshape(n, width),
                texts=tuple(data["texts"]),
                ended=tuple(data["ended"]),
                measures={name: _floats(cells[name]).reshape(n) for name in data["measures"]},
                vocabulary={int(i): t for i, t in data["vocabulary"].items()},
                provenance=data["provenance"],
            )
            if made.source.max(initial=0) >= len(made.sources) or made.target.max(initial=0) >= len(made.targets):
                raise ValueError("a cell names a source or target that is not there")
            return made
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise LenscopeError(f"not a grid of format {FORMAT}: {type(error).__name__} {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a .parquet file (one row per cell) or a .json file; complete or not at all."""
        path = Path(path)
        if path.suffix == ".json":
            write_text(path, json.dumps(self.to_json(), ensure_ascii=False))
        elif path.suffix == ".parquet":
            meta = {"grid": json.dumps(self._head(), ensure_ascii=False)}
            with whole_file(path) as making:
                pq.write_table(self._rows().replace_schema_metadata(meta), making)
        else:
            raise LenscopeError(f"{path}: grids are saved as .parquet or .json")

    def _head(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "version": FORMAT,
            "model": self.model,
            "n_layers": self.n_layers,
            "width": self.ids.shape[1],
            "sources": [asdict(s) for s in self.sources],
            "targets": [asdict(t) for t in self.targets],
            "measures": {name: self.unit(name) for name in self.measures},
            "vocabulary": {str(i): t for i, t in self.vocabulary.items()},
            "provenance": self.provenance,
        }

    def _columns(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "source": self.source.tolist(),
            "layer": self.layer.tolist(),
            "target": self.target.tolist(),
            "ids": self.ids.tolist(),
            "log_probs": listed(self.log_probs),
        }
        return {**found, **{name: listed(values) for name, values in self.measures.items()}}

    def _rows(self) -> pa.Table:
        def lists(values: np.ndarray) -> pa.Array:
            offsets = np.arange(0, values.size + 1, max(values.shape[1], 1), dtype=np.int32)
            return pa.ListArray.from_arrays(pa.array(offsets), values.reshape(-1))

        sources = [self.sources[n] for n in self.source.tolist()]
        return pa.table(
            {
                "source": pa.array(self.source),
                "source_label": pa.array([s.label for s in sources]).dictionary_encode(),
                "source_layer": pa.array(np.array([s.layer for s in sources], dtype=np.int32)),
                "source_position": pa.array(np.array([s.position for s in sources], dtype=np.int32)),
                "target": pa.array(self.target),
                "layer": pa.array(self.layer),
                "text": pa.array(list(self.texts), type=pa.string()),
                "ended": pa.array(list(self.ended) or [""] * len(self), type=pa.string()).dictionary_encode(),
                "ids": lists(self.ids),
                "log_probs": lists(self.log_probs),
                **{name: pa.array(values) for name, values in self.measures.items()},
            }
        )


def load_grid(path: str | os.PathLike[str]) -> Grid:
    """Read what `Grid.save` wrote, equal to what was saved; LenscopeError if the file is no grid."""
    path = Path(path)
    if not path.is_file():
        raise LenscopeError(f"{path}: no such file")
    try:
        if path.suffix == ".json":
            return Grid.from_json(json.loads(path.read_text(encoding="utf-8")))
        table = pq.read_table(path)
        head = json.loads((table.schema.metadata or {})[b"grid"])
        names = ["source", "layer", "target", *head["measures"]]
        cells = {name: table[name].to_numpy() for name in names}
        for name in ("ids", "log_probs"):
            cells[name] = table[name].combine_chunks().flatten().to_numpy()
        ended = table["ended"].to_pylist()
        return Grid.from_json(
            {
                **head,
                "cells": cells,
                "texts": table["text"].to_pylist(),
                "ended": ended if head["kind"] == "generate" else [],
            }
        )
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
        if isinstance(error, LenscopeError):
            raise
        raise LenscopeError(f"{path}: is not a lenscope grid ({' '.join(str(error).split())[:200]})") from error


def _floats(values: Any) -> np.ndarray:
    return np.array(values, dtype=np.float32)
