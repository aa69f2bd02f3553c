"""Trajectories: how a model's prediction forms, layer by layer, with units and provenance.

Knows: what a trajectory holds, what of it files hold, the rows of a file of several, which of it a table shows.
Does not know: models, how anything is measured.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
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
from lenscope.display.payload import packed, vocabulary_payload
from lenscope.display.tables import TableColumn, fit_to_width
from lenscope.errors import LenscopeError
from lenscope.files.digests import FORMAT, Column, stamped
from lenscope.files.json_values import (
    check_most_probable,
    check_within,
    float_array,
    layer_numbers,
    object_value,
    shaped,
    text_value,
    vocabulary_value,
    whole_array,
    whole_number,
    whole_numbers,
)
from lenscope.files.parquet_tables import (
    HEAD,
    columns_of,
    list_column,
    number_column,
    repeated_text,
    text_column,
    write_parquet,
)
from lenscope.files.records import Lists, Record, check_measure, document_of, write_json
from lenscope.lenses.lens_reports import HELD_OUT, UNTRUSTED, doubts_in_words, doubts_of, doubts_payload
from lenscope.lenses.trajectory_rows import documents_of_rows
from lenscope.measures import definitions as measures

# name → unit, of a trajectory and of a comparison
MEASURES = {
    "max_probability": "probability of the top token, 0–1",
    "entropy": "nats",
    "kl": "nats, KL(final ‖ layer)",
    "cross_entropy": "nats, of the next or the chosen token",
    "rank": "tokens more probable than the next or the chosen one",
}


# where within the block that makes a layer its state was read, in words
POINTS = {"block": "", "attention": "after attention", "mlp": "after the MLP"}


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory(Record, Drawn):
    """What a model would predict at each layer and position of one prompt. `Lens.trajectory` makes it.

    Arrays have a row for each of `layers` and a column for each of `positions`, (L, P). `top_ids` and `top_log_probs`
    (L, P, k) are the most probable tokens, best first, `max_probability` the best one's probability. `entropy`, `kl`
    (KL(final ‖ layer)) and `cross_entropy` (of the target) are in nats; `rank` counts the tokens more probable than the
    target. The target is `target`, or where that is None each position's next token of the prompt; the last position
    has none (NaN and -1). `final` (P,) are the model's own next tokens; None where the last of `layers` has them.
    `vocabulary` has the text of every id. `points` says where in the block that makes a layer its state was read: at
    its end ("block"), or within, after "attention" or "mlp".
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
    points: str = "block"

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else self.text[:57] + "…"
        return f"Trajectory({text!r}: {len(self.layers)} layers × {len(self.positions)} positions, {self.read_by})"

    @property
    def read_by(self) -> str:
        """The lens, and where in a block it read if not at its end, in words."""
        return f"{self.lens} {POINTS[self.points]}".rstrip()

    units = MEASURES
    file_kind, file_mark, in_lists = "trajectory", "lenscope", True

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
        """Give one of the measures by name, (L, P)."""
        check_measure(name, MEASURES)
        return getattr(self, name)

    @property
    def doubts(self) -> dict[int, str]:
        """Those of `layers` at which the lens is not to be trusted, by its report, and why: {layer: words}."""
        known = doubts_of(self.provenance)
        return {layer: known[layer] for layer in self.layers if layer in known}

    def table(self, measure: str = "max_probability", *, top_k: int = 1, width: int | None = None) -> Table:
        """Show the top tokens, layers × positions, as a table for a terminal, coloured by a measure.

        Layers at which the lens is not to be trusted are grey, with a mark; a line below says why.
        """
        return fit_to_width(lambda room: self._drawn(measure, top_k, room), width)

    def _drawn(self, measure: str, top_k: int, width: int | None) -> Table:
        """Layers (last on top) × positions, each cell its top tokens; the prompt's tokens head the columns.

        Columns that do not fit `width` are left out from the start of the prompt, and the caption says so.
        """
        values, doubts = self.measure(measure), self.doubts
        shown, size = fit_columns(len(self.positions), len(str(self.n_layers)) + bool(doubts), width)
        caption = with_doubts(self.colours(measure, values, len(shown)), doubts_in_words(doubts))
        return self.heat(measure, top_k, shown, size, shades_of(values, measure), caption)

    def heat(self, measure: str, top_k: int, shown: range, size: int, shades: np.ndarray, caption: str = "") -> Table:
        """Give the table for a terminal of some columns, `size` wide each, whose cells shades (L, P) colour."""
        if not 1 <= top_k <= self.top_ids.shape[2]:
            raise LenscopeError(f"top_k {top_k}: this trajectory has the {self.top_ids.shape[2]} most probable tokens")
        tokens = [self.vocabulary[self.ids[self.positions[n]]] for n in shown]
        return heat_table(
            [TableColumn(visible.printable_token(token, size), width=size) for token in tokens],
            [str(layer) for layer in self.layers],
            [[self._cell(row, n, measure, top_k, size) for n in shown] for row in range(len(self.layers))],
            shades[:, shown.start : shown.stop],
            caption,
            bold=self._stays()[:, shown.start : shown.stop],
            corner="layer" if max(self.layers) > 99 else "",
            doubted=[layer in self.doubts for layer in self.layers],
        )

    def colours(self, measure: str, values: np.ndarray, shown: int) -> str:
        """Say what the colours of values mean in a table that shows so many of the positions."""
        note = "bold: the top token stays to the end"
        note = f"{POINTS[self.points]} of each block; {note}" if POINTS[self.points] else note
        return colour_caption(measure, values, len(self.positions) - shown, self.units[measure], note)

    def _stays(self) -> np.ndarray:
        """(L, P) where the top token is the one that the model predicts, and is so at all later layers too."""
        depth = self.prediction_depth
        stays = np.array([(depth >= 0) & (depth <= layer) for layer in self.layers])
        return stays if self.final is None else stays & (self.top_ids[..., 0] == np.array(self.final))

    def _cell(self, row: int, column: int, measure: str, top_k: int, size: int) -> str:
        tokens = [self.vocabulary[int(i)] for i in self.top_ids[row, column, :top_k]]
        if top_k == 1:
            return token_and_figure(tokens[0], self.measure(measure)[row, column], measure, size)
        shares = np.exp(self.top_log_probs[row, column, :top_k])
        return "\n".join(
            token_and_figure(t, float(p), "max_probability", size) for t, p in zip(tokens, shares, strict=True)
        )

    def figure(self, measure: str = "max_probability") -> Figure:
        """Draw the top tokens, layers × positions, coloured by a measure; bold where they stay to the end."""
        values, bold = self.measure(measure), self._stays()
        names = token_names([self.vocabulary[self.ids[p]] for p in self.positions])
        top = [token_names([self.vocabulary.get(i, "") for i in row]) for row in self.top_ids[..., 0].tolist()]
        title, axes = f"{self.read_by}, {self.model}", ("token", "layer")
        doubted, why = [layer in self.doubts for layer in self.layers], doubts_in_words(self.doubts)
        unit = self.units[measure]
        drawn = measure_map(title, axes, names, self.layers, values, measure, unit, top, bold, doubted, why)
        return Figure(f"trajectory {measure}", [drawn])

    def _document(self, lists: Lists) -> dict[str, Any]:
        ranks = lists(self.rank.astype(object))
        return {
            "kind": "trajectory",
            "version": FORMAT,
            "prompt": {"text": self.text, "ids": list(self.ids), "tokens": list(self.tokens)},
            "model": self.model,
            "lens": self.lens,
            "points": self.points,
            "n_layers": self.n_layers,
            "layers": list(self.layers),
            "positions": list(self.positions),
            "target": None if self.target is None else {"id": self.target, "token": self.vocabulary[self.target]},
            "measures": {name: ranks if name == "rank" else lists(getattr(self, name)) for name in MEASURES},
            "prediction_depth": [None if depth < 0 else depth for depth in self.prediction_depth.tolist()],
            "final": None if self.final is None else list(self.final),
            "top": {"ids": self.top_ids.tolist(), "log_probs": lists(self.top_log_probs)},
            "vocabulary": {str(i): t for i, t in self.vocabulary.items()},
            "provenance": self.provenance,
        }

    @classmethod
    def _from_document(cls, data: dict[str, Any]) -> "Trajectory":
        target, prompt = data["target"], data["prompt"]
        layers, positions = tuple(data["layers"]), tuple(data["positions"])
        shape = (len(layers), len(positions))
        top = whole_array(data["top"]["ids"], "top ids")
        floats = {n: float_array(data["measures"][n], n.replace("_", " "), shape) for n in MEASURES if n != "rank"}
        trajectory = Trajectory(
            text=text_value(prompt["text"], "text"),
            ids=whole_numbers(prompt["ids"], "ids"),
            model=text_value(data["model"], "model"),
            lens=text_value(data["lens"], "lens"),
            n_layers=whole_number(data["n_layers"], "n_layers"),
            layers=layers,
            positions=positions,
            target=None if target is None else whole_number(target["id"], "target"),
            rank=whole_array(data["measures"]["rank"], "rank", shape),
            top_ids=shaped(top, "top ids", (*shape, top.shape[-1])),
            top_log_probs=float_array(data["top"]["log_probs"], "log-probabilities", top.shape),
            vocabulary=vocabulary_value(data["vocabulary"]),
            provenance=object_value(data["provenance"], "provenance"),
            final=None if data.get("final") is None else whole_numbers(data["final"], "final", 0),
            points=text_value(data.get("points", "block"), "points"),
            **floats,
        )
        trajectory._check()
        return trajectory

    def _check(self) -> None:
        """ValueError for values that `Lens.trajectory` never gives."""
        if self.points not in POINTS or (self.points != "block" and self.final is None):
            raise ValueError(f"points {self.points[:40]}: are none of a block, or without the model's own tokens")
        layer_numbers(self.layers, self.n_layers, int(self.points != "block"))
        whole_numbers(self.positions, "positions", 0, len(self.ids) - 1)
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
            check_within(getattr(self, name), name.replace("_", " "), 0.0, high)
        check_within(self.rank, "rank", -1, slack=0)
        check_within(self.top_log_probs, "log-probabilities", high=0.0)
        check_most_probable(self.top_log_probs[~unknown], self.max_probability[~unknown])
        has_target = np.array([self.target is not None or p + 1 < len(self.ids) for p in self.positions], dtype=bool)
        targeted = np.broadcast_to(has_target, cells)
        if ((self.rank >= 0) & ~targeted).any() or (~np.isnan(self.cross_entropy) & ~targeted).any():
            raise ValueError("rank: is known where there is no next token")
        if ((self.rank < 0) & targeted & ~np.isnan(self.cross_entropy) & ~unknown).any():
            raise ValueError("rank: is not known where the cross-entropy is")
        check_within((self.rank == 0) * np.abs(np.exp(-self.cross_entropy) - self.max_probability), "rank", 0, 1e-2)

    def _head(self, lists: Lists) -> dict[str, Any]:
        rows = ("measures", "top", "prediction_depth")
        return {name: value for name, value in self._document(lists).items() if name not in rows}

    @classmethod
    def _from_columns(cls, head: dict[str, Any], columns: dict[str, Column]) -> "Trajectory | list[Trajectory]":
        trajectories = [Trajectory.from_json(document) for document in documents_of_rows(head, columns, [*MEASURES])]
        if head["single"] is not (len(trajectories) == 1) and head["single"] is not False:
            raise ValueError(f"it holds {len(trajectories)} results, and says that it holds one")
        return trajectories[0] if head["single"] else trajectories

    def _parquet(self) -> tuple[pa.Table, dict[str, str]]:
        return file_rows(0, self), file_metadata(True)

    def _rows(self) -> pa.Table:
        layers, positions, k = self.top_ids.shape
        cells = layers * positions
        ids = np.array(self.ids)[list(self.positions)]
        top = self.top_ids.reshape(cells, k)
        rank = self.rank.reshape(-1)
        return pa.table(
            {
                "prompt": repeated_text(self.text, cells),
                "model": repeated_text(self.model, cells),
                "lens": repeated_text(self.lens, cells),
                "layer": pa.array(np.repeat(np.array(self.layers, dtype=np.int32), positions)),
                "position": pa.array(np.tile(np.array(self.positions, dtype=np.int32), layers)),
                "token_id": pa.array(np.tile(ids, layers)),
                "token": text_column([self.vocabulary[i] for i in ids.tolist()] * layers),
                "top_token": text_column([self.vocabulary.get(i, "") for i in top[:, 0].tolist()]),
                **{name: number_column(self.measure(name).reshape(-1)) for name in MEASURES if name != "rank"},
                "rank": pa.array(rank, mask=rank < 0),
                "top_ids": list_column(np.full(cells, k), self.top_ids.reshape(-1)),
                "top_log_probs": list_column(np.full(cells, k), self.top_log_probs.reshape(-1)),
            }
        )

    def page_data(self) -> dict[str, Any]:
        """Give what a page draws of it: the head, and its arrays (L, P) and (L, P, k) in a compressed block."""
        provenance = dict(self.provenance)
        held_out, doubts = provenance.pop(HELD_OUT, None), self.doubts
        provenance.pop(UNTRUSTED, None)
        chosen = [] if self.target is None else [self.target]
        return packed(
            {
                "kind": "trajectory",
                "text": self.text,
                "model": self.model,
                "lens": self.read_by,
                "n_layers": self.n_layers,
                "layers": list(self.layers),
                "positions": list(self.positions),
                "ids": list(self.ids),
                "target": self.target,
                "vocabulary": vocabulary_payload(
                    self.vocabulary, {*self.ids, *chosen, *np.unique(self.top_ids).tolist()}
                ),
                "depth": [None if depth < 0 else depth for depth in self.prediction_depth.tolist()],
                "final": None if self.final is None else list(self.final),
                "measures": dict(MEASURES),
                "provenance": provenance,
                "held_out_kl": held_out,
                "doubts": doubts_payload(doubts),
            },
            {
                **{name: self.measure(name) for name in MEASURES},
                "top_ids": self.top_ids,
                "top_log_probs": self.top_log_probs,
            },
        )


def save(results: Trajectory | Sequence[Trajectory], path: str | os.PathLike[str]) -> None:
    """Save one trajectory, or several, to a .parquet or .json file; the file is complete or not there at all.

    Parquet: one row per (result, layer, position); all else is JSON, in the column "head" of a result's first row. What
    is not known is null. Both hold digests of their contents, which loading checks.
    """
    if isinstance(results, Trajectory):
        results.save(path)
        return
    trajectories = list(results)
    if not trajectories:
        raise LenscopeError(f"{os.fspath(path)}: nothing to save")
    if Path(path).suffix == ".parquet":
        rows = pa.concat_tables([file_rows(n, t) for n, t in enumerate(trajectories)])
        write_parquet(path, rows, file_metadata(False))
    else:
        write_json(path, [document_of(t) for t in trajectories])


def file_metadata(single: bool) -> dict[str, str]:
    """The metadata of a Parquet file of trajectories: a list of them, or a `single` one."""
    return {Trajectory.file_mark: json.dumps({"version": FORMAT, "single": single})}


def file_rows(number: int, trajectory: Trajectory, more: Mapping[str, pa.Array] | None = None) -> pa.Table:
    """A trajectory as the rows of a Parquet file, the `number`-th in it, with `more` columns; its head in the first."""
    rows = trajectory._rows()
    for name, column in (more or {}).items():
        rows = rows.append_column(name, column)
    # where rows stand in a file is not what they say
    head = json.dumps(stamped(trajectory._head(lambda _: None), columns_of(rows)), ensure_ascii=False)
    rows = rows.add_column(0, "result", pa.array(np.full(len(rows), number, dtype=np.int32)))
    return rows.append_column(HEAD, pa.array([head, *[None] * (len(rows) - 1)], type=pa.string()))
