"""Contrasted rows of a sweep are what the library's own calls say, and all others are what they were."""

import json

import pyarrow.dataset as ds
import pytest

import lenscope as ls
from lenscope.patchscopes.methods import TARGETS
from lenscope.sweeps.estimate import estimate_sweep
from lenscope.sweeps.part_runs import PartRunner
from lenscope.sweeps.running import prepare_sweep

PLAIN = ["predict", {"generate": 4}, "lens"]
CONTRASTED = [{"predict": {"contrast": 0.7}}, {"generate": {"max_new_tokens": 4, "contrast": 2}}]
SPEC = {
    "model": "tiny",
    "sources": {
        "prompts": [
            {"text": "the cat sat", "answer": " mat"},
            {"text": "a dog", "answer": " on the mat", "layers": [1, 2]},
            "on the mat",
        ],
    },
    "targets": ["identity", {"text": "a b x", "at": "x", "below": "source", "layers": [0, 3]}],
    "methods": [*PLAIN, *CONTRASTED],
    "mappings": ["identity", {"scale": 0.5}],
    "controls": ["unpatched", "random", "other-source"],
    "rows_per_part": 40,
}
BY_NAME = {"identity": TARGETS["identity"], "a b x": ls.Target("a b x", at="x", below="source")}


@pytest.fixture(scope="module")
def both(lm64, tmp_path_factory):
    return ls.sweep(SPEC, tmp_path_factory.mktemp("contrast") / "both", models={"tiny": lm64})


@pytest.fixture(scope="module")
def plain(lm64, tmp_path_factory):
    return ls.sweep({**SPEC, "methods": PLAIN}, tmp_path_factory.mktemp("contrast") / "plain", models={"tiny": lm64})


def rows_of(sweep, **filters):
    rows = sweep.dataset().to_table().to_pylist()
    return [row for row in rows if all(row[name] == value for name, value in filters.items())]


def the_same(row, measures, names):
    for name in names:
        column = {f"log_prob:{row['answer']}": "answer_log_prob", f"pmi:{row['answer']}": "answer_pmi"}.get(name, name)
        # a difference is of numbers that are in float32 already
        assert row[column] == pytest.approx(measures[name], abs=1e-5 if name.startswith("pmi") else 1e-6), name


@pytest.mark.parametrize("contrast", [0.0, 0.7])
def test_a_prediction_is_that_of_the_library_with_this_contrast(lm64, both, contrast):
    seen = set()
    for row in rows_of(both, method="predict", control="", contrast=contrast):
        f = None if row["mapping"] == "identity" else lambda h: h * 0.5
        states = lm64.read(row["prompt"], positions=row["position"])
        scope = ls.Patchscope(lm64, BY_NAME[row["target"]], f)
        answers = [row["answer"]] if row["answer"] else []
        pairs = [(row["layer"], row["target_layer"])]
        cell = scope.predict(states, pairs, answers=answers, contrast=contrast)[0]
        assert (row["ids"], row["text"]) == (list(cell.ids), cell.text)
        assert row["log_probs"] == pytest.approx(list(cell.log_probs), abs=1e-6)
        the_same(row, cell.measures, cell.measures)
        if answers:
            assert row["correct"] == (row["answer_rank"] == 0)
        seen.add((row["target"], row["mapping"], row["answer"]))
    assert len(seen) == 2 * 2 * 3


@pytest.mark.parametrize("contrast", [0.0, 2.0])
def test_words_are_those_of_the_library_with_this_contrast(lm64, both, contrast):
    rows = rows_of(both, method="generate", control="", contrast=contrast)
    for row in rows:
        f = None if row["mapping"] == "identity" else lambda h: h * 0.5
        states = lm64.read(row["prompt"], positions=row["position"])
        scope = ls.Patchscope(lm64, BY_NAME[row["target"]], f)
        cell = scope.generate(states, [(row["layer"], row["target_layer"])], max_new_tokens=4, contrast=contrast)[0]
        assert (row["ids"], row["text"], row["ended"]) == (list(cell.ids), cell.text, cell.ended)
        assert row["log_probs"] == pytest.approx(list(cell.log_probs), abs=1e-6)
        the_same(row, cell.measures, ["mean_log_prob", "max_probability"])
    assert len(rows) == (2 * 5 + 2) * 2 * 3


def test_a_contrast_changes_what_is_said(both):
    for method, contrast in (("predict", 0.7), ("generate", 2.0)):
        plain_rows, contrasted = (
            {tuple(row[k] for k in KEY): row for row in rows_of(both, method=method, control="", contrast=c)}
            for c in (0.0, contrast)
        )
        assert plain_rows.keys() == contrasted.keys()
        assert any(plain_rows[k]["ids"] != contrasted[k]["ids"] for k in plain_rows)


KEY = ("prompt", "position", "layer", "target", "target_layer", "mapping", "answer", "control")


def test_controls_are_contrasted_where_they_are_patched(lm64, both):
    for control in ("random", "other-source"):
        for contrast in (0.0, 0.7):
            assert len(rows_of(both, method="predict", control=control, contrast=contrast)) == (2 * 5 + 2) * 2 * 3
    row = next(r for r in rows_of(both, method="predict", control="other-source", contrast=0.7) if r["layer"] == 2)
    scope = ls.Patchscope(lm64, BY_NAME[row["target"]], None if row["mapping"] == "identity" else lambda h: h * 0.5)
    states = lm64.read(row["other_prompt"], positions=row["other_position"])
    cell = scope.predict(states, [(row["layer"], row["target_layer"])], contrast=0.7)[0]
    assert row["ids"] == list(cell.ids)
    assert row["log_probs"] == pytest.approx(list(cell.log_probs), abs=1e-6)


def test_a_run_without_a_patch_is_one_row_whatever_the_contrast(both, plain):
    """There is nothing to contrast in it, nor in a lens: null says so, and the rows are those of a plain sweep."""
    for filters in ({"control": "unpatched"}, {"method": "lens"}):
        mine = rows_of(both, **filters)
        assert {row["contrast"] for row in mine} == {None}
        assert {row["id"] for row in mine} == {row["id"] for row in rows_of(plain, **filters)}


def test_rows_without_a_contrast_are_what_they_are_in_a_sweep_that_knows_none(both, plain):
    names = plain.dataset().schema.names
    assert "contrast" not in names
    assert [name for name in both.dataset().schema.names if name != "contrast"] == names
    assert str(both.dataset().schema.field("contrast").type) == "double"
    mine = {row["id"]: row for row in rows_of(both)}
    assert len(mine) == both.rows
    for row in rows_of(plain):
        again = mine[row["id"]]
        assert not again["contrast"]
        for name in ("method", "prompt", "layer", "target", "ids", "text", "answer"):
            assert row[name] == again[name]
    contrasted = both.dataset().to_table(filter=ds.field("contrast") > 0)
    assert not {*contrasted["id"].to_pylist()} & {row["id"] for row in rows_of(plain)}
    assert both.rows == plain.rows + len(contrasted)
    assert both.status().complete


def test_a_table_has_a_line_for_every_contrast(both, plain):
    columns = {str(column.header): [str(cell) for cell in column.cells] for column in both.table().columns}
    assert {*columns["contrast"]} == {"–", "0.7", "2"}
    assert "contrasted distribution" in str(both.table().caption)
    assert "contrast" not in [str(column.header) for column in plain.table().columns]


def test_an_estimate_tries_contrasted_rows_of_their_own(lm64, both):
    prepared = prepare_sweep(ls.sweeps.read_spec(SPEC), {"tiny": lm64})
    estimate = estimate_sweep(PartRunner(prepared.bench, prepared.rows), prepared.rows)
    assert estimate.rows == both.rows
    # a lens and, of two targets each, two ways to read without a patch and four with one
    assert estimate.sample_parts == 1 + 2 * (2 + 4)


def test_a_sweep_that_was_begun_without_the_key_goes_on(lm64, plain, tmp_path):
    """A contrast of 0 asks for the same rows: the folder is the same, and its bytes are."""
    spec = {**SPEC, "methods": PLAIN}
    first = ls.sweep(spec, tmp_path, models={"tiny": lm64}, limit=100)
    assert not first.status().complete
    none = [{"predict": {"contrast": 0}}, {"generate": {"max_new_tokens": 4, "contrast": 0}}, "lens"]
    done = ls.sweep({**spec, "methods": none}, tmp_path, models={"tiny": lm64})
    for path in (plain.folder / "parts").iterdir():
        assert (done.folder / "parts" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(ls.LenscopeError, match=r"another spec \(methods differ\); give another folder"):
        ls.sweep(SPEC, tmp_path, models={"tiny": lm64})


def test_a_contrasted_sweep_that_was_ended_goes_on(lm64, both, tmp_path):
    ls.sweep(SPEC, tmp_path, models={"tiny": lm64}, limit=300)
    done = ls.sweep(SPEC, tmp_path, models={"tiny": lm64})
    for path in (both.folder / "parts").iterdir():
        assert (done.folder / "parts" / path.name).read_bytes() == path.read_bytes()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [method.get("contrast") for method in manifest["spec"]["methods"]] == [None, None, None, 0.7, 2.0]
