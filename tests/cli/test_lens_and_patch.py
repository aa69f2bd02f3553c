"""The command line: what it prints, what it saves, and one line with exit status 2 for every mistake."""

import json
import subprocess
import sys

import pytest
import tiny
import torch

import lenscope as ls
from lenscope.fitting import tuned_lens as tuning
from lenscope.models import likeness


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny.model("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


def test_help_and_version_do_not_load_the_heavy_libraries():
    code = "import sys; from lenscope.cli.main import command_line; command_line(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_line_and_the_library_have_one_default_model():
    """The command line cannot ask loading.py for it: that would load the heavy libraries before --help."""
    from lenscope.cli import options as terminal
    from lenscope.models import loading

    assert terminal.DEFAULT_MODEL == loading.DEFAULT_MODEL


def test_help_and_version(run):
    for command in ([], ["lens"], ["check"], ["demo"]):
        status, out, _ = run(*command, "--help")
        assert status == 0
        assert "Usage" in out
    assert run("--version") == (0, f"lenscope {ls.__version__}\n", "")


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
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("alpha\nbeta\n"))
    status, out, _ = run("lens", "-f", "-", "-m", model, "--json")
    assert status == 0
    assert len(json.loads(out)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lens"], "no prompt: give one as an argument"),
        (["lens", ""], "the prompt is empty"),
        (["lens", "hi", "--model", "/nowhere/at/all"], "no such folder"),
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
        (["peer"], "No such command 'peer'"),
        (["check", "/nowhere"], "no such folder"),
        (["demo", "-o", "/proc/nowhere"], "cannot be made a folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(run, model, arguments, message):
    given = any(a in ("--model", "check", "peer") for a in arguments)
    status, out, err = run(*arguments, *([] if given else ["--model", model]))
    assert status == 2
    assert err.startswith("lenscope: ")
    assert err.count("\n") == 1
    assert message in err
    if arguments[0] != "demo":
        assert out == ""


def test_the_demo_writes_its_page(run, tmp_path, smollm2, monkeypatch):
    """All but the fit, which takes two minutes; test_cli_fit.py has the demo whole, on a tiny model."""
    me = likeness.model_identity(smollm2)
    layers = [{"layer": n, "kl": 1.0, "kl_logit_lens": 2.0} for n in range(30)]
    report = {"lens": "tuned lens", "layers": layers, "seconds": 1.0, "tokens": 9, "held_out": {"tokens": [9, 9]}}
    fitted = ls.mappings.Scale({None: (torch.tensor(1.0),)}, me, me, report)
    monkeypatch.setattr(tuning, "fit", lambda *given, **how: fitted)
    status, out, _ = run("demo", "-o", str(tmp_path / "demo"))
    assert status == 0
    assert "·Paris" in out
    assert "30: 0 (77%)" in " ".join(out.split())
    assert "·Paris" in out
    assert " Paris" in (tmp_path / "demo" / "index.html").read_text()


def test_patch_explains_layer_by_layer_and_says_mistakes_in_one_line(smollm2, run, tmp_path):
    """The paper's example, on the real model."""
    path = tmp_path / "said.json"
    code, out, _ = run("patch", "Diana, Princess of Wales", "--layers", "0,12", "-n", "6", "-o", str(path), "--json")
    grid = json.loads(out)
    assert code == 0
    assert grid["cells"]["layer"] == [0, 12]
    assert "Country" in grid["texts"][0]
    assert "British monarch" in grid["texts"][1]
    assert json.loads(path.read_text()) == grid
    for wrong, message in (
        (["--at", "nobody"], "'nobody': not in the prompt"),
        (["--layers", "40"], "layer 40: smollm2-135m has layers 0–30"),
        (["--below", "x"], "target, none, source"),
        (["--target", "idenity"], "there are identity, entity"),
        (["--mapping", str(tmp_path)], "mapping"),
    ):
        code, out, err = run("patch", "Diana", *wrong)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


def test_an_interruption_is_one_line_and_status_130(run, model, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ls.LM, "read", stop)
    code, out, err = run("patch", "the cat", "-m", model, "-t", "a b")
    assert (code, out) == (130, "")
    assert err.endswith("lenscope: interrupted\n")
