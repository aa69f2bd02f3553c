"""The command of lenses: what it prints, what it saves, whether it is shown as it comes."""

import io
import json

import pytest

import lenscope as ls
from lenscope.cli.main import main


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
        (["lens", "hi", "--layers", "3:1"], "layers: the list is empty"),
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
