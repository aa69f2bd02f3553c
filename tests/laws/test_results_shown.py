"""Every result shows itself: as a figure of each of its measures, as a data frame, on a page."""

import dataclasses
import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from drawing import NASTY
from every_result import KINDS, every_result
from matplotlib.image import imread

import lenscope as ls
from lenscope.detection.prompt_features import PromptFeatures
from lenscope.directions.alignment import Alignment
from lenscope.directions.influence import Influence
from lenscope.display.panels import Heatmap, Panel
from lenscope.display.payload import unpacked_arrays
from lenscope.experiments.report import Report
from lenscope.interventions.block_ablation_results import BlockAblations
from lenscope.lenses.token_ranks import TokenRanks
from lenscope.models.check import Finding, ModelCheck
from lenscope.patchscopes.with_controls import ControlledScores, ControlledTexts
from lenscope.statistics.intervals import Estimate
from lenscope.tasks.answer_likelihoods import AnswerScores


def measures_of(result):
    known = getattr(result, "units", None) or getattr(result, "units_of_measures", None)
    return list(known if isinstance(known, dict) else getattr(result, "measures", ["cross_entropy", "kl"]))


def values_of(panel):
    if isinstance(panel, Heatmap):
        return np.asarray(panel.values, dtype=float)
    return np.array([one.y for one in panel.series], dtype=float)


@pytest.mark.parametrize("kind", KINDS)
def test_every_measure_has_a_figure(kind):
    result = every_result()[kind]
    for measure in measures_of(result):
        figure = result.figure(measure)
        assert figure.panels
        for panel in figure.panels:
            assert measure.replace("_", " ") in (
                panel.colour if isinstance(panel, Heatmap) else f"{panel.title}{panel.y}"
            )
            assert values_of(panel).size
    assert imread(io.BytesIO(result.figure().image())).std() > 0
    with pytest.raises(ls.LenscopeError, match="measure 'no such'"):
        result.figure("no such")


def test_a_trajectorys_figure_has_its_tokens_and_its_numbers():
    t = every_result()["trajectory"]
    (panel,) = t.figure("kl").panels
    assert (panel.rows, list(panel.columns)) == (t.layers, [p.replace(" ", "·") for p in t.tokens])
    assert np.array_equal(panel.values, t.kl)
    assert panel.texts[0][0].strip("·") == t.vocabulary[int(t.top_ids[0, 0, 0])].strip()
    (ranks,) = t.figure("rank").panels
    assert ranks.log
    assert np.isnan(ranks.values[:, -1]).all(), "there is no next token of the last position"


def test_an_evaluations_figure_has_intervals_and_the_models_own_value():
    e = every_result()["evaluation"]
    kl, entropy = e.figure(["kl", "entropy"]).panels
    assert [one.label for one in kl.series] == list(e.lenses)
    assert np.array_equal(np.array([one.low for one in kl.series]), e.interval("kl")[..., 0], equal_nan=True)
    assert entropy.level == pytest.approx(float(e.own["entropy"][0]))


def test_a_grids_figure_is_a_heat_map_or_lines():
    grid = every_result()["predicted"]
    (panel,) = grid.figure("entropy").panels
    assert np.array_equal(panel.values, grid.cells("entropy"))
    arrays = {name: getattr(grid, name)[[0, 3]] for name in ("source", "layer", "target", "ids", "log_probs")}
    measures = {name: values[[0, 3]] for name, values in grid.measures.items()}
    same = dataclasses.replace(grid, **arrays, texts=grid.texts[:2], measures=measures)
    (lines,) = same.figure("entropy").panels
    assert isinstance(lines, Panel)
    assert [list(one.x) for one in lines.series] == [[1, 4]]
    with pytest.raises(ls.LenscopeError, match="no cells"):
        dataclasses.replace(grid, source=grid.source[:0]).figure()


def test_hostile_names_are_drawn_as_text():
    t = every_result()["trajectory"]
    words = {i: NASTY + text for i, text in t.vocabulary.items()}
    drawing = dataclasses.replace(t, vocabulary=words, lens=NASTY, model="</svg><script>").figure().image("svg")
    assert b"<script" not in drawing


def other_results():
    """Results that are no records, each with the number of rows of its data frame."""
    basis = SimpleNamespace(layers=(1, 2), energies=np.ones((2, 3)))
    cells = ((0, 1), (2, 1))
    by_way = {"vector": np.eye(2), "text": np.ones((2, 1))}
    sums = {"loss": np.ones((2, 3, 4)), "kl": np.ones((2, 3, 4))}
    ablations = BlockAblations("m", 3, ("a", "b"), (1, 2, 3), (), (), np.ones(4), np.ones(4), sums, {}, {})
    tables = {"first": [{"layer": 1, "kl": Estimate(1.0, 0.5, 2.0)}], "second": [{"x": 1}, {"x": 2}]}
    return {
        "scores": (ControlledScores(cells, by_way, units=["a", "b"]), 6),
        "texts": (ControlledTexts(cells, {w: t.astype(str).astype(object) for w, t in by_way.items()}), 6),
        "ablations": (ablations, 6),
        "alignment": (Alignment(basis, ("logit lens",), np.zeros((1, 4, 2)), np.arange(8).reshape(1, 4, 2)), 8),
        "influence": (Influence(basis, np.ones((2, 4, 2, 3)), np.ones(4)), 6),
        "answers": (AnswerScores((0, 1), np.zeros((2, 2, 3)), np.zeros((2, 3)), np.ones((2, 3), dtype=int)), 12),
        "features": (PromptFeatures((0,), ("a", "b"), np.ones((3, 2)), np.ones((3, 1, 4))), 3),
        "check": (ModelCheck("m", (Finding("a", "b"), Finding("c", "d", True))), 2),
        "ranks": (TokenRanks((5,), (0, 1), (3,), np.ones((1, 2, 1), int), np.zeros((1, 2, 1)), {5: "x"}, "m", "l"), 2),
        "report": (Report("e", "m", "c", "r", tables), 1),
    }


@pytest.mark.parametrize("name", other_results())
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_results_that_are_no_records_give_data_frames_too(name, library, monkeypatch):
    pytest.importorskip(library)
    if library == "polars":
        monkeypatch.setitem(sys.modules, "pandas", None)
    result, rows = other_results()[name]
    frame = result.to_dataframe()
    assert type(frame).__module__.startswith(library)
    assert len(frame) == rows


def test_a_data_frame_of_a_reports_table():
    report, _ = other_results()["report"]
    assert list(report.to_dataframe()) == ["layer", "kl", "kl_low", "kl_high"]
    assert len(report.to_dataframe("second")) == 2
    with pytest.raises(ls.LenscopeError, match="table 'third': this report has first, second"):
        report.to_dataframe("third")


@pytest.mark.parametrize("kind", [*KINDS, "report"])
def test_every_result_gives_a_page_its_numbers(kind, tmp_path):
    result = other_results()["report"][0] if kind == "report" else every_result()[kind]
    data = json.loads(json.dumps(result.page_data(), allow_nan=False))
    assert data["kind"] == {"predicted": "grid", "generated": "grid"}.get(kind, kind)
    assert isinstance(unpacked_arrays(data), dict)
    result.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 10_000
    assert result._repr_html_().startswith("<iframe sandbox=")


def test_a_grids_page_has_its_cells_and_answers():
    grid = every_result()["predicted"]
    data = grid.page_data()
    arrays = unpacked_arrays(data)
    assert (data["answers"], data["written"], data["colour"]) == (["a"], False, "log_prob:a")
    assert arrays["ids"].tolist() == grid.ids.tolist()
    for values, name in zip(arrays["values"], data["measures"], strict=True):
        assert values == pytest.approx(grid.measures[name], rel=1e-3, nan_ok=True)
    written = every_result()["generated"].page_data()
    assert written["written"]
    assert len(written["texts"]) == len(written["ended"]) == len(every_result()["generated"])


def test_an_evaluations_page_has_intervals_and_differences():
    e = every_result()["evaluation"]
    arrays = unpacked_arrays(e.page_data())
    assert arrays["values"].shape == arrays["differences"].shape == (len(e.values), len(e.lenses), len(e.layers), 3)
    assert arrays["values"][list(e.values).index("kl")] == pytest.approx(e.values["kl"], rel=1e-3, nan_ok=True)


def test_a_reports_page_has_its_figures_as_numbers():
    report = dataclasses.replace(other_results()["report"][0], figures=(every_result()["evaluation"].figure(),))
    data = report.page_data()
    assert data["tables"][0] == {"name": "first", "columns": ["layer", "kl"], "rows": [[1, [1.0, 0.5, 2.0]]]}
    assert data["figures"][0]["panels"][0]["kind"] == "lines"
