"""Several lenses of one command: their names, what is shown and saved, and one line for what does not go with them."""

import json

import pytest

import lenscope as ls
from lenscope.cli.several_lenses import lenses_by_name
from lenscope.errors import LenscopeError


def test_names_of_several_lenses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["logit", "a/lens", "b/lens/", "x=c/lens", "owner/other"]
    names = {"logit": None, "a/lens": "a/lens", "b/lens": "b/lens/", "x": "c/lens", "other": "owner/other"}
    assert lenses_by_name(given) == names
    assert lenses_by_name(["lens", "a/lens"]) == {"lens": "lens", "a/lens": "a/lens"}
    assert lenses_by_name(["./logit", "a"]) == {"logit": "./logit", "a": "a"}, "a folder of this name"
    for wrong, why in (
        (["a", "a"], "given twice"), (["a", "./a"], "given twice"), (["logit", "logit"], "given twice"),
        (["a=x", "a=y"], "a name of its own"), (["logit", "./logit"], "of its own"),
        (["=x", "y"], "a name and a place"), (["x=", "y"], "a name and a place"),
    ):  # fmt: skip
        with pytest.raises(LenscopeError, match=why):
            lenses_by_name(wrong)


def test_lenses_stand_beside_each_other(run, model, lens, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    status, out, err = run("lens", "The cat", "-m", model, "--lens", "logit", "--lens", str(lens), "--target", "a")
    assert (status, err) == (0, "")
    assert out.startswith("2 lenses")
    assert any("1 logit lens" in line and "2 tuned lens one" in line for line in out.splitlines())
    assert "tuned lens one: 'a' at the last position" in " ".join(out.split())
    assert "1 = 2: share of" in " ".join(out.split())


def test_several_lenses_are_saved_and_printed_as_json(run, model, lens, tmp_path):
    saved, page = tmp_path / "r.parquet", tmp_path / "r.html"
    lenses = ["--lens", f"mine={lens}", "--lens", "logit"]
    status, out, err = run(
        "lens", "The cat", "a", "-m", model, *lenses, "--json", "-o", str(saved), "--html", str(page)
    )
    assert (status, err.count("lenscope: saved")) == (0, 2)
    results = ls.load_results(saved)
    assert [r.text for r in results] == ["The cat", "a"]
    assert results[0].lenses == ("tuned lens mine", "logit lens")
    assert [r.to_json() for r in results] == json.loads(out)
    assert page.read_text().count('"kind":"side by side"') == 2


def test_one_lens_named_logit_is_the_logit_lens(run, model):
    outputs = [run("lens", "The cat", "-m", model, *more) for more in ([], ["--lens", "logit"])]
    assert outputs[0] == outputs[1]


def test_several_lenses_of_a_streamed_model_read_its_weights_once_for_all_prompts(run, model, lens):
    lenses = ["--lens", str(lens), "--lens", "logit"]
    status, out, err = run("lens", "The cat", "The", "-m", model, *lenses, "--stream", "--json")
    assert status == 0
    assert "2 times" in err
    assert len(json.loads(out)) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--compare", "hi"], "--compare: reads two prompts through one lens"),
        (["--generate", "2"], "--generate: reads through one lens"),
        (["--points", "mlp"], "--points: a fitted lens has maps for the ends of blocks only"),
        (["--lens", "nowhere"], "nowhere: no such file or folder"),
        (["--lens", "EMPTYFOLDER"], "is no lens"),
    ],
)
def test_what_does_not_go_with_several_lenses_is_one_line(run, model, lens, tmp_path, more, message):
    (tmp_path / "empty").mkdir()
    more = [str(tmp_path / "empty") if m == "EMPTYFOLDER" else m for m in more]
    status, out, err = run("lens", "hi", "-m", model, "--lens", str(lens), "--lens", "logit", *more)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_lens_of_another_model_is_refused(run, other, lens):
    status, out, err = run("lens", "hi", "-m", other, "--lens", str(lens), "--lens", "logit")
    assert (status, out, err.count("\n")) == (2, "", 1)
