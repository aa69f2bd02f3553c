"""Trajectories written to a file one by one, as they come: memory does not grow with their number.

Knows: files that get their name when they are whole, JSON, pages and Parquet piece by piece. Does not know: what is in
a trajectory.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lenscope.display.page import frame, script_json
from lenscope.errors import LenscopeError
from lenscope.files.records import document_of
from lenscope.files.writing import whole_file
from lenscope.lenses.trajectory import file_metadata, file_rows

# rows of a Parquet file that are written together
GROUP = 16_384


class TrajectoryFile(ABC):
    """A file that trajectories go into one by one. It gets its name at the `end`, and holds all that were added.

    `single`: one trajectory by itself and no list of them. In place of trajectories they may be other results with a
    `text`, of which `rows` gives the rows of a Parquet file and `metadata` what that says. Raises LenscopeError where
    the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], single: bool) -> None:
        self.path = Path(path)
        self.single = single
        self.count = 0
        self._open = ExitStack()
        self._making = self._open.enter_context(whole_file(self.path))

    @staticmethod
    def open(
        path: str | os.PathLike[str],
        single: bool = False,
        rows: Callable[[int, Any], pa.Table] = file_rows,
        metadata: Callable[[bool], dict[str, str]] = file_metadata,
    ) -> "TrajectoryFile":
        """A file by its ending: .json, .html or .parquet."""
        if Path(path).suffix == ".parquet":
            return ParquetFile(path, single, rows, metadata)
        kinds: dict[str, type[TrajectoryFile]] = {".json": JsonFile, ".html": PageFile}
        if Path(path).suffix not in kinds:
            raise LenscopeError(f"{path}: results are saved as {', '.join(kinds)}, .parquet")
        return kinds[Path(path).suffix](path, single)

    def add(self, trajectory: Any) -> None:
        """Write one more."""
        with self._failing():
            self._add(trajectory)
            self.count += 1

    def end(self) -> bool:
        """Give the file its name; False where nothing was added, and there is none then."""
        if not self.count:
            with suppress(_Nothing), self._open:
                raise _Nothing
            return False
        with self._failing(), self._open:
            self._end()
        return True

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
            raise LenscopeError(f"{self.path}: cannot be written ({reason})") from error

    @abstractmethod
    def _add(self, trajectory: Any) -> None: ...

    @abstractmethod
    def _end(self) -> None: ...


class JsonFile(TrajectoryFile):
    """A list of trajectories, or one, as JSON."""

    def __init__(self, path: str | os.PathLike[str], single: bool) -> None:
        super().__init__(path, single)
        self._file = self._open.enter_context(self._making.open("w", encoding="utf-8", errors="backslashreplace"))

    def _add(self, trajectory: Any) -> None:
        mark = "" if self.single else ", " if self.count else "["
        self._file.write(mark + json.dumps(document_of(trajectory), ensure_ascii=False))

    def _end(self) -> None:
        self._file.write("" if self.single else "]")
        self._file.flush()


class PageFile(JsonFile):
    """Trajectories on one self-contained page, under the first one's text."""

    def _add(self, trajectory: Any) -> None:
        if not self.count:
            before, self._after = frame(trajectory.text)
            self._file.write(before)
        self._file.write(("," if self.count else "") + script_json(trajectory.page_data()))

    def _end(self) -> None:
        self._file.write(self._after)
        self._file.flush()


class ParquetFile(TrajectoryFile):
    """Trajectories as rows, some thousands of them together."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        single: bool,
        rows: Callable[[int, Any], pa.Table],
        metadata: Callable[[bool], dict[str, str]],
    ) -> None:
        super().__init__(path, single)
        self._rows, self._metadata = rows, metadata
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []

    def _add(self, trajectory: Any) -> None:
        self._waiting.append(self._rows(self.count, trajectory))
        if sum(map(len, self._waiting)) >= GROUP:
            self._write()

    def _end(self) -> None:
        self._write()
        assert self._writer is not None
        self._writer.close()

    def _write(self) -> None:
        if self._waiting:
            rows = pa.concat_tables(self._waiting)
            self._waiting = []
            if self._writer is None:
                schema = rows.schema.with_metadata(self._metadata(self.single))
                self._writer = pq.ParquetWriter(self._making, schema, write_page_checksum=True)
            self._writer.write_table(rows)


class _Nothing(Exception):
    """Nothing was added, so that the file is not kept."""
