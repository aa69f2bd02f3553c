"""The commands of detectors: a detector is fitted and saved, scores come out as prompts come in."""

import io
import json
import sys
from functools import partial

import pytest
from drawing import drawn

import lenscope as ls
from lenscope.cli import detect as detecting
from lenscope.detection import detector as detection
from lenscope.detection.detector import fit_detector, load_detector
from lenscope.detection.outliers import Forest
from lenscope.tasks import builtin_questions as quizzes

REQUESTS = quizzes.REQUESTS.splitlines()


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    """Forests of a hundred trees take most of the time."""
    monkeypatch.setattr(detection, "Forest", partial(Forest, 5))


def test_fit_and_score_on_the_command_line(run, model, tmp_path, monkeypatch):
    short = [r for r in REQUESTS if len(r) < 45]
    (tmp_path / "p.txt").write_text("\n\n".join(short))
    folder = str(tmp_path / "made")
    asked = (
        "detect",
        "fit",
        "-d",
        str(tmp_path / "p.txt"),
        "-o",
        folder,
        "-m",
        model,
        "--layers",
        "1,3",
        "--false-positives",
    )
    status, out, err = run(*asked, "0.1")
    assert status == 0, err
    assert "looks at" in out
    assert "AUROC" in out
    assert "10% of normal prompts" in err
    status, out, err = run("detect", "score", folder, "The cat", "!!! 0 0", "-m", model)
    assert status == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    made = load_detector(folder, ls.load(model))
    for line, prompt in zip(lines, ["The cat", "!!! 0 0"], strict=True):
        assert line["prompt"] == prompt
        assert line["score"] == pytest.approx(made.score(prompt))
        assert line["above"] == (line["score"] > made.threshold)
        assert line["false_positives"] == 0.1
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"q": r}) for r in short))
    status, out, err = run("detect", "score", folder, "-f", str(tmp_path / "p.jsonl"), "--field", "q", "-m", model)
    assert (status, len(out.splitlines())) == (0, len(short))
    for wrong, told in (
        ((*asked, "0.1"), "has a config.json already"),
        (("detect", "score", folder, "-m", model), "no prompt"),
        (("detect", "score", "nowhere", "x", "-m", model), "no such folder"),
        (("detect", "score", folder, "-f", "nowhere", "-m", model), "no such file"),
        (("detect", "score", folder, "-f", str(tmp_path / "p.jsonl"), "-m", model), "line 1: is no JSON object"),
        (("detect", "score", folder, "x" * 200, "-m", model), "reads at most 64"),
        (("detect", "fit", "-d", str(tmp_path / "p.txt"), "-o", "x", "--choice", "yes", "-m", model), "at least two"),
    ):
        status, out, err = run(*wrong)
        assert (status, out) == (2, ""), err
        assert told in err
        assert err.count("\n") == 1


def test_scores_come_out_as_prompts_come_in(run, model, tmp_path, monkeypatch):
    """Every score is written and flushed before the next line is read."""
    made = fit_detector(
        ls.Lens(ls.load(model)), [r[:60] for r in REQUESTS], methods=["forest"], layers=[1], false_positives=0.1
    )
    made.save(tmp_path)
    events = []

    class Watched(io.StringIO):
        def write(self, text):
            events.append(("write", text))
            return len(text)

        def flush(self):
            events.append(("flush", ""))

    def lines():
        for n in range(3):
            events.append(("read", str(n)))
            yield f"line {n}\n"

    monkeypatch.setattr(sys, "stdin", lines())
    monkeypatch.setattr(sys, "stdout", Watched())
    run("detect", "score", str(tmp_path), "-f", "-", "-m", model)
    kinds = [kind for kind, _ in events]
    assert [k for k, text in events if text or k == "flush"].count("read") == 3
    at = [n for n, k in enumerate(kinds) if k == "read"]
    for start, stop in zip(at, [*at[1:], len(kinds)], strict=True):
        assert "write" in kinds[start:stop]
        assert kinds[start:stop][-1] == "flush" or "flush" in kinds[start:stop]


def test_the_number_of_a_detector_s_table_is_whole_in_a_narrow_terminal():
    ways = [
        {"method": "neighbours", "view": "trajectory", "layers": [1, 2], "auroc": 0.987, "neighbours": n}
        for n in (5, 20)
    ]
    for width in (40, 80):
        assert drawn(detecting._table_of_methods(ways), width).count("0.987") == 2
