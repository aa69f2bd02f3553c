"""The page that shows results: one self-contained HTML file, or a frame in a notebook.

Knows: how data, style and script go into the page, and that nothing else runs in it. Does not know: models, what the
data mean.
"""

import base64
import hashlib
import html
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from lenscope.display.view_modules import bundled_script, bundled_style, view_files
from lenscope.errors import LenscopeError
from lenscope.files.writing import write_text

# pixels of a notebook's frame: of head and foot, of a row of a table, and at most
_AROUND, _ROW, _HIGHEST = 520, 20, 1120


class Drawn(ABC):
    """A result that a page can show: it says what the page is given, and is written and shown in notebooks as one."""

    @abstractmethod
    def page_data(self) -> dict[str, Any]:
        """Give the result's payload, which `display.payload.packed` makes; its "kind" names the view that draws it."""

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained page to look at in a browser; it needs no network.

        Its numbers are rounded to four digits; what `save` writes is exact.
        """
        data = self.page_data()
        write_text(path, page([data], title=title_of(data)))

    def _repr_html_(self) -> str:
        """Give the page in a frame, for notebooks; what runs in it cannot reach the notebook."""
        data = self.page_data()
        return framed(page([data], title=title_of(data)), frame_height(data))


def page(results: Sequence["Drawn | dict[str, Any]"], title: str) -> str:
    """Give a self-contained page, as text, that shows results, or their `page_data()`; it needs no network."""
    before, after = frame(title)
    return before + ",".join(script_json(_payload(r)) for r in results) + after


def frame(title: str) -> tuple[str, str]:
    """Give what stands in a page before and behind its results, which are `script_json`, with commas between them."""
    style, script = bundled_style(), bundled_script()
    whole = view_files()["page.html"]
    for mark, text in (("style-hash", _policy_hash(style)), ("script-hash", _policy_hash(script)), ("style", style)):
        whole = whole.replace("{{" + mark + "}}", text, 1)
    before, _, after = whole.partition("{{data}}")
    return before + f'{{"title":{script_json(title)},"results":[', "]}" + after.replace("{{script}}", script, 1)


def script_json(value: Any) -> str:
    """Give a value as JSON that can stand within <script>."""
    data = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # only these can end the element or break old parsers, and half a surrogate pair is no UTF-8; all of them are plain
    # text within JSON strings
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", data)


def framed(text: str, height: int) -> str:
    """Give a page within a frame for notebooks: it runs alone, without an origin, and may only offer downloads."""
    border = "border: 1px solid rgba(127, 127, 127, .4); border-radius: 4px"
    return (
        f'<iframe sandbox="allow-scripts allow-downloads" width="100%" height="{height}" style="{border}" '
        f'title="lenscope" srcdoc="{html.escape(text)}"></iframe>'
    )


def frame_height(data: dict[str, Any]) -> int:
    """Give the pixels that a payload's page needs in a notebook, within limits."""
    rows = len(data.get("layers") or data.get("source_layers") or data.get("sources") or range(20))
    return min(_HIGHEST, _AROUND + _ROW * max(rows, 12))


def title_of(data: dict[str, Any]) -> str:
    """Give the title of a payload's page: its own, the prompt's text, or its kind."""
    return str(data.get("title") or data.get("text") or data["kind"])


def _payload(result: "Drawn | dict[str, Any]") -> dict[str, Any]:
    data = result.page_data() if isinstance(result, Drawn) else result
    if "arrays" not in data:
        raise LenscopeError("page: takes results, or what their page_data() gives; to_json() is for files")
    return data


def _policy_hash(text: str) -> str:
    """What a content security policy calls an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
