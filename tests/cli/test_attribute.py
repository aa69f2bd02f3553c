"""The command of logit attribution: what it prints and saves is what the library gives."""

import json

import pytest

import lenscope as ls
from lenscope.lenses import LogitAttribution, attribute_logit

ASKED = ("attribute", "The cat sat on", "--token", " the")


def test_the_command_prints_and_saves_what_the_library_gives(run, model, tmp_path):
    path = tmp_path / "a.json"
    status, out, err = run(*ASKED, "-m", model, "--against", " is", "--at", " cat", "--heads", "-o", str(path))
    assert (status, err) == (0, f"lenscope: saved {path}\n")
    direct = attribute_logit(ls.load(model), "The cat sat on", " the", " cat", against=" is", heads=True)
    assert ls.load_results(path).logit == direct.logit
    assert f"{direct.logit:+.3f}" in out
    status, out, _ = run(*ASKED, "-m", model, "--json")
    assert LogitAttribution.from_json(json.loads(out)).against is None
    status, out, _ = run(*ASKED, "-m", model, "--top-k", "2")
    assert status == 0
    assert "others" in out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--top-k", "0"], "top_k 0: give at least 1"),
        (["--at", "0:3"], "--at 0:3: give one position"),
        (["--at", "0,1"], "--at 0,1: give one position"),
        (["-o", "x.parquet"], ".json"),
    ],
)
def test_mistakes_are_seen_before_a_model_is_loaded(call, more, message):
    (status, out, err), _ = call([*ASKED, *more])
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_token_that_is_none_is_one_line(mistaken):
    assert "it is 4 tokens" in mistaken("attribute", "The cat", "--token", "the cat sat", "-m", "MODEL")
