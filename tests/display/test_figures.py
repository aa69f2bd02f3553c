"""Figures: names stand as they are, heat maps compare, legends cover no data."""

import io
import json

import numpy as np
import pytest
from drawing import NASTY
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from lenscope.display.figures import Figure
from lenscope.display.panels import Heatmap, Panel, Series
from lenscope.errors import LenscopeError


def heat(title, values, colour, **more):
    rows, columns = np.shape(values)
    return Heatmap(title, "", "", range(columns), range(rows), np.array(values), colour, **more)


LINES = Panel("t", "x", "y", [Series("a", [0, 1], [0.0, 1.0])])


def test_a_folder_gets_a_picture_with_the_figures_name(tmp_path):
    assert Figure("one: two", [LINES]).save(tmp_path).name.startswith("one- two-")
    assert Figure("plain", [LINES]).save(tmp_path) == tmp_path / "plain.png"


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml"), ("a.pdf", b"%PDF")])
def test_the_ending_says_what_is_written(name, start, tmp_path):
    figure = Figure("plain", [LINES, heat("h", [[0.0, 1.0]], "c", texts=[["a", "b"]])])
    content = figure.save(tmp_path / name, theme="dark").read_bytes()
    assert content.startswith(start)
    assert content == figure.image(name[2:].lower(), theme="dark"), "the same figure gives the same bytes"
    assert content != figure.image(name[2:].lower())


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(LenscopeError, match=r"a.jpg: figures are saved as .png, .svg, .pdf, or in a folder"):
        Figure("a", [LINES]).save(tmp_path / "a.jpg")
    with pytest.raises(LenscopeError, match="kind 'gif': give one of png, svg, pdf"):
        Figure("a", [LINES]).image("gif")
    with pytest.raises(LenscopeError, match="theme 'blue': give one of light, dark"):
        Figure("a", [LINES]).image(theme="blue")
    with pytest.raises(LenscopeError, match="figure 'a': has no panels"):
        Figure("a", []).image()


def test_a_figure_says_its_name_and_not_its_numbers():
    assert repr(Figure("one", [LINES])) == "Figure('one': 1 panel)"
    assert repr(Figure("two", [LINES, LINES])) == "Figure('two': 2 panels)"


def test_a_notebook_gets_a_picture():
    content, size = Figure("a", [LINES])._repr_png_()
    assert imread(io.BytesIO(content)).shape[:2] == pytest.approx((2 * size["height"], 2 * size["width"]), abs=1)
    assert Figure("a", [LINES])._repr_svg_().startswith("<?xml")


def test_nothing_in_a_name_can_act_within_an_svg(tmp_path):
    name = NASTY + "</svg><script>alert(1)</script>"
    panels = [Panel(name, name, name, [Series(name, [0, 1], [0.0, 1.0])]), heat(name, [[1.0]], name, texts=[[name]])]
    drawing = Figure("a", panels).image("svg").decode()
    assert "<script" not in drawing
    assert drawing.count("</svg>") == 1


def test_figures_are_data_for_a_page():
    panels = [
        Panel("t", "x", "y", [Series("a", [0, 1], [np.nan, 1 / 3], [0, 1], [2, np.inf], True)], log=True, level=0.5),
        Panel("b", "", "y", [Series("a", ["p", "q"], [1.0, 2.0])], kind="bars"),
        heat("h", [[1.0, np.nan]], "c", high=0.5),
    ]
    lines, bars, heats = json.loads(json.dumps(Figure("f", panels).page_data(), allow_nan=False))["panels"]
    assert lines["series"][0] == {
        "label": "a", "x": [0, 1], "y": [None, 0.333333], "low": [0, 1], "high": [2, None], "dashed": True,
    }  # fmt: skip
    assert (lines["kind"], lines["log"], lines["level"]) == ("lines", True, 0.5)
    assert bars["series"][0]["x"] == ["p", "q"]
    assert (heats["kind"], heats["values"], heats["high"]) == ("heatmap", [[1.0, None]], 0.5)


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
