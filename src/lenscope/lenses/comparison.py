"""lenses.comparison"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table

from lenscope import contents
from lenscope.contents import exactly, listed
from lenscope.display import heat_table as tables
from lenscope.errors import LenscopeError
from lenscope.files import records as resultfiles
from lenscope.files.untrusted import reading
from lenscope.lenses.trajectory import FORMAT, Trajectory, check_measure

DISTANCES = {
    "js": "nats, Jensen–Shannon",
    "total_variation": "0–1, half the sum of differences",
    "kl": "nats, KL(first ‖ second)",
    "kl_back": "nats, KL(second ‖ first)",
}


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(contents.Compared):
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

    def __repr__(self) -> str:
        texts = [t if len(t) <= 30 else t[:27] + "…" for t in self.texts]
        size = f"{len(self.layers)} layers × {len(self.positions)} positions"
        return f"Comparison({texts[0]!r} and {texts[1]!r}: {size}, {self.lenses[0]} and {self.lenses[1]})"

    @property
    def same_top(self) -> np.ndarray:
        """(L, P) whether both predict the same token first."""
        return self.first.top_ids[..., 0] == self.second.top_ids[..., 0]

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return resultfiles.sealed(self._document(listed))

    def _document(self, values: Any) -> dict[str, Any]:
        numbers = {name: values(getattr(self, name)) for name in DISTANCES}
        return {
            "kind": "comparison",
            "version": FORMAT,
            "layers": list(self.layers),
            "positions": [list(p) for p in self.positions],
            "measures": {**numbers, "same_top": self.same_top.tolist()},
            "first": self.first._document(values),
            "second": self.second._document(values),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Comparison":
        """The inverse of `to_json`. Raises LenscopeError for values that no comparison has."""
        with reading("data", f"is no comparison of format {FORMAT}"):
            first, second = (Trajectory.from_json(data[side]) for side in ("first", "second"))
            shape = first.entropy.shape
            made = Comparison(
                texts=(first.text, second.text),
                lenses=(first.lens, second.lens),
                models=(first.model, second.model),
                layers=contents.numbers(data["layers"], "layers"),
                positions=tuple((a, b) for a, b in data["positions"]),
                first=first,
                second=second,
                **{name: contents.float_array(data["measures"][name], name, shape) for name in DISTANCES},
            )
            pairs = tuple(zip(first.positions, second.positions, strict=True))
            if made.layers != first.layers or made.layers != second.layers or made.positions != pairs:
                raise ValueError("its layers or positions are not those of its trajectories")
            if data["measures"]["same_top"] != made.same_top.tolist():
                raise ValueError("same top: is not what its trajectories say")
            for name, high in (("js", np.log(2)), ("total_variation", 1.0), ("kl", np.inf), ("kl_back", np.inf)):
                contents.within(getattr(made, name), name.replace("_", " "), 0.0, high)
            return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a .json file, whole or not at all; `to_dataframe` gives the numbers as rows."""
        if not os.fspath(path).endswith(".json"):
            raise LenscopeError(f"{os.fspath(path)}: comparisons are saved as .json")
        resultfiles.save_json(path, resultfiles.sealed(self._document(exactly)))

    def to_dataframe(self) -> Any:
        """A pandas.DataFrame with a row per layer and pair of positions; needs pandas."""
        layers, pairs = len(self.layers), len(self.positions)
        columns: dict[str, Any] = {"layer": np.repeat(self.layers, pairs)}
        for n, side in enumerate((self.first, self.second)):
            end = ("first", "second")[n]
            columns[f"prompt_{end}"] = [side.text] * layers * pairs
            columns[f"model_{end}"] = [side.model] * layers * pairs
            columns[f"lens_{end}"] = [side.lens] * layers * pairs
            columns[f"position_{end}"] = np.tile([p[n] for p in self.positions], layers)
            columns[f"token_{end}"] = [side.vocabulary[side.ids[p[n]]] for p in self.positions] * layers
            columns[f"top_token_{end}"] = [side.vocabulary.get(i, "") for i in side.top_ids[..., 0].flat]
        columns |= {name: resultfiles.numeric(getattr(self, name).reshape(-1)) for name in DISTANCES}
        return resultfiles.data_frame(pa.table({**columns, "same_top": self.same_top.reshape(-1)}))

    def measure(self, name: str) -> np.ndarray:
        """One of the distances by name, (L, P)."""
        check_measure(name, DISTANCES)
        return getattr(self, name)

    def table(self, measure: str = "js", *, width: int | None = None) -> Table:
        """Layers × paired positions for a terminal: both top tokens, coloured by a measure of their distance."""
        return tables.fitted(lambda room: tables.comparison_table(self, measure, room), width)
