"""Notebooks of the repository's examples/ on the site: copied into docs/examples/ before Sphinx looks for pages.

Knows: where they lie, which of their links lead to pages of the site. Does not know: how they are run or shown.
"""

from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
# what a link of a notebook begins with in the repository → on the site
LINKS = {"](../docs/": "](../", "](../README.md": "](../start.md"}


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("builder-inited", lambda app: copy_notebooks(DOCS.parent / "examples", DOCS / "examples"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def copy_notebooks(source: Path, folder: Path) -> None:
    """Copy the notebooks of a folder into another, where what is current is left alone and what is gone is removed."""
    there = {path.name: on_the_site(path.read_text(encoding="utf-8")) for path in sorted(source.glob("*.ipynb"))}
    for path in folder.glob("*.ipynb"):
        if path.name not in there:
            path.unlink()
    for name, text in there.items():
        copy = folder / name
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")


def on_the_site(text: str) -> str:
    """The text of a notebook, whose links lead to pages of the site."""
    for begin, there in LINKS.items():
        text = text.replace(begin, there)
    return text
