"""How results look: in a terminal, in a figure, on a page."""

from lenscope.display.figures import Figure, Heatmap, Panel, Series
from lenscope.display.page import page

__all__ = ["Figure", "Heatmap", "Panel", "Series", "page"]
