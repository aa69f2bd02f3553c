"""Figures: labelled numbers as pictures, in the colours of the page.

Knows: what a figure holds, how large it is for what it holds, files. Does not know: what the numbers mean, models, how
curves and heat maps are drawn (drawing.py).
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenscope.display import drawing
from lenscope.display.panels import Heatmap, Panel, Series
from lenscope.display.style import PALETTES, THEMES, Theme
from lenscope.errors import LenscopeError
from lenscope.files.file_names import safe_name
from lenscope.files.writing import whole_file

__all__ = ["Figure", "Heatmap", "Panel", "Series"]
# how a file may end, and its metadata: without the time, so that the same figure gives the same file
FORMATS: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
# dots per inch of a picture of dots: sharp on screens of twice the usual density, and in print at half size
DOTS = 144


@dataclass(frozen=True, repr=False)
class Figure:
    """A figure of one or several panels, which stand beside each other, up to three in a line.

    A notebook shows it when a cell ends with it. `name` is that of its file. Heat maps whose `colour` says the same
    have one scale, so that their colours compare. Legends stand outside.
    """

    name: str
    panels: Sequence[Panel | Heatmap]

    def __repr__(self) -> str:
        panels = "1 panel" if len(self.panels) == 1 else f"{len(self.panels)} panels"
        return f"Figure({self.name!r}: {panels})"

    def save(self, path: str | os.PathLike[str], *, theme: Theme = "light") -> Path:
        """Write a .png, .svg or .pdf file, whole or not at all; into a folder, NAME.png. Gives the file's path.

        `theme` is "light" or "dark". Raises LenscopeError for another ending or theme, and where the file cannot be
        written.
        """
        path = Path(path)
        if path.is_dir():
            path = path / f"{safe_name(self.name)}.png"
        kind = path.suffix.lower().removeprefix(".")
        if kind not in FORMATS:
            raise LenscopeError(f"{path}: figures are saved as {', '.join(f'.{f}' for f in FORMATS)}, or in a folder")
        content = self.image(kind, theme=theme)
        with whole_file(path) as making:
            making.write_bytes(content)
        return path

    def image(self, kind: str = "png", *, theme: Theme = "light") -> bytes:
        """The figure as the bytes of a png, svg or pdf file. The same figure gives the same bytes.

        Raises LenscopeError for another kind, or a theme that is neither "light" nor "dark".
        """
        if kind not in FORMATS:
            raise LenscopeError(f"kind {kind!r}: give one of {', '.join(FORMATS)}")
        if theme not in THEMES:
            raise LenscopeError(f"theme {theme!r}: give one of {', '.join(THEMES)}")
        if not self.panels:
            raise LenscopeError(f"figure {self.name!r}: has no panels to draw")
        content = io.BytesIO()
        palette = PALETTES[theme]
        with drawing.canvas_of(self.panels, palette, DOTS) as canvas:
            canvas.savefig(content, format=kind, metadata=FORMATS[kind], facecolor=palette.paper)
        return content.getvalue()

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        """The picture for a notebook, at half its size in dots."""
        content = self.image("png")
        width, height = (int.from_bytes(content[at : at + 4], "big") // 2 for at in (16, 20))
        return content, {"width": width, "height": height}

    def _repr_svg_(self) -> str:
        """The drawing for a notebook that shows these."""
        return self.image("svg").decode()

    def page_data(self) -> dict[str, Any]:
        """The figure as JSON values that a page draws it from: None is what is not known."""
        return {"name": self.name, "panels": [panel.page_data() for panel in self.panels]}
