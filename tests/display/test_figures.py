"""Figures: names stand as they are, heat maps compare, legends cover no data."""

import numpy as np
import pytest
from drawing import NASTY
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from lenscope.display.figures import Figure, Heatmap, Panel, Series


def test_figures_show_names_as_they_stand(tmp_path):
    series = [Series("_$\\frac{$", [0, 1], [0.0, 1.0]), Series(NASTY, [0, 1], [1.0, 0.0])]
    bars = [Series("$x", ["$a$b", "_c"], [1.0, 2.0])]
    panels = [Panel("$_{", "$\\x", "$$", series), Panel("b", "", "", bars, kind="bars")]
    maps = [Heatmap("$", "$", "$", ["$_{$"], ["_a"], [[1.0]], "$\\y$")]
    path = Figure("names", [*panels, *maps]).save(tmp_path)
    assert imread(path).shape[0] > 100


def images(figure, tmp_path, monkeypatch):
    """What a figure draws, as matplotlib's own objects."""
    seen = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, *_, **__: seen.append(self))
    figure.save(tmp_path)
    FigureCanvasAgg(seen[0]).draw()
    return seen[0]


def test_heat_maps_that_compare_have_one_scale(tmp_path, monkeypatch):
    def heat(title, values, colour):
        return Heatmap(title, "", "", [0, 1], [0, 1], np.array(values), colour)

    effect, control = (
        heat("effect", [[0.0, 1.0], [0.5, 0.5]], "right"),
        heat("control", [[0.0, 0.1], [0.1, 0.0]], "right"),
    )
    other = heat("other", [[3.0, 9.0], [3.0, np.nan]], "nats")
    figure = images(Figure("maps", [effect, control, other]), tmp_path, monkeypatch)
    scales = [axes.images[0].get_clim() for axes in figure.axes if axes.images]
    assert scales == [(0.0, 1.0), (0.0, 1.0), (3.0, 9.0)]


@pytest.mark.parametrize("names", [("tuned", "tuned"), ("tuned", "logit")])
def test_legends_stand_outside_of_the_data(names, tmp_path, monkeypatch):
    panels = [Panel(str(n), "x", "y", [Series(name, [0, 1], [1.0, 1.0])]) for n, name in enumerate(names)]
    figure = images(Figure("legends", panels), tmp_path, monkeypatch)
    plotted = [axes.get_window_extent() for axes in figure.axes]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    assert len(legends) == len(set(names))
    for legend in legends:
        box = legend.get_window_extent()
        assert not any(box.overlaps(data) for data in plotted)
