"""Results: labelled arrays with their provenance, saved as Parquet or JSON, read back equal.

Knows: what a trajectory and a comparison hold, the units, the file formats.
Does not know: models, drawing.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import torch
from rich.table import Table

from lenscope import measures, tables
from lenscope.errors import LenscopeError
from lenscope.writing import whole_file, write_text

FORMAT = 1

# name → unit, of a trajectory and of a comparison
MEASURES = {
    "max_probability": "probability of the top token, 0–1",
    "entropy": "nats",
    "kl": "nats, KL(final ‖ layer)",
    "cross_entropy": "nats, of the next or the chosen token",
    "rank": "tokens more probable than the next or the chosen one",
}
DISTANCES = {
    "js": "nats, Jensen–Shannon",
    "total_variation": "0–1, half the sum of differences",
    "kl": "nats, KL(first ‖ second)",
    "kl_back": "nats, KL(second ‖ first)",
}


@dataclass(frozen=True, eq=False)
class Trajectory:
    """How a model's prediction forms, layer by layer, at the positions of one prompt.

    Arrays are (L, P) over `layers` and `positions`; `top_ids` and `top_log_probs` (L, P, k), most probable first.
    entropy, kl = KL(final ‖ layer) and cross_entropy are in nats; `rank` counts the tokens strictly more probable
    than the target. The target is each position's next token of the prompt (the last position has none: NaN and -1),
    or one chosen `target` for all. `vocabulary` has the text of every id that occurs.
    """

    text: str
    ids: tuple[int, ...]
    model: str
    lens: str
    n_layers: int
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    target: int | None
    entropy: np.ndarray
    kl: np.ndarray
    max_probability: np.ndarray
    cross_entropy: np.ndarray
    rank: np.ndarray
    top_ids: np.ndarray
    top_log_probs: np.ndarray
    vocabulary: dict[int, str]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Trajectory({self.text!r}: {len(self.layers)} layers × {len(self.positions)} positions, {self.lens})"

    units = MEASURES

    @property
    def tokens(self) -> tuple[str, ...]:
        """The prompt's tokens as text."""
        return tuple(self.vocabulary[i] for i in self.ids)

    @property
    def prediction_depth(self) -> np.ndarray:
        """(P,) the first of `layers` from which on the top token never changes again."""
        index = measures.prediction_depth(torch.from_numpy(self.top_ids[..., 0]))
        return np.array([self.layers[i] for i in index.tolist()])

    def measure(self, name: str) -> np.ndarray:
        """One of the measures by name, (L, P)."""
        check_measure(name, MEASURES)
        return getattr(self, name)

    def table(self, measure: str = "max_probability", *, top_k: int = 1, width: int | None = None) -> Table:
        """Layers × positions for a terminal: the top tokens, coloured by a measure; fits `width` columns if given."""
        return tables.fitted(lambda room: tables.trajectory_table(self, measure, top_k, room), width)

    def to_json(self) -> dict[str, Any]:
        """The trajectory as JSON values: what the web page reads."""
        return {
            "kind": "trajectory",
            "version": FORMAT,
            "prompt": {"text": self.text, "ids": list(self.ids), "tokens": list(self.tokens)},
            "model": self.model,
            "lens": self.lens,
            "n_layers": self.n_layers,
            "layers": list(self.layers),
            "positions": list(self.positions),
            "target": None if self.target is None else {"id": self.target, "token": self.vocabulary[self.target]},
            "measures": {name: listed(getattr(self, name)) for name in MEASURES},
            "prediction_depth": self.prediction_depth.tolist(),
            "top": {"ids": self.top_ids.tolist(), "log_probs": listed(self.top_log_probs)},
            "vocabulary": {str(i): t for i, t in self.vocabulary.items()},
            "provenance": self.provenance,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Trajectory":
        """The inverse of `to_json`."""
        try:
            target = data["target"]
            arrays = {name: _array(data["measures"][name], name) for name in MEASURES}
            return Trajectory(
                text=data["prompt"]["text"],
                ids=tuple(data["prompt"]["ids"]),
                model=data["model"],
                lens=data["lens"],
                n_layers=data["n_layers"],
                layers=tuple(data["layers"]),
                positions=tuple(data["positions"]),
                target=None if target is None else target["id"],
                top_ids=np.array(data["top"]["ids"], dtype=np.int64),
                top_log_probs=_array(data["top"]["log_probs"], "log_probs"),
                vocabulary={int(i): t for i, t in data["vocabulary"].items()},
                provenance=data["provenance"],
                **arrays,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LenscopeError(f"not a trajectory of format {FORMAT}: {type(error).__name__} {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a .parquet file (one row per layer and position) or a .json file."""
        save(self, path)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained page to look at in a browser."""
        from lenscope.web import page

        write_text(Path(path), page([self.to_json()], title=self.text))


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two trajectories compared layer by layer: (L, P) each, over paired positions.

    js and kl (KL(first ‖ second)), kl_back (KL(second ‖ first)) in nats; total_variation 0 … 1; `same_top` whether
    the top token is the same; `positions` pairs a position of the first prompt with one of the second.
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

    @property
    def same_top(self) -> np.ndarray:
        """(L, P) whether both predict the same token first."""
        return self.first.top_ids[..., 0] == self.second.top_ids[..., 0]

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        numbers = {name: listed(getattr(self, name)) for name in DISTANCES}
        return {
            "kind": "comparison",
            "version": FORMAT,
            "layers": list(self.layers),
            "positions": [list(p) for p in self.positions],
            "measures": {**numbers, "same_top": self.same_top.tolist()},
            "first": self.first.to_json(),
            "second": self.second.to_json(),
        }

    def measure(self, name: str) -> np.ndarray:
        """One of the distances by name, (L, P)."""
        check_measure(name, DISTANCES)
        return getattr(self, name)

    def table(self, measure: str = "js", *, width: int | None = None) -> Table:
        """Layers × paired positions for a terminal: both top tokens, coloured by a measure of their distance."""
        return tables.fitted(lambda room: tables.comparison_table(self, measure, room), width)


def check_measure(name: str, known: Iterable[str]) -> None:
    """Raise LenscopeError unless `name` is one of `known`."""
    if name not in known:
        raise LenscopeError(f"measure {name!r}: there are {', '.join(known)}")


def save(results: Trajectory | Sequence[Trajectory], path: str | os.PathLike[str]) -> None:
    """Write one trajectory, or several, to a .parquet or .json file; the file is complete or not there at all.

    Parquet: one row per (result, layer, position); all else is JSON, in the column "head" of a result's first row.
    """
    path = Path(path)
    many = [results] if isinstance(results, Trajectory) else list(results)
    if not many:
        raise LenscopeError(f"{path}: nothing to save")
    if path.suffix == ".json":
        documents = [t.to_json() for t in many]
        write_text(path, json.dumps(documents[0] if isinstance(results, Trajectory) else documents, ensure_ascii=False))
    elif path.suffix == ".parquet":
        rows = pa.concat_tables([as_rows(n, t) for n, t in enumerate(many)])
        with whole_file(path) as making:
            pq.write_table(rows.replace_schema_metadata(metadata(isinstance(results, Trajectory))), making)
    else:
        raise LenscopeError(f"{path}: results are saved as .parquet or .json")


def load_results(path: str | os.PathLike[str]) -> Trajectory | list[Trajectory]:
    """Read what `save` wrote: one trajectory or a list, as it was saved."""
    path = Path(path)
    if not path.is_file():
        raise LenscopeError(f"{path}: no such file")
    try:
        if path.suffix == ".json":
            data = json.loads(path.read_text())
            return [Trajectory.from_json(d) for d in data] if isinstance(data, list) else Trajectory.from_json(data)
        table = pq.read_table(path)
        meta = json.loads((table.schema.metadata or {})[b"lenscope"])
        # version 0.1.0 kept the heads there, too
        heads = meta["results"] if "results" in meta else _heads(table)
        many = [_from_rows(head, table.filter(pa.compute.field("result") == n)) for n, head in enumerate(heads)]
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        if isinstance(error, LenscopeError):
            raise
        raise LenscopeError(f"{path}: is not a lenscope result ({' '.join(str(error).split())[:200]})") from error
    return many[0] if meta["single"] else many


def metadata(single: bool) -> dict[str, str]:
    """The metadata of a Parquet file of trajectories: a list of them, or a `single` one."""
    return {"lenscope": json.dumps({"version": FORMAT, "single": single})}


def as_rows(number: int, t: Trajectory) -> pa.Table:
    """A trajectory as the rows of a Parquet file, the `number`-th in it."""
    head = t.to_json()
    del head["measures"], head["top"], head["prediction_depth"]
    layers, positions, k = t.top_ids.shape
    cells = layers * positions

    def lists(values: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(np.arange(0, cells * k + 1, k, dtype=np.int32)), values.reshape(-1))

    ids = np.array(t.ids)[list(t.positions)]
    return pa.table(
        {
            "result": pa.array(np.full(cells, number, dtype=np.int32)),
            "layer": pa.array(np.repeat(np.array(t.layers, dtype=np.int32), positions)),
            "position": pa.array(np.tile(np.array(t.positions, dtype=np.int32), layers)),
            "token_id": pa.array(np.tile(ids, layers)),
            "token": pa.array([t.vocabulary[i] for i in ids.tolist()] * layers),
            **{name: pa.array(t.measure(name).reshape(-1)) for name in MEASURES},
            "top_ids": lists(t.top_ids),
            "top_log_probs": lists(t.top_log_probs),
            "head": pa.array([json.dumps(head, ensure_ascii=False), *[None] * (cells - 1)], type=pa.string()),
        }
    )


def _heads(table: pa.Table) -> list[dict[str, Any]]:
    """The heads of a file's results, in the order of their numbers."""
    kept = table.select(["result", "head"]).filter(pa.compute.field("head").is_valid()).to_pylist()
    found = {row["result"]: json.loads(row["head"]) for row in kept}
    return [found[n] for n in range(len(found))]


def _from_rows(head: dict[str, Any], rows: pa.Table) -> Trajectory:
    shape = (len(head["layers"]), len(head["positions"]))

    def column(name: str) -> np.ndarray:
        return rows[name].to_numpy().reshape(shape)

    def lists(name: str) -> np.ndarray:
        return rows[name].combine_chunks().flatten().to_numpy().reshape(*shape, -1)

    measured = {name: column(name) for name in MEASURES}
    return Trajectory.from_json(
        {**head, "measures": measured, "top": {"ids": lists("top_ids"), "log_probs": lists("top_log_probs")}}
    )


def listed(values: np.ndarray) -> Any:
    """Nested lists with the shortest decimals that give the same float32 again; NaN as None."""
    if values.dtype.kind in "iu":
        return values.tolist()
    short = values.astype(str).astype(float).astype(object)
    short[~np.isfinite(values)] = None
    return short.tolist()


def _array(values: Any, name: str) -> np.ndarray:
    if name == "rank":
        return np.array(values, dtype=np.int64)
    return np.array(values, dtype=np.float32)
