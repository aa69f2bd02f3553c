"""How results look: in a terminal, in a figure, on a page."""

from lenscope.display.figures import Figure
from lenscope.display.page import page
from lenscope.display.panels import Heatmap, Panel, Series

__all__ = ["Figure", "Heatmap", "Panel", "Series", "page"]
