"""Links of pages to files outside of docs/: what the site shows as a page of its own is linked as that page.

Knows: which files those are. Does not know: Sphinx, but for the event that hands it a page's text.
"""

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
# file of the repository → page of the site that shows it
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("source-read", _source_read)
    app.connect("include-read", _include_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def site_links(text: str, page: str) -> str:
    """A page's text, whose links lead to pages of the site: `../CHANGELOG.md` of `design` is `changelog.md`."""
    up = page.count("/")
    # notebooks lie in examples/ beside docs/, and are shown as if they lay in it
    outside = up - page.startswith("examples/")

    def linked(match: re.Match[str]) -> str:
        steps, path, anchor = match.groups()
        if steps.count("../") != outside + 1:
            return match[0]
        if path.startswith("docs/"):  # as notebooks of the repository's examples/ give them
            return f"]({'../' * up}{path.removeprefix('docs/')}{anchor}"
        return f"]({'../' * up}{PAGES[path]}{anchor}" if path in PAGES else match[0]

    return re.sub(r"\]\(((?:\.\./)+)([\w./-]+)((?:#[\w-]*)?)", linked, text)


def links_of_the_root(text: str) -> str:
    """The text of a file of the repository's root, shown as a page: its links as that page has to give them."""

    def linked(match: re.Match[str]) -> str:
        path = match[1]
        return f"]({path.removeprefix('docs/') if path.startswith('docs/') else PAGES.get(path, f'../{path}')}"

    return re.sub(r"\]\((?!\w+:|#)([^)#\s]+)", linked, text)


def _include_read(app: Any, path: Path, page: str, content: list[str]) -> None:
    if page + ".md" in PAGES.values():
        content[0] = links_of_the_root(content[0])


def _source_read(app: Any, page: str, source: list[str]) -> None:
    source[0] = site_links(source[0], page)
