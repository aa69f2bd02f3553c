"""The commands of tuned lenses on a tiny model: what they print, keep and refuse."""

import json
import random

import pytest
import tiny
import torch

import lenscope as ls
from lenscope.cli import demo
from lenscope.cli.evaluate import _places_by_name
from lenscope.cli.main import main
from lenscope.cli.options import parse_amount
from lenscope.fitting import tuned_lens as tuning
from lenscope.lenses.evaluate import EvaluationInterrupted

TEXT = "the cat sat on a mat in this capital city of France and Paris is it while tests of tokens go on"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny.model("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "other-llama"
    tiny.model("llama", seed=1).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    """A tiny model that the demo's prompts fit into."""
    path = tmp_path_factory.mktemp("models") / "roomy-llama"
    built = tiny.model("llama")
    built.config.max_position_embeddings = 512
    built.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    draw = random.Random(0)
    lines = (json.dumps({"text": " ".join(draw.choices(TEXT.split(), k=60))}) for _ in range(200))
    path.write_text("\n".join(lines))
    return str(path)


def fitting(model, text, folder, *more):
    return ["fit", "-m", model, "-d", text, "--tokens", "2k", "--recipe", "ridge", "-o", str(folder), *more]


@pytest.fixture(scope="module")
def lens(model, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lens") / "one"
    with pytest.raises(SystemExit) as left:
        main(fitting(model, text, folder))
    assert left.value.code == 0
    return folder


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
    assert "has a config.json of something else" in err
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


def test_other_processes_are_silent(run, model, text, lens, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert run(*fitting(model, text, lens)) == (0, "", "")


def test_a_trajectory_through_a_tuned_lens_says_so(run, model, lens):
    status, out, _ = run("lens", "The cat", "-m", model, "--lens", str(lens), "--json")
    assert status == 0
    shown = json.loads(out)
    assert shown["lens"] == f"tuned lens {lens}"
    lm = ls.load(model)
    direct = ls.Lens(lm, ls.load_lens(lens, lm)).trajectory("The cat")
    back = ls.results.Trajectory.from_json(shown)
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
    assert (ls.results.Trajectory.from_json(json.loads(out)).kl == direct.kl).all()


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
    from lenscope.lenses import evaluate as evaluating

    evaluate = evaluating.evaluate

    def stopped(*given, **how):
        raise EvaluationInterrupted(evaluate(*given, **how))

    monkeypatch.setattr(evaluating, "evaluate", stopped)
    status, out, err = run("eval", "-m", model, "-d", text, "--tokens", "128", "-o", str(tmp_path / "e.json"))
    assert status == 130
    assert "logit lens" in out
    assert "tokens measured; what they say is kept" in err.splitlines()[-1]
    assert ls.lenses.load_evaluation(tmp_path / "e.json").tokens


def test_export_is_read_again(run, model, lens, tmp_path):
    status, out, err = run("export", str(lens), str(tmp_path / "old"), "-m", model)
    assert (status, out, err) == (0, "", f"lenscope: saved {tmp_path / 'old'}\n")
    state = torch.load(tmp_path / "old" / "params.pt", weights_only=True)
    weights = ls.load_mapping(lens).weights[2, 4]
    torch.testing.assert_close(state["2.weight"] + torch.eye(len(weights[1])), weights[0], rtol=0, atol=1e-6)
    status, _, err = run("export", str(lens), str(tmp_path / "old"), "-m", model)
    assert status == 2
    assert "has a config.json already" in err


@pytest.mark.parametrize(
    ("text", "value"), [("8192", 8192), ("100_000", 100_000), ("200k", 200_000), ("1M", 10**6), ("1.5k", 1500)]
)
def test_amounts(text, value):
    assert parse_amount(text, "tokens") == value


def test_names_of_lenses(tmp_path):
    (tmp_path / "a=b").mkdir()
    given = ["x=/some/where", "/else/where/", f"{tmp_path}/a=b"]
    assert _places_by_name(given) == {"x": "/some/where", "where": "/else/where/", "a=b": f"{tmp_path}/a=b"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "-m", "MODEL", "-d", "TEXT"], "'--output'"),
        (["fit", "-m", "MODEL", "-d", "/nowhere.txt", "-o", "NEW"], "/nowhere.txt"),
        (["fit", "-m", "MODEL", "-d", "EMPTY", "-o", "NEW"], "holds no text"),
        (["fit", "-m", "MODEL", "-d", "SHORT", "-o", "NEW"], "less than one row of 64 tokens"),
        (["fit", "-m", "MODEL", "-d", "TEXT", "-o", "NEW", "--recipe", "soup"], "recipe 'soup': there are muon"),
        (["fit", "-m", "MODEL", "-d", "TEXT", "-o", "NEW", "--tokens", "many"], "--tokens many: give a whole number"),
        (["fit", "-m", "MODEL", "-d", "TEXT", "-o", "NEW", "--tokens", "0"], "--tokens 0: give a whole number"),
        (["fit", "-m", "MODEL", "-d", "TEXT", "-o", "NEW", "--field", "body"], "body"),
        (["fit", "-m", "MODEL", "-d", "TEXT", "-o", "NEW", "--held-out", "2"], "held_out 2.0"),
        (["fit", "-m", "MODEL", "-d", "TEXT", "-o", "NEW", "--length", "99"], "length 99: tiny-llama reads 2–64"),
        (["fit", "-m", "MODEL", "-d", "TEXT", "-o", "/proc/nowhere"], "cannot be made a folder"),
        (["fit", "-m", "MODEL", "-d", "TEXT", "-o", "TEXT"], "cannot be made a folder"),
        (["eval", "-m", "MODEL", "--lens", "/nowhere"], "no such file or folder"),
        (["eval", "-m", "MODEL", "--lens", "CORRUPT"], "is no lens"),
        (["eval", "-m", "MODEL", "--lens", "a=x", "--lens", "a=y"], "--lens a=y: give each lens a name of its own"),
        (["eval", "-m", "MODEL", "--measure", "beauty"], "measure 'beauty': there are"),
        (["eval", "-m", "MODEL", "--transfer"], "--transfer: takes one --lens, not 0"),
        (["eval", "-m", "MODEL", "-d", "TEXT", "-o", "x.csv"], "ends in .parquet or .json"),
        (["eval", "-m", "MODEL", "-d", "TEXT", "--layers", "9"], "layer 9: tiny-llama has layers 0–4"),
        (["eval", "-m", "MODEL", "-d", "TEXT", "--tokens", "1M"], "and 1000000 were wanted"),
        (["lens", "hi", "-m", "MODEL", "--lens", "CORRUPT"], "is no lens"),
        (["lens", "hi", "-m", "MODEL", "--lens", "/nowhere", "--transferred"], "no such folder"),
        (["export", "CORRUPT", "NEW", "-m", "MODEL"], "is no lens"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(run, model, text, tmp_path, arguments, message):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("a few words")
    (tmp_path / "corrupt").mkdir()
    places = {"MODEL": model, "TEXT": text, "NEW": tmp_path / "new", "EMPTY": tmp_path / "empty.txt"}
    places |= {"SHORT": tmp_path / "short.txt", "CORRUPT": tmp_path / "corrupt"}
    status, out, err = run(*(str(places.get(a, a)) for a in arguments))
    assert (status, out) == (2, "")
    assert err.startswith("lenscope: ")
    assert err.count("\n") == 1
    assert message in err


def test_the_demo_fits_shows_both_lenses_and_reuses_what_it_fitted(run, roomy, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "TOKENS", 5000)
    monkeypatch.setattr(demo, "TARGET", "s")
    arguments = ["demo", "-m", roomy, "-o", str(tmp_path / "demo")]
    status, out, err = run(*arguments)
    assert (status, err) == (0, "")
    assert "fitting a tuned lens" in out
    page = (tmp_path / "demo" / "index.html").read_text()
    assert '"lens":"tuned lens"' in page
    assert '"lens":"logit lens"' in page
    lm = ls.load(roomy)
    tuned = ls.Lens(lm, ls.load_lens(tmp_path / "demo" / "lens", lm)).trajectory(demo.PROMPT)
    plain = ls.Lens(lm).trajectory(demo.PROMPT)
    row = next(line.split() for line in out.split("'The capital of France is'")[-1].splitlines() if line[:5] == "    2")
    assert [row[3], row[6]] == [f"{t.kl[2, -1]:.2f}" for t in (plain, tuned)]
    assert f"{plain.kl[:-1].mean():.2f} with the logit lens, {tuned.kl[:-1].mean():.2f} with" in " ".join(out.split())
    status, again, _ = run(*arguments)
    assert status == 0
    assert "fitting a tuned lens" not in again
    monkeypatch.setattr(demo, "TOKENS", 6000)
    assert "fitting a tuned lens" in run(*arguments)[1]
