"""Results on pages, in a real browser: every kind is drawn, is read by pointer and keys; nothing that data say runs."""

import dataclasses

import numpy as np
import pytest
from browser import accessibility_faults, opened
from drawing import NASTY
from every_result import every_result

from lenscope.display.figures import Figure
from lenscope.display.page import page
from lenscope.display.panels import Heatmap, Panel, Series
from lenscope.experiments.report import Report
from lenscope.statistics.intervals import Estimate

KINDS = ("side by side", "predicted", "generated", "effects", "evaluation", "transfer", "report")
ACTING = "</script><script>document.title='gone'</script><img src=x onerror=\"document.title='gone'\">" + NASTY


def report():
    names, layers = ["a task", "another"], [0, 1, 2]
    lines = Series("tuned", layers, [1.0, 2.0, np.nan], [0.5, 1.5, np.nan], [1.5, 2.5, np.nan])
    panels = [
        Panel("lines", "layer", "nats", [lines, Series("control", layers, [3.0, 2.0, 1.0], dashed=True)], level=1.5),
        Panel("logs", "layer", "nats", [Series("", layers, [0.1, 10.0, 1000.0])], log=True),
        Panel(
            "bars", "", "share", [Series("here", names, [0.2, -0.1], [0.1, -0.3], [0.3, 0.0])], kind="bars", level=0.0
        ),
        Panel("points", "x", "y", [Series("", [0.1, 0.2], [1, 2])], kind="points"),
        Heatmap("map", "target layer", "source layer", [0, 1], [0, 1], [[0.0, np.nan], [0.25, 1.0]], "accuracy"),
    ]
    tables = {"by layer": [{"layer": 0, "what": "x", "KL": Estimate(1.0, 0.5, 2.0)}], "empty": []}
    return Report("e", "m", "a claim", "a reading", tables, (Figure("f", panels),), {"seed": 0})


def result_of(kind):
    return report() if kind == "report" else every_result()[kind]


def written(path, *results, title="t"):
    path.write_text(page(list(results), title), encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_and_fits(kind, width, browser, tmp_path):
    with opened(browser, written(tmp_path / "a.html", result_of(kind)), width=width, dark=width == 400) as tab:
        tab.wait_for_selector("section.result")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.locator("svg, [role=gridcell], table.plain").count()
        assert "NaN" not in tab.locator("#page").inner_html()
        assert not accessibility_faults(tab)


def test_a_cell_of_a_grid_opens_and_stays(browser, tmp_path):
    grid = every_result()["predicted"]
    with opened(browser, written(tmp_path / "a.html", grid)) as tab:
        cells = tab.get_by_role("gridcell")
        cells.first.hover()
        aside = tab.get_by_role("complementary")
        # the last source layer is on top, the lowest target layer on the left
        assert "Source layer 4 → layer 0" in aside.inner_text()
        assert aside.get_by_role("listitem").count() == 3
        cells.first.click()
        cells.last.hover()
        assert "Source layer 4 → layer 0" in aside.inner_text(), "a cell that was opened stays"
        tab.keyboard.press("Escape")
        tab.keyboard.press("ArrowRight")
        assert "Source layer 4 → layer 4" in aside.inner_text()
        tab.keyboard.press("ArrowDown")
        assert "Source layer 1 → layer 4" in aside.inner_text()
        tab.get_by_text("entropy", exact=True).first.click()
        classes = [cell.get_attribute("class") for cell in cells.all()]
        assert len({*classes}) > 1


def test_cells_of_a_grid_show_words_or_colours(browser, tmp_path):
    grid = every_result()["predicted"]
    with opened(browser, written(tmp_path / "a.html", grid)) as tab:
        first = tab.get_by_role("gridcell").first
        assert first.inner_text()
        tab.get_by_text("colours", exact=True).click()
        assert not first.inner_text()
        tab.get_by_text("words", exact=True).click()
        assert first.inner_text()


def test_lenses_beside_each_other_show_one_cell_of_all(browser, tmp_path):
    result = every_result()["side by side"]
    with opened(browser, written(tmp_path / "a.html", result)) as tab:
        grids = tab.locator(".side")
        assert grids.locator("h3").all_inner_texts() == ["Lens 1: logit lens", "Lens 2: tuned"]
        grids.nth(1).get_by_role("gridcell").last.click()
        aside = tab.get_by_role("complementary").inner_text()
        assert "Layer 0" in aside
        assert f"KL(1 ‖ 2)\n{result.kl[0, 1, 0, -1]:.3g}"[:14] in aside.replace("\t", "\n")
        assert tab.get_by_text("share of positions where lens 1 and each other").count() == 1


def test_answers_are_marked_in_what_was_written(browser, tmp_path):
    data = every_result()["generated"].page_data()
    data |= {"texts": ["the city of Paris, Parisian", *data["texts"][1:]], "answers": [" paris"]}
    with opened(browser, written(tmp_path / "a.html", data)) as tab:
        assert tab.locator("mark.answer").all_inner_texts() == ["Paris"]


def test_charts_are_read_by_pointer_and_keys(browser, tmp_path):
    with opened(browser, written(tmp_path / "a.html", report())) as tab:
        plot, readout = tab.get_by_role("group", name="lines: nats over layer").first, tab.locator(".readout").first
        plot.focus()
        tab.keyboard.press("Home")
        assert readout.inner_text().split("\n")[0].startswith("layer 0")
        assert "tuned 1 (0.5 – 1.5)" in readout.inner_text()
        tab.keyboard.press("ArrowRight")
        assert "control 2" in readout.inner_text()
        box = plot.bounding_box()
        tab.mouse.move(box["x"] + box["width"] - 20, box["y"] + 50)
        assert readout.inner_text().startswith("layer 2")
        assert "tuned –" in readout.inner_text(), "what is not known is not drawn as a number"


def test_effects_show_the_cell_and_another_prompt(browser, tmp_path):
    effects = every_result()["effects"]
    with opened(browser, written(tmp_path / "a.html", effects)) as tab:
        assert tab.get_by_role("gridcell").count() == len(effects.layers) * len(effects.runs[0].places)
        tab.get_by_role("combobox").select_option("1")
        assert tab.get_by_role("gridcell").count() == len(effects.layers) * len(effects.runs[1].places)
        tab.get_by_role("gridcell").first.focus()
        assert "Layer 2" in tab.get_by_role("complementary").inner_text()


def test_an_evaluations_table_is_of_the_chosen_measure(browser, tmp_path):
    evaluation = every_result()["evaluation"]
    with opened(browser, written(tmp_path / "a.html", evaluation)) as tab:
        tab.get_by_text("agreement", exact=True).last.click()
        rows = tab.locator("table.plain tbody tr").all_inner_texts()
        assert len(rows) == len(evaluation.layers) + 1
        assert rows[-1].startswith("model")
        tab.get_by_text("log", exact=True).click()
        assert tab.get_by_text("(log scale)").count()


def test_nothing_that_data_say_runs(browser, tmp_path):
    grid = every_result()["predicted"]
    words = {i: ACTING + text for i, text in grid.vocabulary.items()}
    sources = tuple(dataclasses.replace(s, text=ACTING, token=ACTING, label=ACTING) for s in grid.sources)
    targets = tuple(dataclasses.replace(t, text=ACTING, tokens=(ACTING,) * len(t.tokens)) for t in grid.targets)
    hostile = dataclasses.replace(
        grid, vocabulary=words, sources=sources, targets=targets, model=ACTING, texts=(ACTING,) * len(grid)
    )
    list_of = dataclasses.replace(every_result()["generated"], texts=("x" * 100_000 + ACTING,) * 4, sources=sources)
    runs = tuple(
        dataclasses.replace(r, text=ACTING, tokens=(ACTING,) * len(r.tokens), answer=ACTING)
        for r in every_result()["effects"].runs
    )
    effects = dataclasses.replace(every_result()["effects"], runs=runs, method=ACTING)
    bars = Panel(ACTING, ACTING, ACTING, [Series(ACTING, [ACTING], [1.0])], kind="bars")
    heat = Heatmap(ACTING, ACTING, ACTING, [ACTING], [ACTING], [[1.0]], ACTING, [[ACTING]])
    figure = Figure(ACTING, [bars, heat])
    other = Report(ACTING, ACTING, ACTING, ACTING, {ACTING: [{ACTING: ACTING}]}, (figure,), {ACTING: ACTING})
    with opened(browser, written(tmp_path / "a.html", hostile, list_of, effects, other, title="safe")) as tab:
        tab.wait_for_selector("section.report")
        assert tab.locator("section.result").count() == 4
        assert tab.locator("img, script[src]").count() == 0
        assert tab.title() == "safe"
