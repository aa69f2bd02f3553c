"""Reports and figures: what is written can be read again, every kind of panel is drawn, wrong places are refused."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread
from rich.console import Console

import lenscope as ls
from lenscope.display.drawing import COLUMNS, HEIGHT, LEGEND, WIDTH
from lenscope.display.figures import DOTS, Figure
from lenscope.display.panels import Heatmap, Panel, Series
from lenscope.display.style import PALETTES
from lenscope.errors import LenscopeError
from lenscope.experiments.report import Report, prose
from lenscope.statistics.intervals import Estimate

LINES = PALETTES["light"].lines
ROWS = [
    {"layer": 0, "what": "a | b\nc", "kl": Estimate(1.25, 1.0, 1.5), "p": np.float64(0.0004), "n": np.int64(12_345)},
    {"layer": 1, "what": "d", "kl": Estimate(0.5, np.nan, np.nan), "p": float("nan"), "n": 7},
]
LINE = Series("here", [0, 1, 2], [1.0, 2.0, 3.0], [0.5, 1.5, 2.5], [1.5, 2.5, 3.5])
CONTROL = Series("control", [0, 1, 2], [1.0, float("nan"), 1.0], dashed=True)
BARS = Series("here", ["a", "b"], [0.7, 0.9], [0.6, 0.8], [0.8, 1.0])
MAP = Heatmap("map", "x", "y", range(25), ["a", "b"], np.arange(50).reshape(2, 25), "value")
PANELS = {
    "lines": Panel("lines", "x", "y", [LINE, CONTROL], level=1.5),
    "one line": Panel("lines", "x", "y", [Series("", [0, 1], [1, 2])]),
    "log": Panel("log", "x", "y", [LINE], log=True),
    "bars": Panel("bars", "x", "y", [BARS, Series("chance", ["a", "b"], [0.5, 0.5], dashed=True)], kind="bars"),
    "long names": Panel("bars", "x", "y", [Series("", ["n" * 30, "m" * 30], [1, 2])], kind="bars"),
    "points": Panel("points", "x", "y", [Series("", [0.1, 0.2], [1, 2])], kind="points"),
    "heat map": MAP,
}


def report(**changed):
    given = {
        "experiment": "fake",
        "model": "tiny",
        "claim": "a claim",
        "reading": "a reading",
        "tables": {"by layer": ROWS, "empty": []},
        "settings": {"seed": 0, "of": np.float64(0.5), "none": float("nan"), "sizes": (1, 2)},
        "provenance": {"torch": "2"},
    }
    return Report(**{**given, **changed})


def test_markdown_has_the_claim_the_reading_and_tables():
    text = report(figures=(Figure("drawn", [PANELS["lines"]]),)).markdown()
    lines = text.splitlines()
    assert lines[0] == "# fake: tiny"
    assert "**The paper.** a claim" in lines
    assert "**Here.** a reading" in lines
    assert "![drawn](drawn.png)" in lines
    at = lines.index("## by layer")
    assert lines[at + 2 : at + 6] == [
        "| layer | what | kl | p | n |",
        "| ---: | --- | ---: | ---: | ---: |",
        "| 0 | a \\| b↵c | 1.25 [1.00, 1.50] | 4.0e-04 | 12,345 |",
        "| 1 | d | 0.50 | – | 7 |",
    ]
    assert lines[lines.index("## empty") + 2] == "(no rows)"
    assert "- seed: 0" in lines


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (-0.0123, "-0.012"),
        (123.456, "123.46"),
        (-0.00012, "-1.2e-04"),
        (float("inf"), "–"),
        (None, "–"),
        (True, "True"),
        ("word", "word"),
        (1234567, "1,234,567"),
        (Estimate(-0.5, -0.61, 0.0), "-0.50 [-0.61, 0.00]"),
    ],
)
def test_values_as_one_reads_them(value, text):
    assert prose(value) == text


def test_a_terminal_shows_a_table():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report().table("by layer"))
    text = console.export_text()
    assert "1.25 [1.00, 1.50]" in text
    assert "12,345" in text
    with pytest.raises(LenscopeError, match="table 'kl': this report has by layer, empty"):
        report().table("kl")


def test_parquet_has_the_ends_of_intervals(tmp_path):
    report().save(tmp_path)
    table = pq.read_table(tmp_path / "by_layer.parquet")
    assert table.column_names == ["layer", "what", "kl", "kl_low", "kl_high", "p", "n"]
    assert table["layer"].to_pylist() == [0, 1]
    assert table["what"].to_pylist() == ["a | b\nc", "d"]
    assert table["kl"].to_pylist() == [1.25, 0.5]
    assert table["kl_low"].to_pylist()[0] == 1.0
    assert table["kl_high"].to_pylist()[0] == 1.5
    assert np.isnan(table["kl_low"].to_pylist()[1])
    assert table["n"].to_pylist() == [12_345, 7]
    head = json.loads(table.schema.metadata[b"report"])
    assert (head["experiment"], head["model"], head["settings"]["seed"]) == ("fake", "tiny", 0)
    assert head["provenance"] == {"torch": "2"}
    assert pq.read_table(tmp_path / "empty.parquet").num_rows == 0


def test_a_value_without_an_interval_among_some_with_one(tmp_path):
    report(tables={"t": [{"v": 0.0}, {"v": Estimate(1.0, 0.5, 2.0)}]}).save(tmp_path)
    table = pq.read_table(tmp_path / "t.parquet")
    assert table["v"].to_pylist() == [0.0, 1.0]
    assert table["v_high"].to_pylist() == [0.0, 2.0]


def test_json_holds_everything(tmp_path):
    report().save(tmp_path)
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert data["tables"]["by layer"][0] == {"layer": 0, "what": "a | b\nc", "kl": [1.25, 1.0, 1.5], "p": 0.0004,
                                              "n": 12_345}  # fmt: skip
    assert data["tables"]["by layer"][1]["kl"] == [0.5, None, None]
    assert data["tables"]["by layer"][1]["p"] is None
    assert data["settings"] == {"seed": 0, "of": 0.5, "none": None, "sizes": [1, 2]}
    assert (data["kind"], data["claim"], data["reading"]) == ("report", "a claim", "a reading")


def test_a_report_is_saved_with_its_figures(tmp_path):
    report(figures=(Figure("drawn", [PANELS["lines"]]),)).save(tmp_path)
    names = {"report.md", "report.html", "report.json", "by_layer.parquet", "empty.parquet", "drawn.png"}
    assert {p.name for p in tmp_path.iterdir()} == names
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == report(
        figures=(Figure("drawn", [PANELS["lines"]]),)
    ).markdown()


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(LenscopeError, match="nowhere: is no folder; make it first"):
        report().save(tmp_path / "nowhere")
    with pytest.raises(LenscopeError, match=r"drawn\.png: the folder .*nowhere does not exist"):
        Figure("drawn", [PANELS["lines"]]).save(tmp_path / "nowhere" / "drawn.png")


@pytest.mark.parametrize("name", PANELS)
def test_every_kind_of_panel_is_drawn(name, tmp_path):
    path = Figure("drawn", [PANELS[name]]).save(tmp_path)
    image = imread(path)
    assert path == tmp_path / "drawn.png"
    width = WIDTH + (LEGEND if any(one.label for one in getattr(PANELS[name], "series", ())) else 0)
    assert image.shape[:2] == pytest.approx((HEIGHT * DOTS, width * DOTS), abs=2)
    # axes, labels and numbers: neither blank nor one colour
    assert 0.005 < (image[..., :3].min(-1) < 0.9).mean() < 0.95


def test_panels_stand_three_in_a_line(tmp_path):
    image = imread(Figure("many", list(PANELS.values())[: COLUMNS + 1]).save(tmp_path))
    assert image.shape[:2] == pytest.approx((2 * HEIGHT * DOTS, (COLUMNS * WIDTH + 2 * LEGEND) * DOTS), abs=3)
    last = image[image.shape[0] // 2 :, image.shape[1] // 2 :]
    assert last.min() > 0.99, "the places that are left over stay empty"


def test_what_is_drawn_is_where_it_belongs(tmp_path):
    """A line of 0 and one of 1: the higher one's colour is above."""
    series = [Series("", [0, 1], [0.0, 0.0]), Series("", [0, 1], [1.0, 1.0])]
    image = imread(Figure("two", [Panel("", "", "", series)]).save(tmp_path))[..., :3]

    def place(colour):
        near = (np.abs(image - np.array([int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)])) < 0.02).all(-1)
        return np.nonzero(near)[0].mean()

    assert place(LINES[1]) < place(LINES[0]) - 100


def test_a_map_of_one_value_is_the_bottom_of_the_scale(tmp_path):
    def drawn(name, values):
        return imread(Figure(name, [Heatmap("", "", "", [0, 1], [0, 1], np.array(values), "")]).save(tmp_path))

    zeros, span = drawn("zeros", [[0.0, 0.0], [0.0, 0.0]]), drawn("span", [[0.0, 0.0], [0.0, 1.0]])
    height, width = zeros.shape[0] // 2, zeros.shape[1] // 4
    assert (zeros[height, width] == span[height, width]).all()
    # what is not known is left out of the scale, and leaves it as it is
    gap = drawn("gap", [[0.0, np.nan], [0.0, 1.0]])
    assert (gap[height, width] == span[height, width]).all()
    assert drawn("nothing", [[np.nan, np.nan], [np.nan, np.nan]]).shape[2] == 4


def test_heat_maps_have_their_first_row_below(tmp_path):
    values = np.array([[0.0, 0.0], [1.0, 1.0]])
    image = imread(Figure("map", [Heatmap("", "", "", [0, 1], [0, 1], values, "")]).save(tmp_path))[..., :3]
    middle = image[:, image.shape[1] // 3]
    most = np.nonzero((middle[:, 0] < 0.2) & (middle[:, 2] > 0.4))[0]
    least = np.nonzero((middle[:, 0] > 0.9) & (middle[:, 2] > 0.9) & (middle[:, 2] < 0.96))[0]
    assert most.mean() < least.mean() - 50


def test_a_report_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    report = ls.Report("drift", "tiny", "a claim", "a reading", {"one": [{"a": 1}], "two": [{"a": 2}]})
    report.save(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert sorted(before) == ["one.parquet", "report.html", "report.json", "report.md", "two.parquet"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ls.Report, "markdown", full)
    other = ls.Report("drift", "tiny", "a claim", "another reading", {"one": [{"a": 3}], "two": []})
    with pytest.raises(LenscopeError, match="No space left"):
        other.save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
