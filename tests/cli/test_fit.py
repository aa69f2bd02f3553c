"""The command that fits a tuned lens, on a tiny model: what it prints, keeps and refuses."""

import json

import pytest
import torch
from command_lines import fitting

import lenscope as ls
from lenscope.fitting import tuned_lens as tuning


def test_fit_is_the_library_s_fit_and_its_table_the_report(run, model, text, tmp_path):
    status, out, err = run(*fitting(model, text, tmp_path / "lens"))
    assert status == 0
    assert err == f"lenscope: saved {tmp_path / 'lens'}\n"
    lm = ls.load(model)
    made = ls.load_lens(tmp_path / "lens", lm)
    direct = ls.fit(lm, text, tokens=2000, recipe="ridge")
    for pair, weights in direct.weights.items():
        for a, b in zip(weights, made.weights[pair], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()[:1]}
    for row in direct.report["layers"]:
        shown = [float(cell) for cell in rows[str(row["layer"])][:2]]
        assert shown == pytest.approx([row["kl_logit_lens"], row["kl"]], abs=2e-3)
    assert f"--lens {tmp_path / 'lens'}" in out
    assert f"-m {model}" in out


def test_a_streamed_fit_is_the_same_lens(run, model, text, lens, tmp_path):
    status, _, err = run(*fitting(model, text, tmp_path / "streamed", "--stream", "--json"))
    assert status == 0, err
    assert "read the weights of tiny-llama" in err
    plain, streamed = ls.load_mapping(lens), ls.load_mapping(tmp_path / "streamed")
    for pair, weights in plain.weights.items():
        for a, b in zip(weights, streamed.weights[pair], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert plain.source == streamed.source


def test_json_is_the_report_and_a_finished_run_is_not_run_again(run, model, text, lens, monkeypatch):
    before = {p.name: p.read_bytes() for p in lens.iterdir()}
    monkeypatch.setattr(tuning, "fit", None)
    status, out, err = run(*fitting(model, text, lens, "--json"))
    assert (status, err.count("\n")) == (0, 1)
    assert json.loads(out) == {"kind": "fit", "folder": str(lens), **ls.load_mapping(lens).report}
    assert "finished before" in err
    assert {p.name: p.read_bytes() for p in lens.iterdir()} == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seed", "1"], "seed 0, not 1"),
        (["--recipe", "bias"], "recipe ridge, not bias"),
        (["--tokens", "3k"], "tokens 2048, not 3008"),
        (["--held-out", "0.2"], "other text"),
    ],
)
def test_a_lens_of_another_run_is_never_overwritten(run, model, text, lens, more, message):
    before = {p.name: p.read_bytes() for p in lens.iterdir()}
    status, out, err = run(*fitting(model, text, lens, *more))
    assert (status, out) == (2, "")
    assert f"holds a lens of another run ({message})" in err
    assert {p.name: p.read_bytes() for p in lens.iterdir()} == before


def test_another_model_s_lens_or_a_model_is_not_overwritten_either(run, model, other, text, lens):
    status, _, err = run(*fitting(other, text, lens))
    assert status == 2
    assert "another run (another model)" in err
    status, _, err = run(*fitting(model, text, other))
    assert status == 2
    assert "has a config.json that is damaged or of something else" in err
    assert ls.load(other).n_layers == 4


def test_an_interrupted_fit_says_what_is_kept_and_goes_on(run, model, text, tmp_path, monkeypatch):
    class Stop(KeyboardInterrupt):
        pass

    arguments = ["fit", "-m", model, "-d", text, "--tokens", "6k", "-o", str(tmp_path / "lens")]
    whole = ls.fit(ls.load(model), text, tokens=6000, room=1)
    fit = tuning.fit

    def stopping(at):
        def shown(done, total):
            if done >= at:
                raise Stop

        return lambda lm, data, **how: fit(lm, data, **{**how, "progress": shown, "room": 1})

    monkeypatch.setattr(tuning, "fit", stopping(1))
    status, out, err = run(*arguments)
    assert (status, out) == (130, "")
    assert err == "lenscope: interrupted before the first checkpoint: nothing is kept\n"
    monkeypatch.setattr(tuning, "fit", stopping(5000))
    status, _, err = run(*arguments)
    assert status == 130
    assert "keeps the run after" in err
    assert "the same command goes on from there" in err
    assert err.count("\n") == 1
    read = []
    monkeypatch.setattr(
        tuning,
        "fit",
        lambda lm, data, **how: fit(lm, data, **{**how, "progress": lambda d, t: read.append(d), "room": 1}),
    )
    assert run(*arguments)[0] == 0
    assert read[0] > 3000
    made = ls.load_lens(tmp_path / "lens", ls.load(model))
    for pair, weights in whole.weights.items():
        torch.testing.assert_close(weights[0], made.weights[pair][0], rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "lens" / "checkpoint").exists()


def test_all_there_is_where_no_number_is_asked_for(run, model, text, tmp_path):
    arguments = ["fit", "-m", model, "-d", text, "--recipe", "ridge", "-o", str(tmp_path / "lens")]
    status, out, _ = run(*arguments, "--json")
    assert status == 0
    corpus, _ = ls.Corpus.open(ls.load(model), text).split(0.1)
    assert json.loads(out)["tokens"] == sum(len(batch.ids) for batch in corpus.batches(rows=1)) * 64
    status, _, err = run(*arguments, "--tokens", "1M")
    assert status == 2
    assert "and 1000000 were wanted" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "-m", "MODEL", "-d", "TEXT"], "'--output'"),
        (["fit", "-m", "MODEL", "-d", "/nowhere.txt", "-o", "NEW"], "/nowhere.txt"),
        (["fit", "-m", "MODEL", "-d", "EMPTY", "-o", "NEW"], "holds no text"),
        (["fit", "-m", "MODEL", "-d", "SHORT", "-o", "NEW"], "less than one row of 64 tokens"),
        (["fit", "-m", "MODEL", "-d", "TEXT", "-o", "NEW", "--stream"], "give --recipe ridge or jacobian"),
        (["fit", "-m", "MODEL", "-o", "NEW", "--recipe", "ridge", "--stream"], "give text with --data"),
        (["fit", "-m", "MODEL", "-d", "TEXT", "-o", "NEW", "--recipe", "soup"], "recipe 'soup': there are muon"),
        (["fit", "-m", "MODEL", "-d", "TEXT", "-o", "NEW", "--tokens", "many"], "--tokens many: give a whole number"),
        (["fit", "-m", "MODEL", "-d", "TEXT", "-o", "NEW", "--tokens", "0"], "--tokens 0: give a whole number"),
        (["fit", "-m", "MODEL", "-d", "TEXT", "-o", "NEW", "--field", "body"], "body"),
        (["fit", "-m", "MODEL", "-d", "TEXT", "-o", "NEW", "--held-out", "2"], "held_out 2.0"),
        (["fit", "-m", "MODEL", "-d", "TEXT", "-o", "NEW", "--length", "99"], "length 99: tiny-llama reads 2–64"),
        (["fit", "-m", "MODEL", "-d", "TEXT", "-o", "/proc/nowhere"], "cannot be made a folder"),
        (["fit", "-m", "MODEL", "-d", "TEXT", "-o", "TEXT"], "cannot be made a folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(mistaken, arguments, message):
    assert message in mistaken(*arguments)
