"""The page that shows results: one self-contained HTML file.

Knows: how data, style and script go into the page. Does not know: models, what the data mean.
"""

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any


def page(results: Sequence[dict[str, Any]], title: str) -> str:
    """The whole page as text, with the results' JSON in it; nothing in it can leave its place."""
    before, after = frame(title)
    return before + ",".join(map(script_json, results)) + after


def frame(title: str) -> tuple[str, str]:
    """What stands in the page before and behind its results, which are `script_json`, with commas between them."""
    here = files(__package__)
    parts = {name: here.joinpath(f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    before, _, after = parts["html"].partition("{{data}}")
    before, after = (p.replace("/*{{css}}*/", parts["css"]).replace("/*{{js}}*/", parts["js"]) for p in (before, after))
    return before + f'{{"title":{script_json(title)},"results":[', "]}" + after


def script_json(value: Any) -> str:
    """A value as JSON that can stand within <script>."""
    data = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # only these can end the element or break old parsers, and half a surrogate pair is no UTF-8; all of them are plain
    # text within JSON strings
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", data)
