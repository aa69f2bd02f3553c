"""What is shown: nothing from outside acts on a terminal, tables fit where they are, figures compare what they show."""

import dataclasses
import io
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from rich.console import Console

import lenscope as ls
from lenscope import visible_text as visible
from lenscope.cli import demo
from lenscope.cli import detect as detecting
from lenscope.cli.terminal import Screen, fitted_table, item_bar
from lenscope.display import numbers
from lenscope.display.figures import Figure, Heatmap, Panel, Series
from lenscope.display.heat_table import colour_caption, shades_of
from lenscope.display.page import page
from lenscope.experiments.report import Report
from lenscope.patchscopes.grid import Grid
from lenscope.patchscopes.grid_cells import Source, Spot

# colours, a title, the cursor, an 8-bit escape, text turned around, hidden, on new lines; markup of rich and of figures
NASTY = "a\x1b[31mb\x1b]0;t\x07c\x9b2Jd\u202ee\u2066f\u200bg\nh\ri\x7fj[red]k[/red]:smile:$x^2$\ud83d\u2028\U000e0041"
ACTING = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e0fff]"
)


def drawn(shown, width=200, **how):
    console = Console(file=io.StringIO(), width=width, **how)
    console.print(shown)
    return console.file.getvalue()


def test_every_character_is_visible():
    shown = visible.printable(NASTY)
    assert not ACTING.search(shown)
    assert shown.isprintable()
    assert "a<1B>[31mb<1B>]0;t<07>c<9B>2Jd<202E>e<2066>f<200B>g↵h␍i<7F>j[red]k[/red]:smile:$x^2$<D83D>" in shown
    assert visible.printable("Größe, 日本語 and 👍🏽 stay") == "Größe, 日本語 and 👍🏽 stay"
    assert visible.printable("\u3164\u115f\u2800") == "<3164><115F><2800>"
    assert visible.printable_token("  x") == "··x"


@pytest.fixture
def trajectory(lm):
    t = ls.Lens(lm, name=NASTY).trajectory("The cat sat")
    words = {i: NASTY + text for i, text in t.vocabulary.items()}
    return dataclasses.replace(t, vocabulary=words, text=NASTY, model=NASTY)


def grid(kind="predict", **measures):
    """Layers 0 and 1 of a text, each at its own layer."""
    measures = {"max_probability": np.array([0.5, 0.25], np.float32), **measures}
    sources = tuple(Source(NASTY, NASTY, NASTY, NASTY, 0, layer) for layer in (0, 1))
    spots = (Spot(NASTY, (NASTY,), (0,)), Spot(NASTY + "2", (NASTY,), (0,)))
    number = np.array([0, 1])
    ended = ("length", "length") if kind == "generate" else ()
    ids, chances = np.array([[7], [7]]), np.log(np.array([[0.5], [0.25]], np.float32))
    texts = (NASTY, NASTY)
    return Grid(
        kind, NASTY, 1, sources, spots, number, number, number, ids, chances, texts, ended, measures, {7: NASTY}
    )


def tables_of_names(trajectory, lm):
    comparison = ls.Lens(lm).compare("The cat", "The dog")
    odd = dict.fromkeys({**comparison.first.vocabulary, **comparison.second.vocabulary}, NASTY)
    sides = [dataclasses.replace(t, vocabulary=odd) for t in (comparison.first, comparison.second)]
    yield trajectory.table()
    yield trajectory.table("rank", width=300)
    yield dataclasses.replace(comparison, first=sides[0], second=sides[1]).table()
    yield demo.beside(trajectory, trajectory)
    yield grid().table()
    yield grid("generate").table()
    yield grid(**{f"log_prob:{NASTY}": np.array([-1.0, -9.0], np.float32)}).table()
    yield Report("x", NASTY, "c", "r", {"t": [{NASTY: NASTY, "n": 1}]}).table("t")
    rows = [{"layer": 0, "kl": 1.0, "kl_logit_lens": 2.0}]
    yield fitted_table({"lens": NASTY, "layers": rows, "held_out": {"tokens": [1, 1]}})
    yield detecting._table_of_methods([{"method": NASTY, "view": NASTY, "layers": [1], "auroc": 0.5, "size": NASTY}])


def test_no_table_lets_a_name_act(trajectory, lm):
    """Also on a console of the user's own, which knows markup."""
    for n, table in enumerate(tables_of_names(trajectory, lm)):
        text = drawn(table)
        assert not ACTING.search(text), (n, text)
        assert "<1B>" in text, n


def test_the_command_line_s_own_console_is_the_last_guard(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    Screen().print(NASTY, soft_wrap=True)
    assert not ACTING.search(out.getvalue())
    assert "[red]k[/red]:smile:" in out.getvalue()
    progress = item_bar(3, NASTY)
    assert not ACTING.search(drawn(progress.get_renderable()))


def test_the_page_cannot_be_left(trajectory):
    """Names are text within the page's data, where nothing is an element and every half of a pair is an escape."""
    text = page([dataclasses.replace(trajectory, text="</script><b>").to_json()], title=NASTY)
    assert text.count("</script>") == 2
    text.encode("utf-8")


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


def test_a_table_fits_where_it_is_shown(lm):
    """Without a width: a terminal's, whatever it is; in a notebook the whole table, which scrolls."""
    t = ls.Lens(lm).trajectory("word " * 12)
    for width in (24, 40, 80, 200):
        assert max(map(len, drawn(t.table(), width).splitlines())) <= width
    html = t.table()._repr_mimebundle_([], [])["text/html"]
    assert "<pre" in html
    notebook = Console(file=io.StringIO(), force_jupyter=True)
    whole = "".join(part.text for part in notebook.render(t.table(), notebook.options))
    heads = whole.splitlines()[0]
    assert len(heads.split()) >= len(t.ids) > 8
    assert "…" not in whole.splitlines()[1]
    assert "colour: max_probability" in whole
    assert t.table()._repr_html_().startswith("<pre")


def test_numbers_that_are_negative_are_colours_and_a_rank_without_a_target_is_none():
    values = np.array([[-9.0, -1.0]])
    assert shades_of(values, "log_prob: Paris").tolist() == [[0.0, 1.0]]
    assert "-9.0 … -1.0" in colour_caption("log_prob: Paris", values, 0, "nats", "")
    assert np.isnan(shades_of(np.array([[-1, 4]]), "rank")[0, 0])
    assert numbers.figure(-1, "rank") == "–"


def test_an_answer_has_its_number_in_every_line(lm):
    answered = ls.Patchscope(lm, "The cat").predict(lm.read("The dog", positions=-1), "same", answers=[" a", " b"])
    lines = drawn(answered.table()).splitlines()
    for n, line in enumerate(lines[1 : 1 + len(answered)]):
        for name in ("log_prob: a", "log_prob: b"):
            value = float(answered.measures[name][n])
            assert f"{value:.2f} (" in line
    assert lines[0].split()[:5] == ["layer", "ln", "p", "·a", "ln"]


def test_the_number_beside_what_was_written_says_what_it_is(lm):
    said = ls.Patchscope(lm, "The cat").generate(lm.read("The dog", positions=-1), "same", max_new_tokens=2)
    text = " ".join(drawn(said.table()).split())
    assert "p(1st)" in text
    assert "probability of the first token that was written" in text


def test_the_number_of_a_detector_s_table_is_whole_in_a_narrow_terminal():
    ways = [
        {"method": "neighbours", "view": "trajectory", "layers": [1, 2], "auroc": 0.987, "neighbours": n}
        for n in (5, 20)
    ]
    for width in (40, 80):
        assert drawn(detecting._table_of_methods(ways), width).count("0.987") == 2


def test_a_heat_map_too_narrow_for_words_says_its_values_without_colours():
    n = 30
    pairs = np.array([(s, t) for s in range(n) for t in range(n)])
    sources = tuple(Source("", "m", "t", "t", 0, layer) for layer in range(n))
    values = (pairs[:, 1] / (n - 1)).astype(np.float32)
    number, zeros = {"max_probability": values}, np.zeros(n * n, np.int64)
    chances = np.zeros((n * n, 1), np.float32)
    spots, texts = (Spot("t", ("t",), (0,)),), ("x",) * n * n
    columns = sources, spots, pairs[:, 0], pairs[:, 1], zeros, zeros[:, None] + 7, chances, texts, (), number
    whole = Grid("predict", "m", n, *columns, {7: "x"})
    line = drawn(whole.table(width=80), 80).splitlines()[1].split()
    assert line[1] == "0"
    assert line[-1] == "9"
