"""Drawing: a heat map is as large as what it holds, its texts read on their cells, few large values hide no others."""

import io

import numpy as np
import pytest

from lenscope.display import drawing, style
from lenscope.display.panels import Heatmap, Panel, Series, usual_high

LIGHT = style.PALETTES["light"]


def draw_in(panels, palette=LIGHT):
    """What is drawn, as matplotlib's own objects."""
    with drawing.canvas_of(panels, palette, 50) as canvas:
        canvas.savefig(io.BytesIO(), format="png")
    return canvas


def heat(values, **more):
    rows, columns = np.shape(values)
    texts = [[f"t{n}" for n in range(columns)] for _ in range(rows)]
    return Heatmap("", "", "", range(columns), range(rows), np.array(values), "nats", texts, **more)


def test_a_heat_map_grows_with_its_cells():
    small, large = (draw_in([heat(np.ones((rows, 40)))]).get_size_inches() for rows in (4, 31))
    assert small[0] == large[0] > 10
    assert large[1] - small[1] > 27 * drawing.LINE - 1


def test_texts_that_would_make_too_large_a_picture_are_left_out():
    figure = draw_in([heat(np.ones((2, 400)))])
    assert max(figure.get_size_inches()) <= drawing.LARGEST
    assert not figure.axes[0].texts


@pytest.mark.parametrize("theme", style.THEMES)
def test_texts_read_on_their_cells(theme):
    palette = style.PALETTES[theme]
    values = [[0.0, 1.0, np.nan]]
    figure = draw_in([heat(values, bold=[[True, False, False]])], palette)
    first, second, unknown = figure.axes[0].texts
    for text, ground in ((first, palette.ramp[0]), (second, palette.ramp[-1]), (unknown, palette.wash)):
        assert style.contrast(text.get_color(), ground) >= 4.5
    assert [text.get_weight() for text in (first, second)] == ["bold", "normal"]
    assert figure.get_facecolor()[:3] == pytest.approx([int(palette.paper[n : n + 2], 16) / 255 for n in (1, 3, 5)])


def test_few_large_values_hide_no_others():
    values = np.concatenate([np.linspace(0, 1, 99), [50.0]])[None]
    high = usual_high(values)
    assert high < 2
    image = draw_in([heat(values, high=high)]).axes[0].images[0]
    assert image.get_clim()[1] == high
    assert image.colorbar.extend == "max"
    assert usual_high([0.0, 1.0, 1.2]) is None
    assert usual_high([np.nan]) is None


def test_a_scale_of_ranks_is_logarithmic_and_knows_what_is_not_known():
    image = draw_in([heat([[-1.0, 0.0, 9.0, 99.0]], log=True)]).axes[0].images[0]
    assert image.get_array().mask.tolist() == [[True, False, False, False]]
    assert image.norm([0.0, 9.0, 99.0]).tolist() == pytest.approx([0, 0.5, 1])


def test_a_log_scale_is_not_of_rounding():
    """KL at the last layer is 1e-9 nats."""
    panels = [Panel("", "", "", [Series("", [0, 1, 2], [100.0, 2.0, last])], log=True) for last in (1e-9, 0.5)]
    bottoms = [axes.get_ylim()[0] for axes in draw_in(panels).axes]
    assert bottoms[0] == pytest.approx(0.01)
    assert bottoms[1] > 0.1


def test_more_lines_than_colours_are_told_apart():
    series = [Series(str(n), [0, 1], [n, n]) for n in range(7)]
    lines = draw_in([Panel("", "", "", series)]).axes[0].lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 7


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["lines", "bars", "points"])
@pytest.mark.parametrize("values", [[0.0, 0.0], [float("nan"), -1.0], [float("inf"), 1e300]])
@pytest.mark.parametrize("log", [False, True])
def test_values_that_no_axis_has_are_drawn_without_a_warning(kind, values, log):
    """Such as the KL of the last layer alone, on a log scale."""
    one = Series("a", [0, 1], values, [0.0, 0.0], [float("inf")] * 2)
    assert draw_in([Panel("t", "x", "y", [one], kind=kind, log=log)]).axes


@pytest.mark.parametrize("theme", style.THEMES)
def test_rows_that_are_not_to_be_trusted_are_pale_and_named_so(theme):
    values = np.linspace(0, 1, 12).reshape(3, 4)
    canvas = draw_in(
        [heat(values, doubted=[True, False, False], note="not to be trusted at layer 0: why")], style.PALETTES[theme]
    )
    axes = canvas.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["?0", "1", "2"]
    assert "? and pale: not to be trusted at layer 0: why" in " ".join(axes.get_xlabel().split())
    assert len(axes.patches) == 1
    palette = style.PALETTES[theme]
    for colour in palette.ramp:
        pale = style.blended(colour, palette.paper, drawing.VEIL)
        assert style.contrast(style.text_on(pale), pale) >= 4.5
        # the page has ink on the same colour
        assert style.contrast(palette.ink, pale) >= 4.5
    bare = Heatmap("", "", "", range(4), range(3), values, "nats", doubted=[False, True, False], note="why")
    assert len(draw_in([bare], palette).axes[0].patches) == 2
    plain = draw_in([heat(values)], palette).axes[0]
    assert (len(plain.patches), plain.get_xlabel()) == (0, "")
