"""A sweep in its folder: what of it is done, and its rows as one data set.

Knows: manifests and parts. Does not know: models, how rows are run.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from rich.table import Table

from lenscope.display.tables import TableColumn, dim, plain_table
from lenscope.errors import LenscopeError, naming_place
from lenscope.files.parquet_tables import data_frame
from lenscope.files.untrusted import escaped
from lenscope.sweeps.listed_prompts import file_digest
from lenscope.sweeps.manifest import listed_parts, read_manifest, require_same_sweep
from lenscope.sweeps.part_files import PARTS, part_state
from lenscope.sweeps.parts import Part
from lenscope.sweeps.spec import SweepSpec, read_spec, spec_digest
from lenscope.visible_text import printable

# columns that a summary is grouped by, and those that it has the mean of: what stands above them, and what they are
_GROUPS = ("method", "explained_by", "target", "mapping", "operation", "control")
_MEANS = {
    "max_probability": ("top", "probability of the top (or first) token"),
    "kl": ("kl", "KL(unpatched ‖ patched) in nats"),
    "precision": ("p@1", "how often the top token is the source's own"),
    "answer_log_prob": ("answer", "ln p(answer)"),
    "correct": ("right", "how often the answer is given"),
}


@dataclass(frozen=True)
class SweepStatus:
    """How far a sweep is: parts and rows in all and those that are done, and the names of parts that are damaged."""

    parts: int
    parts_done: int
    rows: int
    rows_done: int
    damaged: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every row is there."""
        return self.parts_done == self.parts

    def line(self) -> str:
        """All of it in one line."""
        line = f"{self.rows_done:,} of {self.rows:,} rows, {self.parts_done:,} of {self.parts:,} parts are done"
        if self.damaged:
            line += f"; damaged, and run again by the next run: {', '.join(self.damaged[:3])}"
            line += f" and {len(self.damaged) - 3} more" if len(self.damaged) > 3 else ""
        return line

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "parts": self.parts,
            "parts_done": self.parts_done,
            "rows": self.rows,
            "rows_done": self.rows_done,
            "damaged": list(self.damaged),
            "complete": self.complete,
        }


@dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """A sweep in a folder: how far it is, and the rows that are done. `sweep` and `open_sweep` give it.

    `damaged` are the parts that were not whole when this run began, and are run again by it.
    """

    folder: Path
    manifest: Mapping[str, Any]
    damaged: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """How many rows it has when it is complete, each once."""
        return int(self.manifest["rows"])

    @property
    def parts(self) -> list[Part]:
        """Its parts, done or not."""
        return listed_parts(self.manifest)

    def __repr__(self) -> str:
        return f"Sweep({self.folder}: {self.rows:,} rows in {len(self.manifest['parts']):,} parts)"

    def status(self) -> SweepStatus:
        """What of it is done; every part is read, and its digest compared."""
        states = [(part, part_state(self.folder, part)) for part in self.parts]
        done = [part for part, state in states if state == "whole"]
        damaged = tuple(f"{PARTS}/{part.name}" for part, state in states if state == "damaged")
        return SweepStatus(len(states), len(done), self.rows, sum(p.rows for p in done), damaged)

    def dataset(self) -> ds.Dataset:
        """The rows that are done as one pyarrow data set, which reads columns and rows when they are asked for.

        Every part's digest is compared first, and damaged ones are left out. Raises LenscopeError where none is done.
        """
        return ds.dataset(self._paths(), format="parquet")

    def _paths(self) -> list[str]:
        # a part that is damaged would give other numbers than it had, or none
        whole = [part for part in self.parts if part_state(self.folder, part) == "whole"]
        there = [str(self.folder / PARTS / part.name) for part in whole]
        if not there:
            raise LenscopeError(f"{escaped(self.folder)}: no row of the sweep is done; run it first")
        return there

    def to_dataframe(self) -> Any:
        """The rows that are done as a data frame of pandas, or of polars where only that is installed."""
        return data_frame(self.dataset().to_table().replace_schema_metadata(None))

    def table(self) -> Table:
        """For a terminal: the rows that are done by method, target, mapping, control, with means of their numbers."""
        paths = self._paths()
        contrasts = "contrast" in pq.read_schema(paths[0]).names
        names_of_groups = [*_GROUPS, "contrast"] if contrasts else [*_GROUPS]
        groups = pa.concat_tables([_summary(path, names_of_groups) for path in paths]).group_by(names_of_groups)
        sums = [(f"{name}_{what}", "sum") for name in _MEANS for what in ("sum", "count")]
        totals = groups.aggregate([("count_all", "sum"), *sums]).sort_by(
            [(name, "ascending") for name in names_of_groups]
        )
        means = [name for name in _MEANS if pc.sum(totals[f"{name}_count_sum"]).as_py()]
        shown = [name for name in names_of_groups if pc.count_distinct(totals[name]).as_py() > 1 or name == "method"]
        lines: list[list[Any]] = []
        for group in totals.to_pylist():
            names = [dim("–") if not group[name] else printable(_short(group[name])) for name in shown]
            numbers = [_mean_shown(group[f"{name}_sum_sum"], group[f"{name}_count_sum"]) for name in means]
            lines.append([*names, f"{group['count_all_sum']:,}", *numbers])
        columns = [TableColumn(name.replace("_", " ")) for name in shown]
        columns += [TableColumn(head, "right") for head in ("rows", *(_MEANS[name][0] for name in means))]
        caption = "means over rows; " + "; ".join(": ".join(_MEANS[name]) for name in means)
        caption += "; with a contrast all are of the contrasted distribution" if contrasts else ""
        return plain_table(columns, lines, caption, gap=2)


def open_sweep(folder: str | os.PathLike[str], spec: "SweepSpec | Mapping[str, Any] | str | None" = None) -> Sweep:
    """Open the sweep that a folder holds, complete or not; no model is loaded.

    Raises LenscopeError where it holds none, or another one than that of a `spec`.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise LenscopeError(f"{escaped(folder)}: holds no sweep (it has no manifest.json)")
    if spec is not None:
        known = read_spec(spec)
        require_same_sweep(folder, manifest, spec_head(known))
    return Sweep(folder, manifest)


def spec_head(spec: SweepSpec) -> dict[str, Any]:
    """What of a manifest is known without a model: the spec, and digests of the files that it names."""
    with naming_place(spec.where):
        digest = file_digest(spec.sources)
    inputs = {} if digest is None else {str(spec.sources.file): digest}
    return {"spec": spec.document(), "spec_sha256": spec_digest(spec), "inputs": inputs}


def _short(value: str | float, most: int = 18) -> str:
    line = " ".join(value.split()) if isinstance(value, str) else f"{value:g}"
    return line if len(line) <= most else line[: most - 1] + "…"


def _summary(path: str, groups: list[str]) -> pa.Table:
    """Counts and sums of a part by group, so that no more than a part is in memory."""
    rows = pq.read_table(path, columns=[*groups, *_MEANS])
    rows = rows.set_column(rows.column_names.index("correct"), "correct", rows["correct"].cast(pa.float32()))
    sums: list[Any] = [(name, what) for name in _MEANS for what in ("sum", "count")]
    return rows.replace_schema_metadata(None).group_by(groups).aggregate([([], "count_all"), *sums])


def _mean_shown(total: float | None, count: int) -> str:
    return f"{total / count:.3f}" if count and total is not None else "–"
