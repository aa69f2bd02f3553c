"""Reports of experiments: tables with intervals, figures, and a reading of them; files that others can go on with.

Knows: what a report holds, Parquet, Markdown and JSON. Does not know: models, experiments, how figures are drawn.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from lenscope import visible_text as visible
from lenscope.display.figures import Figure
from lenscope.display.numbers import round_number
from lenscope.display.page import Drawn
from lenscope.display.payload import packed
from lenscope.display.tables import TableColumn, fit_to_width, plain_table
from lenscope.errors import LenscopeError
from lenscope.files.file_names import safe_name
from lenscope.files.parquet_tables import data_frame
from lenscope.files.writing import whole_files
from lenscope.statistics.intervals import Estimate

# a table: its rows, each a name → text, number or Estimate; all rows have the names of the first
ReportTable = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Report(Drawn):
    """What an experiment found on a model: tables, figures, and what they say, in plain words.

    Attributes:
        experiment: the name of the experiment.
        model: the name of the model.
        claim: what the paper says, and where.
        reading: what replicates here, what does not, and by how much; the first line is the verdict, each other one a
            result or a control.
        tables: lists of rows by name; a value is a text, a number, or an `Estimate`.
        figures: the figures.
        settings: all that a repetition needs.
        provenance: the model, its identity, and the versions of what it ran on.
    """

    experiment: str
    model: str
    claim: str
    reading: str
    tables: dict[str, ReportTable]
    figures: tuple[Figure, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Report({self.experiment} on {self.model}: {', '.join(self.tables)})"

    def table(self, name: str, *, width: int | None = None) -> Table:
        """One of the tables for a terminal; where it is wider than `width`, without its intervals, and it says so.

        Raises LenscopeError if there is none of that name.
        """
        if name not in self.tables:
            raise LenscopeError(f"table {name!r}: this report has {', '.join(self.tables)}")
        return fit_to_width(lambda room: _draw_rows(self.tables[name], room), width)

    def to_dataframe(self, name: str = "") -> Any:
        """One of the tables, by default the first, as a data frame; intervals are columns that end in _low and _high.

        It is one of pandas, or of polars where only that is installed. Raises LenscopeError if there is no table of
        that name, and without both packages.
        """
        name = name or next(iter(self.tables), "")
        if name not in self.tables:
            raise LenscopeError(f"table {name!r}: this report has {', '.join(self.tables) or 'none'}")
        return data_frame(_arrow(self.tables[name]))

    def page_data(self) -> dict[str, Any]:
        """Give what a page needs: claim, reading, settings, tables as rows of texts, numbers and [value, low, high].

        Figures are the numbers that the page draws them from.
        """
        head = {**self.to_json(), "title": f"{self.experiment}: {self.model}"}
        head["tables"] = [
            {
                "name": name,
                "columns": list(rows[0] if rows else ()),
                "rows": [list(map(_json, r.values())) for r in rows],
            }
            for name, rows in self.tables.items()
        ]
        return packed({**head, "figures": [figure.page_data() for figure in self.figures]}, {})

    def markdown(self) -> str:
        """The report as Markdown; figures are links to files beside it."""
        verdict, *details = map(visible.printable, self.reading.split("\n"))
        parts = [
            f"# {self.experiment}: {visible.printable(self.model)}",
            "Numbers in brackets are 95 % intervals, by the bootstrap: 0.50 [0.42, 0.57] is 0.50, from 0.42 to 0.57.",
            f"**The paper.** {self.claim}",
            f"**Here.** {verdict}",
            *(["\n".join(f"- {one}" for one in details)] if details else []),
        ]
        for figure in self.figures:
            parts.append(f"![{figure.name}]({safe_name(figure.name)}.png)")
        for name, rows in self.tables.items():
            parts.append(f"## {name}\n\n{_pipes(rows)}")
        settings = "\n".join(f"- {key}: {visible.printable(value)}" for key, value in self.settings.items())
        parts.append(f"## Settings\n\n{settings}")
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> dict[str, Any]:
        """The report without its figures as JSON values; NaN as None, an Estimate as [value, low, high]."""
        tables = {name: [{k: _json(v) for k, v in row.items()} for row in rows] for name, rows in self.tables.items()}
        return {
            "kind": "report",
            "experiment": self.experiment,
            "model": self.model,
            "claim": self.claim,
            "reading": self.reading,
            "tables": tables,
            "settings": {k: _json(v) for k, v in self.settings.items()},
            "provenance": self.provenance,
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write report.md, report.html, report.json, TABLE.parquet of every table, and the figures, into a folder.

        The folder exists. All files or none: where one cannot be written, it is as it was; raises LenscopeError then.
        """
        with whole_files(folder, last=("report.html", "report.md", "report.json")) as making:
            for figure in self.figures:
                figure.save(making)
            meta = {"report": json.dumps(self._head())}
            for name, rows in self.tables.items():
                path = making / f"{safe_name(name.replace(' ', '_'))}.parquet"
                pq.write_table(_arrow(rows).replace_schema_metadata(meta), path, write_page_checksum=True)
            self.to_html(making / "report.html")
            (making / "report.md").write_text(self.markdown(), encoding="utf-8", errors="backslashreplace")
            content = json.dumps(self.to_json(), ensure_ascii=False)
            (making / "report.json").write_text(content, encoding="utf-8", errors="backslashreplace")

    def _head(self) -> dict[str, Any]:
        head = self.to_json()
        return {name: head[name] for name in ("kind", "experiment", "model", "settings", "provenance")}


def _draw_rows(rows: ReportTable, width: int | None) -> Table:
    cells = [[prose(v) for v in row.values()] for row in rows]
    brief = [[prose(v[0] if isinstance(v, Estimate) else v) for v in row.values()] for row in rows]
    names = list(rows[0]) if rows else []
    cut = width is not None and _table_width(names, cells) > width and cells != brief
    columns = [
        TableColumn(visible.printable(name), "left" if isinstance(rows[0][name], str) else "right", folds="all")
        for name in names
    ]
    caption = "95 % intervals are in the report; they do not fit here" if cut else ""
    return plain_table(columns, brief if cut else cells, caption, gap=2, headings="bottom")


def _table_width(names: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    """How wide a table is whose headings are broken between words and whose cells are not."""
    words = [max(map(len, name.split()), default=0) for name in names]
    return sum(max(word, *(len(line[n]) for line in cells)) + 2 for n, word in enumerate(words))


def prose(value: Any) -> str:
    """A value as one reads it: three digits, intervals in brackets."""
    if isinstance(value, Estimate):
        middle, low, high = (round_number(v) for v in value)
        return middle if low == "–" and high == "–" else f"{middle} [{low}, {high}]"
    if isinstance(value, bool | str) or value is None:
        return "–" if value is None else visible.printable(value)
    return f"{value:,}" if isinstance(value, int | np.integer) else round_number(float(value))


def _pipes(rows: ReportTable) -> str:
    if not rows:
        return "(no rows)"
    names = list(rows[0])
    sides = ["---" if isinstance(rows[0][n], str) else "---:" for n in names]
    lines = [
        list(map(prose, names)),
        sides,
        *([prose(row[n]).replace("|", "\\|").replace("\n", "↵") for n in names] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _arrow(rows: ReportTable) -> pa.Table:
    columns: dict[str, list[Any]] = {}
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        if any(isinstance(v, Estimate) for v in values):
            for n, end in enumerate(("", "_low", "_high")):
                columns[name + end] = [v[n] if isinstance(v, Estimate) else v for v in values]
        else:
            columns[name] = [v.item() if isinstance(v, np.generic) else v for v in values]
    return pa.table(columns)


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _json(v) for k, v in value.items()}
    if isinstance(value, Estimate | list | tuple):
        return [_json(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
