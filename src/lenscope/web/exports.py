"""Results as files: a page, JSON, Parquet, or the Python that gives them.

Knows: which results have which form, names and types of files. Does not know: where results come from, HTTP.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenscope.display.page import page
from lenscope.files.records import Record
from lenscope.web.limits import Refusal
from lenscope.web.results_cache import Answered

KINDS = {
    "html": "text/html; charset=utf-8",
    "json": "application/json",
    "parquet": "application/vnd.apache.parquet",
    "python": "text/x-python; charset=utf-8",
}
ENDINGS = {"html": "html", "json": "json", "parquet": "parquet", "python": "py"}


@dataclass(frozen=True)
class ExportedFile:
    """A file that leaves the server: its name, type and content."""

    name: str
    kind: str
    content: bytes


def exported(form: str, endpoint: str, key: str, content: bytes) -> ExportedFile:
    """A file of some form, named after what was asked."""
    return ExportedFile(f"lenscope-{endpoint}-{key[:8]}.{ENDINGS[form]}", KINDS[form], content)


def content_of(form: str, endpoint: str, answer: Answered) -> bytes:
    """An answer as a page, as JSON or as Parquet; Refusal where its result has no such form."""
    result = answer.result
    if form == "html" and hasattr(result, "page_data"):
        data = result.page_data()
        return page([data], title=_title(endpoint, data)).encode()
    if form == "json":
        return _as_json(answer)
    if form == "parquet" and isinstance(result, Record):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "result.parquet"
            result.save(path)
            return path.read_bytes()
    forms = "JSON and Python" if result is None else "HTML, JSON and Python"
    raise Refusal(422, f"format {form}: what {endpoint} gives can be exported as {forms}")


def _as_json(answer: Answered) -> bytes:
    if isinstance(answer.result, Record):
        return json.dumps(answer.result.to_json(), ensure_ascii=False).encode("utf-8", "replace")
    events = [{"event": name, "data": json.loads(data)} for name, data in answer.events]
    return json.dumps(events[0]["data"] if len(events) == 1 else events, ensure_ascii=False).encode("utf-8", "replace")


def _title(endpoint: str, data: dict[str, Any]) -> str:
    text = data.get("text") or (data.get("first") or {}).get("text") or endpoint
    return text if len(text) <= 80 else text[:79] + "…"
