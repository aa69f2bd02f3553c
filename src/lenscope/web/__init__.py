"""The page that shows results: one self-contained HTML file, also what is served.

Knows: how data, style and script go into the page. Does not know: models, what the data mean.
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any


def page(results: Sequence[dict[str, Any]], title: str) -> str:
    """The whole page as text, with the results' JSON in it; nothing in it can leave its place."""
    here = files(__package__)
    parts = {name: here.joinpath(f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    data = json.dumps(
        {"title": title, "results": list(results)}, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    # inside <script> only these can end the element or break old parsers; all are plain text within JSON strings
    for bad in "<>&\u2028\u2029":
        data = data.replace(bad, f"\\u{ord(bad):04x}")
    whole = parts["html"].replace("/*{{css}}*/", parts["css"]).replace("/*{{js}}*/", parts["js"])
    return whole.replace("{{data}}", data)
