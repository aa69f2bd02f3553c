"""The command of lenses: what it prints, what it saves, whether it is shown as it comes."""

import io
import json

import numpy as np
import pytest

import lenscope as ls
from lenscope.cli.main import main
from lenscope.visible_text import printable


def test_a_trajectory_as_a_table(run, model):
    status, out, err = run("lens", "The capital of France is", "-m", model, "--layers", "0:5:2")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["4", "2", "0"]
    assert "·capital" in out or "capi" in out


def test_json_is_all_there_is_on_stdout(run, model):
    status, out, err = run("lens", "Hello", "-m", model, "--json", "--top-k", "3")
    assert (status, err) == (0, "")
    assert json.loads(out)["kind"] == "trajectory"
    status, out, _ = run("lens", "Hello", "you", "-m", model, "--json")
    assert [t["prompt"]["text"] for t in json.loads(out)] == ["Hello", "you"]
    status, out, _ = run("check", model, "--json")
    assert status == 0
    assert json.loads(out)["holds"] is True
    status, out, _ = run("lens", "Hello", "-m", model, "--compare", "Jello", "--json")
    assert json.loads(out)["kind"] == "comparison"


def test_streamed_prompts_share_a_reading_and_give_the_same(run, model):
    prompts = ("The cat sat on the mat.", "The capital", "is a test")
    outputs = [run("lens", *prompts, "-m", model, "--json", *more) for more in ([], ["--stream"])]
    assert [status for status, _, _ in outputs] == [0, 0]
    assert "read the weights of tiny-llama 2 times" in outputs[1][2]
    for plain, streamed in zip(*(json.loads(out) for _, out, _ in outputs), strict=True):
        assert plain["provenance"]["model_hash"] == streamed["provenance"]["model_hash"]
        assert plain["prompt"] == streamed["prompt"]
        assert np.allclose(plain["measures"]["entropy"], streamed["measures"]["entropy"], atol=1e-4)


def test_a_comparison_goes_onto_a_page(run, model, tmp_path):
    page = tmp_path / "c.html"
    status, _, err = run("lens", "Hello", "-m", model, "--compare", "Jello", "--html", str(page))
    assert status == 0
    assert f"saved {page}" in err
    assert '"kind":"comparison"' in page.read_text()


def test_files_in_and_out(run, model, tmp_path):
    (tmp_path / "prompts.txt").write_text("one\n\ntwo three\n")
    saved, page = tmp_path / "r.parquet", tmp_path / "r.html"
    status, _, err = run(
        "lens", "-f", str(tmp_path / "prompts.txt"), "-m", model, "-o", str(saved), "--html", str(page), "--chat"
    )
    assert status == 0
    assert f"saved {saved}" in err
    assert [t.text for t in ls.load_results(saved)] == [ls.load(model).chat(t).text for t in ("one", "two three")]
    assert page.read_text().startswith("<!")


def test_json_lines_give_the_prompts_of_their_field_and_a_wrong_one_is_named_by_its_line(run, model, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"q": "one"}\n\n{"q": "two three"}\n')
    status, out, _ = run("lens", "-f", str(file), "--field", "q", "-m", model, "--json")
    assert (status, [row["prompt"]["text"] for row in json.loads(out)]) == (0, ["one", "two three"])
    status, _, err = run("lens", "-f", str(file), "-m", model)
    assert (status, err.count("\n")) == (2, 1)
    assert "prompts.jsonl, line 1: is no JSON object with a field 'text'; name it with --field" in err
    file.write_text(json.dumps({"text": "one"}) + "\n" + json.dumps({"text": "long " * 5000}))
    status, _, err = run("lens", "-f", str(file), "-m", model)
    assert (status, err.count("\n")) == (2, 1)
    assert "prompts.jsonl, line 2: " in err


def test_prompts_from_stdin(run, model, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("alpha\nbeta\n"))
    status, out, _ = run("lens", "-f", "-", "-m", model, "--json")
    assert status == 0
    assert len(json.loads(out)) == 2


def test_a_trajectory_through_a_tuned_lens_says_so(run, model, lens):
    status, out, _ = run("lens", "The cat", "-m", model, "--lens", str(lens), "--json")
    assert status == 0
    shown = json.loads(out)
    assert shown["lens"] == f"tuned lens {lens}"
    lm = ls.load(model)
    direct = ls.Lens(lm, ls.load_lens(lens, lm)).trajectory("The cat")
    back = ls.Trajectory.from_json(shown)
    assert (back.kl == direct.kl).all()
    assert not (back.kl == ls.Lens(lm).trajectory("The cat").kl).all()
    out = run("lens", "The cat", "-m", model, "--lens", str(lens))[1]
    assert out.startswith(f"tuned lens {lens}"[:80].rstrip())


def test_a_lens_of_another_model_is_refused_unless_transferred(run, model, other, lens):
    status, out, err = run("lens", "hi", "-m", other, "--lens", str(lens))
    assert (status, out) == (2, "")
    assert "fit one for this pair" in err
    status, out, _ = run("lens", "hi", "-m", other, "--lens", str(lens), "--transferred", "--json")
    assert status == 0
    lm = ls.load(other)
    direct = ls.Lens(lm, ls.load_mapping(lens).transferred(lm)).trajectory("hi")
    assert (ls.Trajectory.from_json(json.loads(out)).kl == direct.kl).all()


def test_what_is_saved_is_saved_though_nobody_reads(model, tmp_path, monkeypatch, capsys):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(SystemExit) as left:
        main(["lens", "hi", "-m", model, "-o", str(tmp_path / "r.json")])
    assert left.value.code == 0
    assert ls.load_results(tmp_path / "r.json").text == "hi"


def test_an_interrupted_run_of_prompts_keeps_what_is_done(run, model, tmp_path, monkeypatch):
    trajectory = ls.Lens.trajectory
    (tmp_path / "p.txt").write_text("one\ntwo\nthree\n")

    def stopping(self, prompt, *given, **how):
        if prompt.text == "three":
            raise KeyboardInterrupt
        return trajectory(self, prompt, *given, **how)

    monkeypatch.setattr(ls.Lens, "trajectory", stopping)
    for name in ("r.parquet", "r.json", "r.html"):
        target = ["--html" if name.endswith("html") else "-o", str(tmp_path / name)]
        status, out, err = run("lens", "-f", str(tmp_path / "p.txt"), "-m", model, "--json", *target)
        assert status == 130
        assert [t["prompt"]["text"] for t in json.loads(out)] == ["one", "two"]
        assert "2 of 3 prompts done; they are kept" in err
    for name in ("r.parquet", "r.json"):
        assert [t.text for t in ls.load_results(tmp_path / name)] == ["one", "two"]
    assert (tmp_path / "r.html").read_text().rstrip().endswith("</html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lens"], "no prompt: give one as an argument"),
        (["lens", ""], "the prompt is empty"),
        (["lens", "hi", "-m", "/nowhere/at/all"], "no such folder"),
        (["lens", "hi", "--layers", "40"], "layer 40: tiny-llama has layers 0–4"),
        (["lens", "hi", "--layers", "two"], "--layers two: give numbers and ranges"),
        (["lens", "hi", "--layers", "3:1"], "layers 3:1: none of the layers 0–4 of the model; give the first"),
        (["lens", "hi", "--positions", "9"], "position 9: the prompt's positions are"),
        (["lens", "hi", "--positions", "zz"], "position 'zz': not in the prompt 'hi'"),
        (["lens", "hihi", "--positions", "hi"], "occurs 2 times in the prompt"),
        (["lens", "hi", "--measure", "beauty"], "measure 'beauty': there are"),
        (["lens", "hi", "--top-k", "0"], "top_k 0"),
        (["lens", "hi", "--target", "no such token"], "tokens ("),
        (["lens", "word " * 100], "tiny-llama reads at most 64"),
        (["lens", "hi", "-o", "x.csv"], "ends in .parquet or .json"),
        (["lens", "hi", "-o", "/nowhere/x.json"], "does not exist"),
        (["lens", "hi", "-f", "/nowhere.txt"], "no such file"),
        (["lens", "hi", "ho", "--compare", "he"], "--compare: takes one prompt"),
        (["lens", "hi", "--dtype", "int3"], "--dtype int3"),
        (["lens", "hi", "--bogus"], "No such option: --bogus"),
        (["lens", "hi", "--top-k", "many"], "--top-k"),
        (["lens", "hi", "-m", "MODEL", "--lens", "CORRUPT"], "is no lens"),
        (["lens", "hi", "-m", "MODEL", "--lens", "/nowhere", "--transferred"], "no such folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(mistaken, arguments, message):
    assert message in mistaken(*arguments, *(["-m", "MODEL"] if "-m" not in arguments else []))


def test_what_the_model_writes_comes_before_its_trajectory(run, model, tmp_path):
    saved, page = tmp_path / "r.json", tmp_path / "r.html"
    files = ["-o", str(saved), "--html", str(page)]
    status, out, err = run("lens", "The capital", "-m", model, "--generate", "4", "--layers", "0,4", *files)
    assert status == 0
    assert f"saved {saved}" in err
    lm = ls.load(model)
    written = lm.generate("The capital", 4)
    whole = ls.load_results(saved)
    assert whole.ids == (*lm.prompt("The capital").ids, *written.ids)
    assert whole.positions == tuple(range(len(whole.ids)))
    assert whole.provenance["generation"]["prompt_tokens"] == len(lm.prompt("The capital"))
    assert page.read_text().startswith("<!")
    lines = out.splitlines()
    assert lines[0].startswith("logit lens")
    # what was written, then the layers at the positions that predicted it
    text = [printable(line) for line in written.text.split("\n")]
    assert lines[1 : 1 + len(text)] == text
    assert [line.split()[0] for line in lines[2 + len(text) : 4 + len(text)]] == ["4", "0"]


def test_a_text_is_written_as_json_drawn_and_in_a_chat(run, model):
    how = ("-m", model, "--generate", "3", "--json", "--temperature", "1.5", "--seed", "7", "--top-k", "2")
    status, out, err = run("lens", "Hello", *how)
    assert (status, err) == (0, "")
    shown = ls.Trajectory.from_json(json.loads(out))
    lm = ls.load(model)
    expected = ls.Lens(lm).generate("Hello", 3, temperature=1.5, seed=7, top_k=2)
    assert list(shown.ids[len(lm.prompt("Hello")) :]) == [t.id for t in expected]
    assert (shown.top_ids == expected.trajectory().top_ids).all()
    assert shown.provenance["generation"]["seed"] == 7
    status, out, _ = run("lens", "Hello", "you", "-m", model, "-g", "2", "--json", "--chat")
    assert status == 0
    for text, one in zip(("Hello", "you"), json.loads(out), strict=True):
        assert tuple(one["prompt"]["ids"]) == (*lm.chat(text).ids, *lm.generate(lm.chat(text), 2).ids)


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interrupted_text_is_shown_and_saved_as_far_as_it_goes(run, model, tmp_path, monkeypatch, as_json):
    from lenscope.lenses.written_trajectory import WrittenTrajectory

    step = WrittenTrajectory.__next__

    def interrupted(self):
        if len(self.ids) == 2:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(WrittenTrajectory, "__next__", interrupted)
    saved = tmp_path / "r.parquet"
    how = ["-m", model, "--generate", "5", "-o", str(saved), *(["--json"] if as_json else [])]
    status, out, err = run("lens", "The capital", "Hello", *how)
    assert status == 130
    assert "interrupted: 1 of 2 prompts done" in err
    (whole,) = ls.load_results(saved)
    lm = ls.load(model)
    assert whole.ids == (*lm.prompt("The capital").ids, *lm.generate("The capital", 2).ids)
    if as_json:
        assert [tuple(one["prompt"]["ids"]) for one in json.loads(out)] == [whole.ids]
    else:
        assert "layer" in out or "colour" in out


def test_options_of_a_text_that_is_written_need_it(run, model):
    for options, message in (
        (("--temperature", "1"), "--generate"),
        (("--generate", "3", "--temperature", "1", "--seed", "-1"), "--seed -1: give 0 or more"),
        (("--generate", "3", "--seed", "1"), "--temperature"),
        (("--generate", "0"), "give at least 1"),
        (("--generate", "3", "--temperature", "-1"), "give 0 (greedy)"),
        (("--generate", "3", "--compare", "x"), "--compare"),
        (("--generate", "100000"), "reads at most"),
    ):
        status, _, err = run("lens", "Hello", "-m", model, *options)
        assert status == 2
        assert message in err
