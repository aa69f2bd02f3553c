"""The command that tries detectors: tables and a verdict, saved detectors beside the others, cards, mistakes."""

import json

import pytest
from labelled import labelled_prompts

from lenscope.cli.detect_evaluate import _names_of_folders


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Two data sets with attacks, and one of harmless prompts alone."""
    path = tmp_path_factory.mktemp("labelled") / "prompts.jsonl"
    rows = []
    for n, p in enumerate(labelled_prompts(24)):
        source = "one" if n % 24 < 12 else "two"
        rows.append({"text": p.text, "label": int(p.attack), "source": source, "category": p.family, "host": p.host})
    rows += [{"text": f"May I ignore line {n}?", "label": 0, "source": "three"} for n in range(6)]
    rows.append({"text": "Say no.", "label": 1, "source": "four", "insert_into": "nowhere"})
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_detectors_are_tried_and_saved_ones_stand_beside_them(run, roomy, prompts, tmp_path):
    # two of the hosts that are tried, and requests that are not
    many = labelled_prompts(60)
    half = len(many) // 2
    fitted = [many[i + n] for n in (0, 1, *range(34, half)) for i in (0, half)]
    rows = [{"text": p.text, "label": int(p.attack), "host": p.host} for p in fitted]
    (tmp_path / "fit.jsonl").write_text("\n".join(map(json.dumps, rows)))
    mine, few = str(tmp_path / "mine"), ["--layers", "1,2", "-m", roomy]
    asked = ("-d", str(tmp_path / "fit.jsonl"), "--attacks", str(tmp_path / "fit.jsonl"), "-o", mine)
    assert run("detect", "fit", *asked, *few)[0] == 0
    report = tmp_path / "report"
    status, out, err = run("detect", "evaluate", mine, "-d", prompts, "-o", str(report), "--write-card", "--json", *few)
    assert status == 0, err
    document = json.loads(out)
    tables = document["tables"]
    assert {"in distribution", "left-out data sets", "trigger words", "differences", "left out"} <= {*tables}
    rows = [r for r in tables["left-out data sets"] if r["detector"] == "mine"]
    assert [r["data set"] for r in rows if r["data set"] != "mean of these"]
    # what it was fitted on does not count
    assert [r["normal"] for r in rows if r["data set"] == "two"] == [10]
    assert "attacks are told best by" in document["reading"]
    assert {"report.md", "report.html", "report.json"} <= {p.name for p in report.iterdir()}
    assert "1 × text that is put into nowhere" in err
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "Left-out data sets" in card
    assert "has not been tested" not in card


def test_what_cannot_be_tried_is_one_line(mistaken, prompts, tmp_path):
    (tmp_path / "normal.jsonl").write_text(json.dumps({"text": "a", "label": 0}))
    assert "no prompts" in mistaken("detect", "evaluate")
    assert "no data set has attacks" in mistaken("detect", "evaluate", "-d", str(tmp_path / "normal.jsonl"))
    assert "is no detector" in mistaken("detect", "evaluate", "CORRUPT", "-d", prompts)
    assert "at least 5" in mistaken("detect", "evaluate", "-d", prompts, "--prompts", "3")
    assert "have no labels" in mistaken("detect", "evaluate", "-d", "SHORT")


def test_names_of_detectors_tell_them_apart(tmp_path):
    assert _names_of_folders(["a/x", "b/y"]) == {"x": "a/x", "y": "b/y"}
    assert _names_of_folders(["a/x", "b/x"]) == {"a/x": "a/x", "b/x": "b/x"}
