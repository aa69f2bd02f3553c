"""Results: labelled arrays with their provenance, saved as Parquet or JSON, read back equal.

Knows: what a trajectory and a comparison hold, the units, the file formats.
Does not know: models, drawing.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.table import Table

from lenscope import contents
from lenscope.contents import exactly, listed
from lenscope.display import heat_table as tables
from lenscope.errors import LenscopeError
from lenscope.files import records as resultfiles
from lenscope.files.untrusted import reading
from lenscope.files.writing import write_text
from lenscope.measures import definitions as measures

FORMAT = resultfiles.VERSION

# name → unit, of a trajectory and of a comparison
MEASURES = {
    "max_probability": "probability of the top token, 0–1",
    "entropy": "nats",
    "kl": "nats, KL(final ‖ layer)",
    "cross_entropy": "nats, of the next or the chosen token",
    "rank": "tokens more probable than the next or the chosen one",
}


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory(contents.Compared):
    """How a model's prediction forms, layer by layer, at the positions of one prompt.

    Arrays are (L, P) over `layers` and `positions`; `top_ids` and `top_log_probs` (L, P, k), most probable first.
    entropy, kl = KL(final ‖ layer) and cross_entropy are in nats; `rank` counts the tokens strictly more probable
    than the target. The target is each position's next token of the prompt (the last position has none: NaN and -1),
    or one chosen `target` for all. `vocabulary` has the text of every id that occurs. `final` (P,) are the model's own
    next tokens; None where they are those of the last of `layers`.
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
    final: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else self.text[:57] + "…"
        return f"Trajectory({text!r}: {len(self.layers)} layers × {len(self.positions)} positions, {self.lens})"

    units = MEASURES

    @property
    def tokens(self) -> tuple[str, ...]:
        """The prompt's tokens as text."""
        return tuple(self.vocabulary[i] for i in self.ids)

    @property
    def prediction_depth(self) -> np.ndarray:
        """(P,) the first of `layers` from which on the top token is the one that the model itself predicts.

        n_layers where that is none of them; -1 where it is not known what the model predicts: in files of version 0.1.0
        without the last layer.
        """
        if self.final is None and self.layers[-1] != self.n_layers:
            return np.full(len(self.positions), -1)
        top = self.top_ids[..., 0]
        own = top[-1] if self.final is None else np.array(self.final)
        index = measures.prediction_depth(torch.from_numpy(np.concatenate([top, own[None]])))
        return np.array([[*self.layers, self.n_layers][i] for i in index.tolist()])

    def measure(self, name: str) -> np.ndarray:
        """One of the measures by name, (L, P)."""
        check_measure(name, MEASURES)
        return getattr(self, name)

    def table(self, measure: str = "max_probability", *, top_k: int = 1, width: int | None = None) -> Table:
        """Layers × positions for a terminal: the top tokens, coloured by a measure; fits `width` columns if given."""
        return tables.fitted(lambda room: tables.trajectory_table(self, measure, top_k, room), width)

    def to_json(self) -> dict[str, Any]:
        """The trajectory as JSON values, null being what is not known: what the web page reads."""
        return resultfiles.sealed(self._document(listed))

    def _document(self, values: Any) -> dict[str, Any]:
        ranks = values(self.rank.astype(object))
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
            "measures": {name: ranks if name == "rank" else values(getattr(self, name)) for name in MEASURES},
            "prediction_depth": [None if depth < 0 else depth for depth in self.prediction_depth.tolist()],
            "final": None if self.final is None else list(self.final),
            "top": {"ids": self.top_ids.tolist(), "log_probs": values(self.top_log_probs)},
            "vocabulary": {str(i): t for i, t in self.vocabulary.items()},
            "provenance": self.provenance,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Trajectory":
        """The inverse of `to_json`. Raises LenscopeError for values that no trajectory has."""
        with reading("data", f"is no trajectory of format {FORMAT}"):
            target, prompt = data["target"], data["prompt"]
            layers, positions = tuple(data["layers"]), tuple(data["positions"])
            shape = (len(layers), len(positions))
            top = contents.whole_array(data["top"]["ids"], "top ids")
            floats = {
                n: contents.float_array(data["measures"][n], n.replace("_", " "), shape)
                for n in MEASURES
                if n != "rank"
            }
            made = Trajectory(
                text=contents.text(prompt["text"], "text"),
                ids=contents.numbers(prompt["ids"], "ids"),
                model=contents.text(data["model"], "model"),
                lens=contents.text(data["lens"], "lens"),
                n_layers=contents.whole(data["n_layers"], "n_layers"),
                layers=layers,
                positions=positions,
                target=None if target is None else contents.whole(target["id"], "target"),
                rank=contents.whole_array(data["measures"]["rank"], "rank", shape),
                top_ids=contents.shaped(top, "top ids", (*shape, top.shape[-1])),
                top_log_probs=contents.float_array(data["top"]["log_probs"], "log-probabilities", top.shape),
                vocabulary={int(i): contents.text(t, "vocabulary") for i, t in data["vocabulary"].items()},
                provenance=contents.mapping(data["provenance"], "provenance"),
                final=None if data.get("final") is None else contents.numbers(data["final"], "final", 0),
                **floats,
            )
            made._check()
            return made

    def _check(self) -> None:
        """ValueError for values that `Lens.trajectory` never gives."""
        contents.layers(self.layers, self.n_layers)
        contents.numbers(self.positions, "positions", 0, len(self.ids) - 1)
        if self.final is not None and len(self.final) != len(self.positions):
            raise ValueError(f"final: has {len(self.final)} tokens for {len(self.positions)} positions")
        cells = self.top_ids.shape[:2]
        unknown = np.isnan(self.entropy) | np.isnan(self.max_probability)
        known = self.top_ids[~unknown]
        if not self.top_ids.shape[2]:
            raise ValueError("top ids: there are none")
        lacking = {*self.ids, *np.unique(known).tolist(), *([] if self.target is None else [self.target])}
        lacking -= self.vocabulary.keys()
        if lacking:
            raise ValueError(f"vocabulary: has no text of token {min(lacking)}")
        for name, high in (("entropy", np.inf), ("kl", np.inf), ("cross_entropy", np.inf), ("max_probability", 1.0)):
            contents.within(getattr(self, name), name.replace("_", " "), 0.0, high)
        contents.within(self.rank, "rank", -1, slack=0)
        contents.within(self.top_log_probs, "log-probabilities", high=0.0)
        contents.best(self.top_log_probs[~unknown], self.max_probability[~unknown])
        has_target = np.array([self.target is not None or p + 1 < len(self.ids) for p in self.positions], dtype=bool)
        targeted = np.broadcast_to(has_target, cells)
        if ((self.rank >= 0) & ~targeted).any() or (~np.isnan(self.cross_entropy) & ~targeted).any():
            raise ValueError("rank: is known where there is no next token")
        if ((self.rank < 0) & targeted & ~np.isnan(self.cross_entropy) & ~unknown).any():
            raise ValueError("rank: is not known where the cross-entropy is")
        contents.within((self.rank == 0) * np.abs(np.exp(-self.cross_entropy) - self.max_probability), "rank", 0, 1e-2)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a .parquet file (one row per layer and position) or a .json file."""
        save(self, path)

    def to_dataframe(self) -> Any:
        """A pandas.DataFrame with a row per layer and position, as the Parquet file has them; needs pandas."""
        return resultfiles.data_frame(_rows(0, self).drop_columns(["result"]))

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained page to look at in a browser."""
        from lenscope.display.page import page

        write_text(path, page([self.to_json()], title=self.text))


def check_measure(name: str, known: Iterable[str]) -> None:
    """Raise LenscopeError unless `name` is one of `known`."""
    if name not in known:
        raise LenscopeError(f"measure {name!r}: there are {', '.join(known)}")


def save(results: Trajectory | Sequence[Trajectory], path: str | os.PathLike[str]) -> None:
    """Write one trajectory, or several, to a .parquet or .json file; the file is complete or not there at all.

    Parquet: one row per (result, layer, position); all else is JSON, in the column "head" of a result's first row. What
    is not known is null. Both hold digests of their contents, which loading checks.
    """
    single = isinstance(results, Trajectory)
    many = [results] if isinstance(results, Trajectory) else list(results)
    if not many:
        raise LenscopeError(f"{os.fspath(path)}: nothing to save")
    if os.fspath(path).endswith(".parquet"):
        rows = pa.concat_tables([as_rows(n, t) for n, t in enumerate(many)])
        resultfiles.save_table(path, rows, metadata(single))
    else:
        documents = [as_document(t) for t in many]
        resultfiles.save_json(path, documents[0] if single else documents)


def metadata(single: bool) -> dict[str, str]:
    """The metadata of a Parquet file of trajectories: a list of them, or a `single` one."""
    return {"lenscope": json.dumps({"version": FORMAT, "single": single})}


def as_document(t: Trajectory) -> dict[str, Any]:
    """A trajectory as the JSON object of a file, with the digest of its contents; nothing of it is lost."""
    return resultfiles.sealed(t._document(exactly))


def as_rows(number: int, t: Trajectory) -> pa.Table:
    """A trajectory as the rows of a Parquet file, the `number`-th in it."""
    rows = _rows(number, t)
    head = t._document(lambda _: None)
    del head["measures"], head["top"], head["prediction_depth"]
    # where rows stand in a file is not what they say
    told = json.dumps(resultfiles.stamped(head, rows.drop_columns(["result"])), ensure_ascii=False)
    return rows.append_column(resultfiles.HEAD, pa.array([told, *[None] * (len(rows) - 1)], type=pa.string()))


def _rows(number: int, t: Trajectory) -> pa.Table:
    layers, positions, k = t.top_ids.shape
    cells = layers * positions
    ids = np.array(t.ids)[list(t.positions)]
    top = t.top_ids.reshape(cells, k)
    rank = t.rank.reshape(-1)

    def texts(values: Sequence[str]) -> pa.Array:
        return pa.array(values, type=pa.string())

    return pa.table(
        {
            "result": pa.array(np.full(cells, number, dtype=np.int32)),
            "prompt": texts([t.text] * cells),
            "model": texts([t.model] * cells),
            "lens": texts([t.lens] * cells),
            "layer": pa.array(np.repeat(np.array(t.layers, dtype=np.int32), positions)),
            "position": pa.array(np.tile(np.array(t.positions, dtype=np.int32), layers)),
            "token_id": pa.array(np.tile(ids, layers)),
            "token": texts([t.vocabulary[i] for i in ids.tolist()] * layers),
            "top_token": texts([t.vocabulary.get(i, "") for i in top[:, 0].tolist()]),
            **{name: resultfiles.numeric(t.measure(name).reshape(-1)) for name in MEASURES if name != "rank"},
            "rank": pa.array(rank, mask=rank < 0),
            "top_ids": resultfiles.lists(np.full(cells, k), t.top_ids.reshape(-1)),
            "top_log_probs": resultfiles.lists(np.full(cells, k), t.top_log_probs.reshape(-1)),
        }
    )
