"""The rows of a Parquet file of trajectories, read again: whatever their order, as the documents that they were.

Knows: which rows are whose, in which order they stood. Does not know: what a trajectory is, how rows are written.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lenscope.files.digests import Column, unstamped
from lenscope.files.json_values import whole_ranks
from lenscope.files.parquet_tables import HEAD, reordered, row_order


def documents_of_rows(
    data: dict[str, Any], columns: dict[str, Column], measures: Sequence[str]
) -> list[dict[str, Any]]:
    """The documents of a file's results, with arrays in place of lists; `data` is the file's own head."""
    # version 0.1.0 kept all heads in the file's metadata
    heads = data["results"] if data["version"] == 1 and "results" in data else _heads(columns)
    sizes = [len(head["layers"]) * len(head["positions"]) for head in heads]
    if not heads or sum(sizes) != len(columns["result"]):
        raise ValueError(f"it has {len(columns['result'])} rows, where it should have {sum(sizes)}")
    wanted = {
        "result": np.repeat(np.arange(len(heads)), sizes),
        "layer": np.concatenate([np.repeat(h["layers"], len(h["positions"])) for h in heads]),
        "position": np.concatenate([np.tile(h["positions"], len(h["layers"])) for h in heads]),
    }
    columns = reordered(columns, row_order(columns, wanted))
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    return [_document_of_own(h, reordered(columns, rows), measures) for h, rows in zip(heads, parts, strict=True)]


def _heads(columns: dict[str, Column]) -> list[dict[str, Any]]:
    """The heads of a file's results, in the order of their numbers."""
    rows = zip(columns["result"].tolist(), columns[HEAD], strict=True)
    heads = {number: json.loads(head) for number, head in rows if head}
    return [heads[n] for n in range(len(heads))]


def _document_of_own(head: dict[str, Any], columns: dict[str, Column], names: Sequence[str]) -> dict[str, Any]:
    """The document of one result, of its head and its rows in order."""
    shape = (len(head["layers"]), len(head["positions"]))
    head = unstamped(head, {n: c for n, c in columns.items() if n not in ("result", HEAD)})
    lengths, ids = columns["top_ids"]
    others, log_probs = columns["top_log_probs"]
    if len({*lengths.tolist(), *others.tolist()}) != 1:
        raise ValueError("top ids: are not equally many in all rows")
    at = (*shape, int(lengths[0]))
    measures = {name: columns[name].reshape(shape) for name in names}
    measures["rank"] = whole_ranks(measures["rank"])
    if columns["token_id"].tolist() != [head["prompt"]["ids"][p] for p in head["positions"]] * shape[0]:
        raise ValueError("token ids: are not those of the prompt")
    return {**head, "measures": measures, "top": {"ids": ids.reshape(at), "log_probs": log_probs.reshape(at)}}
