"""The commands of detectors: a detector is fitted and saved, scores come out as prompts come in."""

import io
import json
import sys
import threading
from functools import partial

import pytest
from drawing import drawn

import lenscope as ls
from lenscope.cli import detect as detecting
from lenscope.cli.options import CommonOptions
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


@pytest.fixture
def folder(model, tmp_path):
    """A saved detector."""
    lens = ls.Lens(ls.load(model))
    made = fit_detector(lens, [r[:60] for r in REQUESTS], methods=["forest"], layers=[1], false_positives=0.1)
    made.save(tmp_path / "detector")
    return str(tmp_path / "detector")


def test_a_score_comes_out_before_the_next_prompt_comes_in(run, model, folder, monkeypatch):
    """No prompt waits for others: each comes only when the score of the one before was flushed."""
    scored, asked = threading.Semaphore(0), []

    class Watched(io.StringIO):
        def write(self, text):
            asked.append(text)
            return len(text)

        def flush(self):
            if asked:
                asked.clear()
                scored.release()

    def lines():
        for n in range(3):
            if n:
                assert scored.acquire(timeout=60)
            yield f"line {n}\n"

    monkeypatch.setattr(sys, "stdin", lines())
    monkeypatch.setattr(sys, "stdout", Watched())
    status, _, err = run("detect", "score", folder, "-f", "-", "-m", model)
    assert status == 0, err


def test_prompts_of_a_file_are_scored_together_in_their_order(run, model, folder, tmp_path, monkeypatch):
    begin = "Answer shortly. "
    texts = [begin + r[:20] for r in REQUESTS[:9]]
    file = tmp_path / "log.jsonl"
    file.write_text("\n".join(json.dumps({"text": t}) for t in texts))
    sizes = []
    whole = detection.Detector.features

    def features(self, prompts, known=None):
        sizes.append(len(prompts))
        return whole(self, prompts, known)

    monkeypatch.setattr(detection.Detector, "features", features)
    status, out, err = run("detect", "score", folder, "-f", str(file), "-m", model, "--batch", "4")
    assert status == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["prompt"] for line in lines] == texts
    assert max(sizes) == 4
    assert "9 prompts, " in err
    assert "a second" in err
    made = load_detector(folder, ls.load(model))
    for line in lines:
        assert line["score"] == pytest.approx(made.score(line["prompt"]), abs=1e-6)


@pytest.mark.parametrize("where", [False, True])
@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("{", "is not JSON (Expecting property name enclosed in double quotes, column 2)"),
        ("[1]", "is no JSON object with a field 'text'; name it with --field"),
        (json.dumps({"text": "x" * 200}), "reads at most 64; shorten it"),
        (json.dumps({"text": ""}), "it must be a text"),
        (json.dumps({"text": "hi \ud800 x"}), "half of a surrogate pair, which is no character; leave it out"),
    ],
)
def test_what_stands_before_a_bad_line_is_scored(run, model, folder, tmp_path, bad, why, where):
    file = tmp_path / "log.jsonl"
    file.write_text(
        "\n".join([json.dumps({"text": "The cat"}), "", json.dumps({"text": "A dog"}), bad, '{"text": "b"}'])
    )
    more = ("--where", "--json") if where else ()
    status, out, err = run("detect", "score", folder, "-f", str(file), "-m", model, *more)
    assert status == 2
    (told,) = err.splitlines()
    assert told.startswith(f"lenscope: {file}, line 4: ")
    assert told.endswith(why)
    assert [json.loads(line)["text" if where else "prompt"] for line in out.splitlines()] == ["The cat", "A dog"]


@pytest.mark.parametrize("stdin", [False, True])
@pytest.mark.parametrize("where", [False, True])
@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"\xff\xfe bad", "is not UTF-8 (byte 0xff); convert it"),
        (b"caf\xe9", "is not UTF-8 (byte 0xe9); convert it"),
        (b"a\0b", "is no text (it has NUL bytes); give UTF-8, or UTF-16 with its mark"),
        (b"x" * 200, "reads at most 64; shorten it"),
    ],
)
def test_a_line_of_text_that_cannot_be_read_is_named(run, model, folder, tmp_path, monkeypatch, bad, why, where, stdin):
    """Of a file it ends the command. A watch of stdin goes on, and says at its end that it left a line out."""
    file = tmp_path / "log.txt"
    raw = b"The cat\n\n  \nA dog\r\n" + bad + b"\nnext\n"
    file.write_bytes(raw)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(raw)), encoding="utf-8"))
    more = ("--where", "--json") if where else ()
    status, out, err = run("detect", "score", folder, "-f", "-" if stdin else str(file), "-m", model, *more)
    assert status == 2
    told, *rest = err.splitlines()
    assert told.startswith(f"lenscope: {'standard input' if stdin else file}, line 5: ")
    assert told.endswith(why)
    texts = [json.loads(line)["text" if where else "prompt"] for line in out.splitlines()]
    assert texts == ["The cat", "A dog", *(["next"] if stdin else [])]
    if not stdin:
        assert rest == []
    else:
        *rate, last = rest
        assert last == "lenscope: standard input: 1 of its lines could not be scored; each is named above"
        assert [line.split(" prompts, ")[0] for line in rate] == ([] if where else ["lenscope: 3"])


def test_a_watch_goes_on_behind_bad_lines(run, model, folder, monkeypatch):
    """Bad lines among many, first and last: each is named once, in its place, and all others are scored in order."""
    lines = [f"{'x' * 200 if n in (0, 3, 9) else n}\n" for n in range(10)]
    monkeypatch.setattr(sys, "stdin", iter(lines))
    status, out, err = run("detect", "score", folder, "-f", "-", "-m", model, "--batch", "4")
    assert status == 2
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == [
        str(n) for n in range(10) if n not in (0, 3, 9)
    ]
    named = [line.split(": the prompt")[0] for line in err.splitlines()]
    assert named[:3] == [f"lenscope: standard input, line {n}" for n in (1, 4, 10)]
    assert named[-1].startswith("lenscope: standard input: 3 of its lines could not be scored")
    monkeypatch.setattr(sys, "stdin", iter(["b\n"]))
    status, out, err = run("detect", "score", folder, "x" * 200, "-f", "-", "-m", model)
    assert (status, out, err.count("\n")) == (2, "", 1)


def test_too_few_prompts_are_refused_before_a_model_loads(run, model, tmp_path, monkeypatch):
    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(CommonOptions, "load", load)
    (tmp_path / "p.txt").write_text("\n".join([f"prompt {n}" for n in range(42)] * 3))
    (tmp_path / "few.txt").write_text("\n".join([f"prompt {n}" for n in range(19)] * 3))
    (tmp_path / "attacks.txt").write_text("\n".join(f"attack {n}" for n in range(42)))
    asked = ("detect", "fit", "-o", str(tmp_path / "new"), "-m", model, "--false-positives", "0.01", "-d")
    several = ("--attacks", str(tmp_path / "attacks.txt"))
    share = "false positives 0.01: takes at least 99"
    for end, why in (
        (("p.txt",), f"{share} normal prompts, not 42; give more, or a larger share"),
        (("p.txt", *several), f"{share} harmless prompts, not 42; give more, or a larger share"),
        (("few.txt",), "19 different prompts: a detector is fitted on at least 20 normal ones"),
        (
            ("few.txt", *several),
            "42 different attacks, 19 harmless prompts: a detector is fitted on at least 20 of each",
        ),
    ):
        status, out, err = run(*asked, str(tmp_path / end[0]), *end[1:])
        assert (status, out, err) == (2, "", f"lenscope: {why}\n")
    assert not (tmp_path / "new").exists()


def test_where_a_prompt_is_odd_is_shown_printed_and_saved(run, model, folder, tmp_path):
    json_file, page = tmp_path / "odd.json", tmp_path / "odd.html"
    asked = ("detect", "score", folder, "The cat <b> sat", "--where", "-m", model)
    status, out, err = run(*asked, "-o", str(json_file), "--html", str(page))
    assert status == 0, err
    assert "[[" in out
    assert "The oddest span is where" in " ".join(out.split())
    saved = ls.load_results(json_file)
    assert saved.text == "The cat <b> sat"
    assert "<b>" not in page.read_text().split('id="data"')[1].split("</script>")[0]
    status, out, err = run(*asked, "--json")
    assert (status, len(json.loads(out)["scores"])) == (0, len(saved)), err
    (tmp_path / "p.txt").write_text("The cat\nA dog sat on it\n")
    status, out, err = run("detect", "score", folder, "-f", str(tmp_path / "p.txt"), "--where", "--json", "-m", model)
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["The cat", "A dog sat on it"], err
    status, out, err = run("detect", "score", folder, "a", "b", "--where", "--html", str(page), "-m", model)
    assert status == 2
    assert "takes one prompt" in err


def test_the_number_of_a_detector_s_table_is_whole_in_a_narrow_terminal():
    ways = [
        {"method": "neighbours", "view": "trajectory", "layers": [1, 2], "auroc": 0.987, "neighbours": n}
        for n in (5, 20)
    ]
    for width in (40, 80):
        assert drawn(detecting._table_of_methods(ways), width).count("0.987") == 2
