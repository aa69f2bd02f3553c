"""The files of the page, read once when the server starts: no path that a request names is ever opened.

Knows: which folders hold them, their types, their paths on the server. Does not know: what is in them.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

APP = Path(__file__).parent / "app"
VIEW = Path(__file__).parents[1] / "display" / "view"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}


@dataclass(frozen=True)
class ServedFile:
    """One file as it is sent."""

    content: bytes
    kind: str
    tag: str


def page_files() -> dict[str, ServedFile]:
    """Path on the server → file: the page at /, its own files below /app/, the components of all pages below /view/.

    Components stand below /app/ as well, for modules there that import ./NAME.
    """
    served: dict[str, ServedFile] = {}
    for folder, places in ((VIEW, ("/view/", "/app/")), (APP, ("/app/",))):
        for path in sorted(folder.glob("*")) if folder.is_dir() else ():
            if path.suffix in TYPES and path.is_file():
                content = path.read_bytes()
                tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
                served |= {place + path.name: ServedFile(content, TYPES[path.suffix], tag) for place in places}
    if "/app/index.html" in served:
        served["/"] = served["/app/index.html"]
    return served
