"""What a fitted lens's report says of held-out text and of its layers; trajectories, tables and pages carry it."""

import dataclasses

import numpy as np
import pytest
from affine_lens import affine

import lenscope as ls
from lenscope.display.payload import unpacked_arrays
from lenscope.lenses.lens_reports import (
    HELD_OUT,
    LEAST_AGREEMENT,
    UNTRUSTED,
    doubtful_layers,
    doubts_entry,
    doubts_in_words,
    doubts_of,
    held_out_kl,
)

ROWS = [{"layer": n, "kl": 3.5 - n, "kl_logit_lens": 9.0 - n, "kl_95": None} for n in range(2)]
EXPECTED = {"layers": [0, 1], "kl": [3.5, 2.5], "logit_lens": [9.0, 8.0]}


def test_a_report_says_how_well_its_lens_reads():
    assert held_out_kl(ROWS) == EXPECTED


@pytest.mark.parametrize("rows", [None, [], "text", [{"layer": 0}], [{"layer": 0, "kl": "much", "kl_logit_lens": 1}],
                                  [{"layer": 0, "kl": float("nan"), "kl_logit_lens": 1.0}], 7])  # fmt: skip
def test_a_report_without_it_says_nothing(rows):
    assert held_out_kl(rows) is None


def test_trajectories_and_pages_carry_it(lm, tmp_path):
    f = dataclasses.replace(affine(lm), report={"lens": "tuned lens", "layers": ROWS})
    t = ls.Lens(lm, f).trajectory("The cat")
    assert t.provenance[HELD_OUT] == EXPECTED
    data = t.page_data()
    assert data["held_out_kl"] == EXPECTED
    assert HELD_OUT not in data["provenance"]
    np.testing.assert_allclose(unpacked_arrays(data)["kl"], t.kl, rtol=1e-4, atol=1e-30)
    t.save(tmp_path / "t.parquet")
    assert ls.load_results(tmp_path / "t.parquet") == t
    assert ls.Lens(lm).trajectory("The cat").page_data()["held_out_kl"] is None
    assert ls.Lens(lm, affine(lm)).trajectory("The cat").page_data()["held_out_kl"] is None


def jacobian(*rows):
    """A report of a Jacobian lens: rows of (layer, cosine, the lower end of its interval)."""
    said = [{"layer": n, "cosine": c, "cosine_95": None if low is None else [low, 1.0]} for n, c, low in rows]
    return {"lens": "Jacobian lens", "layers": said}


def test_a_jacobian_lens_is_trusted_where_the_halves_of_its_prompts_agree():
    report = jacobian((0, 0.625, 0.55), (1, 0.95, LEAST_AGREEMENT), (2, 0.95, 0.8999), (3, 0.7, None))
    assert doubtful_layers(report, range(6), 5) == {
        0: "two halves of its prompts agree at cosine .62",
        2: "two halves of its prompts agree at cosine .95 (95 % interval from .89)",
        3: "its report has no measurement",
        4: "its report has no measurement",
    }
    assert doubtful_layers(report, (1, 2), 5).keys() == {2}


def test_a_lens_that_predicts_the_model_is_trusted_where_it_is_not_worse_than_the_logit_lens():
    rows = [
        {"layer": 0, "kl": 3.25, "kl_logit_lens": 2.5, "gain_95": [-1.0, -0.001]},
        {"layer": 1, "kl": 3.25, "kl_logit_lens": 2.5, "gain_95": [-1.0, 0.0]},
        {"layer": 2, "kl": 1.0, "kl_logit_lens": 2.5, "gain_95": [1.0, 2.0]},
        {"layer": 3, "kl": None, "kl_logit_lens": 2.5, "gain_95": None},
        {"layer": 4, "kl": 3.25, "kl_logit_lens": 2.5, "gain_95": None},
    ]
    assert doubtful_layers({"lens": "tuned lens", "layers": rows}, range(7), 6) == {
        0: "it is worse than the logit lens on held-out text (KL 3.25, and 2.50 nats)",
        3: "its report has no measurement",
        5: "its report has no measurement",
    }


@pytest.mark.parametrize("report", [
    None, {}, [], {"layers": None}, {"layers": []}, {"layers": "text"}, {"layers": [7, {"layer": "0"}]},
    {"lens": "Jacobian lens", "layers": [{"layer": 0, "kl": 1.0}]}, {"layers": [{"layer": 0, "kl": "much"}]},
    jacobian((0, 0.1, None)), jacobian((0, 0.1, float("nan"))),
])  # fmt: skip
def test_a_report_without_measurements_doubts_nothing(report):
    assert doubtful_layers(report, range(5), 4) == {}


def test_doubts_of_one_kind_stand_together_in_one_line():
    report = jacobian((0, 0.31, 0.3), (1, 0.5, 0.4), (2, 0.88, 0.8), (3, 0.99, 0.98))
    line = doubts_in_words(doubtful_layers(report, range(8), 7))
    assert line == (
        "not to be trusted at layers 0–2: two halves of its prompts agree at cosine .31 at layer 0 … .88 at layer 2; "
        "layers 4–6: its report has no measurement there"
    )
    assert doubts_in_words({4: "two halves of its prompts agree at cosine .62"}) == (
        "not to be trusted at layer 4: two halves of its prompts agree at cosine .62 there"
    )
    assert doubts_in_words({}) == ""


def test_a_provenance_that_is_none_of_ours_doubts_nothing():
    assert doubts_of(doubts_entry({3: "why", 4: "so"})) == {3: "why", 4: "so"}
    assert doubts_entry({}) == doubts_of({}) == {}
    for entry in (None, 7, [], {"layers": [1]}, {"layers": [1], "why": []}, {"layers": ["x"], "why": ["y"]}):
        assert doubts_of({UNTRUSTED: entry}) == {}


def test_a_lens_says_where_it_is_trusted_and_its_trajectories_show_it(lm, tmp_path):
    report = jacobian(*((n, 0.62 if n < 2 else 0.97, 0.6 if n < 2 else 0.95) for n in range(lm.n_layers)))
    lens = ls.Lens(lm, dataclasses.replace(affine(lm), report=report))
    assert lens.trusted == tuple(range(2, lm.n_layers + 1))
    assert ls.Lens(lm).trusted == tuple(range(lm.n_layers + 1))
    assert ls.Lens(lm).doubts == ls.Lens(lm, affine(lm)).doubts == {}
    t = lens.trajectory("The cat")
    assert t.doubts == lens.doubts == dict.fromkeys((0, 1), "two halves of its prompts agree at cosine .62")
    t.save(tmp_path / "t.parquet")
    loaded = ls.load_results(tmp_path / "t.parquet")
    assert loaded.doubts == t.doubts
    line = "not to be trusted at layers 0–1: two halves of its prompts agree at cosine .62 there"
    text = str(loaded.table())
    assert [row.split()[0] for row in text.splitlines()[1 : lm.n_layers + 2]] == [
        *(str(n) for n in range(lm.n_layers, 1, -1)), "?1", "?0",
    ]  # fmt: skip
    assert f"? and grey: {line}" in " ".join(text.split())
    data = t.page_data()
    assert data["doubts"] == {"layers": [0, 1], "why": list(t.doubts.values()), "line": line}
    assert UNTRUSTED not in data["provenance"]
    (panel,) = t.figure().panels
    assert (panel.doubted[:3], panel.note) == ([True, True, False], line)
    # a trajectory of trusted layers, and of the logit lens, looks as ever
    for plain in (lens.trajectory("The cat", layers=[2, 3]), ls.Lens(lm).trajectory("The cat")):
        assert plain.doubts == {}
        assert plain.page_data()["doubts"] is None
        assert "not to be trusted" not in str(plain.table())


def test_a_comparison_doubts_what_one_of_its_lenses_does(lm):
    report = jacobian(*((n, 0.5, 0.4) if n == 1 else (n, 0.97, 0.95) for n in range(lm.n_layers)))
    doubted = ls.Lens(lm, dataclasses.replace(affine(lm), report=report))
    both = ls.Lens(lm).compare("The cat", "The cat", lens=doubted)
    assert both.doubts == {1: "two halves of its prompts agree at cosine .50"}
    text = " ".join(str(both.table()).split())
    assert "? and grey: not to be trusted at layer 1: two halves" in text
    (panel,) = both.figure().panels
    assert [n for n, d in enumerate(panel.doubted) if d] == [both.layers.index(1)]
