"""The prompts of a sweep as they are listed or stand in a file, each with its place, which errors name.

Knows: lines, tables and Parquet files of prompts, columns for what is a prompt's own. Does not know: tokens, models.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lenscope.errors import LenscopeError, naming_place
from lenscope.files.parquet_footers import declared_sizes
from lenscope.files.text_files import read_lines, read_table
from lenscope.files.untrusted import checked_reading, escaped
from lenscope.models.inputs import sound
from lenscope.sweeps.spec import SweepSources

PROMPT_FILES = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")
# bytes that a value of a Parquet file may take: prompts are short
LONGEST = 1 << 20
# prompts that are read before a model is loaded, which takes far longer
READ_BEFORE = 100_000


@dataclass(frozen=True)
class ListedPrompt:
    """A prompt as it was given: `where` it stands, its text, and positions, layers and an answer of its own."""

    where: str
    text: str
    positions: list[Any]
    layers: list[Any]
    answer: str | None


def listed_prompts(sources: SweepSources) -> Iterator[ListedPrompt]:
    """The prompts of a spec in their order; LenscopeError, which names the place, for what is none."""
    if sources.prompts is not None:
        for n, given in enumerate(sources.prompts):
            positions, layers = given.positions or sources.positions, given.layers or sources.layers
            yield ListedPrompt(f"sources.prompts[{n}]", given.text, positions, layers, given.answer)
        return
    name = str(sources.file)
    path = _prompt_file(name)
    ending = Path(name.removesuffix(".gz")).suffix.lower()
    if ending not in PROMPT_FILES:
        raise LenscopeError(f"sources.file: {escaped(name)}: give a {', '.join(PROMPT_FILES)} file")
    empty = True
    if ending == ".txt":
        for n, line in enumerate(read_lines(path), 1):
            if line.strip():
                empty = False
                yield ListedPrompt(f"{name}, line {n}", line, sources.positions, sources.layers, None)
    else:
        rows = _parquet_rows(path, sources) if ending == ".parquet" else read_table(path)
        for where, row in rows:
            empty = False
            yield _listed_row(where, row, sources, typed=ending in (".jsonl", ".parquet"))
    if empty:
        raise LenscopeError(f"sources.file: {escaped(name)}: has no prompts")


def check_first_prompts(sources: SweepSources) -> None:
    """LenscopeError where a file of prompts is not there, or one of its first 100,000 prompts is none."""
    for _ in islice(listed_prompts(sources), READ_BEFORE):
        pass


def file_digest(sources: SweepSources) -> str | None:
    """The SHA-256 of the file that a spec takes its prompts from; None for prompts that the spec lists."""
    if sources.file is None:
        return None
    path = _prompt_file(sources.file)
    with checked_reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prompt_file(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise LenscopeError(
            f"sources.file: {escaped(name)}: no such file (looked for {escaped(path.absolute())}); give a whole "
            "path, or one from the folder in which lenscope runs"
        )
    return path


def _parquet_rows(path: Path, sources: SweepSources) -> Iterator[tuple[str, dict[str, Any]]]:
    wanted = [getattr(sources.columns, name) for name in ("text", "positions", "layers", "answer")]
    with checked_reading(path, "is no Parquet file that can be read"):
        declared_sizes(path)
        with pq.ParquetFile(path, memory_map=False) as file:
            n = 0
            have = [name for name in wanted if name in file.schema_arrow.names]
            for batch in file.iter_batches(1 << 10, columns=have, use_threads=False):
                if batch.nbytes > LONGEST << 10:
                    raise ValueError(f"rows {n + 1}–{n + len(batch)} take {batch.nbytes:,} bytes")
                for row in pa.Table.from_batches([batch]).to_pylist():
                    n += 1
                    yield f"{path}, row {n}", row


def _listed_row(where: str, row: dict[str, Any], sources: SweepSources, typed: bool) -> ListedPrompt:
    columns = sources.columns
    values: dict[str, Any] = {}
    for name in ("text", "positions", "layers", "answer"):
        column = getattr(columns, name)
        if column not in row and (name == "text" or name in columns.model_fields_set):
            there = ", ".join(map(str, row)) or "none"
            raise LenscopeError(
                f"{where}: has no column {column!r} ({name}); name it as sources.columns.{name}: there are {there}"
            )
        values[name] = row.get(column)
    if not isinstance(values["text"], str) or not values["text"]:
        raise LenscopeError(f"{where}: {columns.text} is {str(values['text'])[:60]!r}; give a text that is not empty")
    answer = values["answer"]
    if answer is not None and not isinstance(answer, str):
        raise LenscopeError(f"{where}: {columns.answer} is {str(answer)[:60]!r}; give a text")
    with naming_place(f"{where}: {columns.answer}"):
        answer = sound(answer or "")
    places = {
        name: _own_places(where, getattr(columns, name), values[name], typed) or getattr(sources, name)
        for name in ("positions", "layers")
    }
    return ListedPrompt(where, values["text"], places["positions"], places["layers"], answer or None)


def _own_places(where: str, column: str, value: Any, typed: bool) -> list[Any]:
    """Positions or layers of a row; none where it has none of its own."""
    if value is None or value == "":
        return []
    places = value if isinstance(value, list) else [value]
    if not typed:
        # a cell of a table is text: what looks like numbers is numbers
        plain = re.fullmatch(r"\s*-?\d{1,9}(\s*,\s*-?\d{1,9})*\s*", value)
        places = [int(part) for part in value.split(",")] if plain else [value]
    for place in places:
        if isinstance(place, bool) or not isinstance(place, int | str) or place == "":
            raise LenscopeError(f"{where}: {column} is {str(place)[:60]!r}; give whole numbers or texts")
    return places
