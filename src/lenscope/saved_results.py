"""Files of results of every kind, read again: equal to what was saved, or one line that says why not.

Knows: which class reads which kind, how the rows of trajectories belong together. Does not know: models, formats.
"""

import json
import os
from typing import Any

import numpy as np

from lenscope.contents import ranks
from lenscope.files import records as resultfiles
from lenscope.interventions.effects import Effects
from lenscope.lenses.comparison import Comparison
from lenscope.lenses.evaluation_results import Evaluation, Transfer
from lenscope.lenses.trajectory import MEASURES, Trajectory
from lenscope.patchscopes.grid import Grid

_DOCUMENTS: dict[str, Any] = {
    "trajectory": Trajectory,
    "comparison": Comparison,
    "grid": Grid,
    "effects": Effects,
    "evaluation": Evaluation,
    "transfer": Transfer,
}


def load_results(path: str | os.PathLike[str]) -> Any:
    """Read what `save` or the `save` of any result wrote, equal to what was saved.

    That is a Trajectory or a list of them (as it was saved), a Comparison, Grid, Effects, Evaluation or Transfer. The
    rows of a Parquet file may be in any order. Raises LenscopeError for a file of something else, whose loader it
    names, and for one that is damaged or holds values that no result has.
    """
    data, columns = resultfiles.load(path, tuple(_DOCUMENTS))
    if isinstance(data, list):
        with resultfiles.opening(path, "is no result that lenscope saved"):
            return [Trajectory.from_json(d) for d in data]
    kind = "trajectory" if "kind" not in data else resultfiles.kind(data)
    with resultfiles.opening(path, "is no result that lenscope saved"):
        if columns is None:
            return _DOCUMENTS[kind].from_json(data)
        return _trajectories(data, columns) if kind == "trajectory" else _DOCUMENTS[kind].from_columns(data, columns)


def _trajectories(data: dict[str, Any], columns: dict[str, Any]) -> Trajectory | list[Trajectory]:
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
    columns = resultfiles.arranged(columns, resultfiles.matched(columns, wanted))
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    found = [_from_rows(h, resultfiles.arranged(columns, rows)) for h, rows in zip(heads, parts, strict=True)]
    if data["single"] is not (len(found) == 1) and data["single"] is not False:
        raise ValueError(f"it holds {len(found)} results, and says that it holds one")
    return found[0] if data["single"] else found


def _heads(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """The heads of a file's results, in the order of their numbers."""
    told = zip(columns["result"].tolist(), columns[resultfiles.HEAD], strict=True)
    found = {number: json.loads(head) for number, head in told if head}
    return [found[n] for n in range(len(found))]


def _from_rows(head: dict[str, Any], columns: dict[str, Any]) -> Trajectory:
    """A trajectory of its head and its rows in order."""
    shape = (len(head["layers"]), len(head["positions"]))
    head = resultfiles.checked(head, {n: c for n, c in columns.items() if n not in ("result", resultfiles.HEAD)})
    lengths, ids = columns["top_ids"]
    others, log_probs = columns["top_log_probs"]
    if len({*lengths.tolist(), *others.tolist()}) != 1:
        raise ValueError("top ids: are not equally many in all rows")
    at = (*shape, int(lengths[0]))
    measured = {name: columns[name].reshape(shape) for name in MEASURES}
    top = {"ids": ids.reshape(at), "log_probs": log_probs.reshape(at)}
    made = Trajectory.from_json({**head, "measures": {**measured, "rank": ranks(measured["rank"])}, "top": top})
    if columns["token_id"].tolist() != [made.ids[p] for p in made.positions] * shape[0]:
        raise ValueError("token ids: are not those of the prompt")
    return made
