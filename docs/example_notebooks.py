"""Notebooks of the repository's examples/ on the site: copied into docs/examples/ before Sphinx looks for pages.

Knows: where they lie. Does not know: how they are run, how their links lead to pages of the site (site_links.py).
"""

from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("builder-inited", lambda app: copy_notebooks(DOCS.parent / "examples", DOCS / "examples"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def copy_notebooks(source: Path, folder: Path) -> None:
    """Copy the notebooks of a folder into another; what is current is left alone, and what is gone is removed."""
    there = {path.name: path.read_bytes() for path in sorted(source.glob("*.ipynb"))}
    for path in folder.glob("*.ipynb"):
        if path.name not in there:
            path.unlink()
    for name, content in there.items():
        copy = folder / name
        if not copy.exists() or copy.read_bytes() != content:
            copy.write_bytes(content)
