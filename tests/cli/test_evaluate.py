"""The command that measures lenses on text, on a tiny model: what it prints, keeps and refuses."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from importlib import import_module

import pytest
from evaluated import contents

import lenscope as ls
from lenscope.lenses.evaluate import EvaluationInterrupted


def test_eval_is_the_library_s_evaluation(run, model, text, lens, tmp_path):
    saved = tmp_path / "e.parquet"
    arguments = ["eval", "-m", model, "-d", text, "--held-out", "0.1", "--tokens", "640"]
    status, out, err = run(*arguments, "--lens", f"mine={lens}", "-o", str(saved), "--json")
    assert (status, err) == (0, f"lenscope: saved {saved}\n")
    lm = ls.load(model)
    held = ls.Corpus.open(lm, text).split(0.1)[1]
    direct = ls.evaluate(lm, held.batches(640, rows=1), {"logit lens": None, "mine": ls.load_lens(lens, lm)})
    made = ls.Evaluation.from_json(json.loads(out))
    assert made.lenses == ("logit lens", "mine")
    assert (made.values["kl"] == direct.values["kl"]).all()
    assert made.provenance["corpus"] == held.provenance()
    assert (ls.lenses.load_evaluation(saved).values["kl"] == direct.values["kl"]).all()
    status, out, _ = run(*arguments, "--lens", f"mine={lens}")
    rows = [line.split() for line in out.splitlines()]
    assert ["layer", "KL", "KL"] in rows
    assert [row[0] for row in rows[3:8]] == ["0", "1", "2", "3", "model"]
    assert f"{direct.measure('kl')[1, 2]:.3f}" in next(row for row in rows if row[:1] == ["2"])


def test_eval_says_when_the_text_was_fitted(run, model, text, lens):
    _, _, err = run("eval", "-m", model, "-d", text, "--tokens", "640", "--lens", str(lens))
    assert err == "lenscope: lens one was fitted on some of this text: --held-out 0.1 takes what it has not seen\n"
    _, _, err = run("eval", "-m", model, "-d", text, "--tokens", "640", "--lens", str(lens), "--held-out", "0.1")
    assert err == ""


def test_eval_on_the_model_s_own_samples_says_so(run, model):
    status, out, err = run("eval", "-m", model, "--tokens", "128", "--measure", "kl,agreement,bias")
    assert (status, err) == (0, "")
    assert "on samples of tiny-llama" in out
    assert "logit" in out


def test_the_transfer_matrix(run, model, text, lens):
    arguments = ["eval", "-m", model, "-d", text, "--lens", str(lens), "--tokens", "256", "--transfer"]
    status, out, _ = run(*arguments, "--json")
    assert status == 0
    lm = ls.load(model)
    rows = ls.Corpus.open(lm, text).batches(256, rows=1)
    direct = ls.transfer(lm, rows, ls.load_lens(lens, lm))
    assert json.loads(out)["kl"] == direct.to_json()["kl"]
    assert run(*arguments, "--measure", "kl")[1].splitlines()[1].split() == ["trained", "0", "1", "2", "3"]


def test_an_interrupted_evaluation_is_shown_and_saved(run, model, text, tmp_path, monkeypatch):
    evaluating = import_module("lenscope.lenses.evaluate")
    evaluate = evaluating.evaluate

    def stopped(*given, **how):
        raise EvaluationInterrupted(evaluate(*given, **how))

    monkeypatch.setattr(evaluating, "evaluate", stopped)
    status, out, err = run("eval", "-m", model, "-d", text, "--tokens", "128", "-o", str(tmp_path / "e.json"))
    assert status == 130
    assert "logit lens" in out
    assert "tokens measured; what they say is kept" in err.splitlines()[-1]
    assert ls.lenses.load_evaluation(tmp_path / "e.json").tokens


@pytest.mark.parametrize("transfer", [False, True])
def test_an_interrupted_evaluation_goes_on(run, model, text, lens, tmp_path, monkeypatch, transfer):
    evaluating = import_module("lenscope.lenses.evaluate")
    predictions = evaluating.predictions

    def interrupted(*given):
        for n, batch in enumerate(predictions(*given)):
            if n == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr("lenscope.models.batches.TOKENS_PER_RUN", 8)
    output, partial = tmp_path / "e.json", tmp_path / "e.json.partial"
    arguments = ["eval", "-m", model, "-d", text, "--tokens", "300", "-o", str(output), "--lens", str(lens)]
    arguments += ["--transfer"] * transfer + ["--held-out", "0.1"]
    assert run(*arguments)[0] == 0
    whole = contents(ls.load_results(output))
    monkeypatch.setattr(evaluating, "predictions", interrupted)
    status, _, err = run(*arguments)
    assert status == 130
    line = f"what they say is kept, and the same command goes on from there ({partial} keeps the sums)"
    assert line in err.splitlines()[-1]
    assert ls.load_results(output).tokens < whole["tokens"]
    assert run(*arguments, "--layers", "2")[2] == (
        f"lenscope: {partial}/checkpoint: is of another run, with other layers; remove it to begin anew\n"
    )
    monkeypatch.setattr(evaluating, "predictions", predictions)
    with held(partial):
        assert run(*arguments)[::2] == (
            2, f"lenscope: {partial}: another run is writing to it; wait for its end, or give another folder\n"
        )  # fmt: skip
    assert run(*arguments)[0] == 0
    assert contents(ls.load_results(output)) == whole
    assert not partial.exists()


@contextmanager
def held(folder):
    """Another process writes to the folder."""
    program = "import sys, lenscope.files.writing as w\nwith w.folder_lock(sys.argv[1]): print(flush=True), input()"
    process = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdin=-1, stdout=-1, env=os.environ)
    process.stdout.readline()
    yield
    process.communicate(b"\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "-m", "MODEL", "--lens", "/nowhere"], "no such file or folder"),
        (["eval", "-m", "MODEL", "--lens", "CORRUPT"], "is no lens"),
        (["eval", "-m", "MODEL", "--lens", "a=x", "--lens", "a=y"], "--lens a=y: give each lens a name of its own"),
        (["eval", "-m", "MODEL", "--measure", "beauty"], "measure 'beauty': there are"),
        (["eval", "-m", "MODEL", "--transfer"], "--transfer: takes one --lens, not 0"),
        (["eval", "-m", "MODEL", "-d", "TEXT", "-o", "x.csv"], "ends in .parquet or .json"),
        (["eval", "-m", "MODEL", "-d", "TEXT", "--layers", "9"], "layer 9: tiny-llama has layers 0–4"),
        (["eval", "-m", "MODEL", "-d", "TEXT", "--tokens", "1M"], "and 1000000 were wanted"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(mistaken, arguments, message):
    assert message in mistaken(*arguments)
