"""The command of swaps: what it prints and saves is what the library gives."""

import json

import pytest

import lenscope as ls
from lenscope.interventions import load_edit_effects, swap_effects

ASKED = ["The cat sat", " France", " cat"]


def test_the_command_prints_and_saves_what_the_library_gives(run, model, lens, tmp_path):
    lm = ls.load(model)
    for more, f in (([], None), (["--lens", str(lens)], ls.load_lens(lens, lm))):
        asked = ["swap", *ASKED, "-m", model, "--answer", " on", "--swap-answer", " is", "--controls", "3", *more]
        status, out, err = run(*asked, "--layers", "1:4", "--positions", "1:", "-o", str(tmp_path / "e.json"))
        assert status == 0, err
        assert f"saved {tmp_path / 'e.json'}" in err
        expected = swap_effects(
            ls.Lens(lm, f), ASKED[0], ASKED[1], ASKED[2], [" on", " is"],
            layers=[1, 2, 3], positions=slice(1, None), controls=3, top_k=3,
        )  # fmt: skip
        saved = load_edit_effects(tmp_path / "e.json")
        assert saved.log_prob.tolist() == expected.log_prob.tolist()
        assert saved.prompts == expected.prompts
        for text in ("swap", "before", "after", "control 3", "layers 1–3", "more than controls", expected.lens):
            assert text in " ".join(out.split())
    status, shown, _ = run(*asked, "--layers", "1:4", "--positions", "1:", "--json")
    assert json.loads(shown)["log_prob"] == expected.to_json()["log_prob"]


def test_by_default_the_middle_layers_and_the_models_own_token(run, model):
    status, shown, err = run("swap", *ASKED, "-m", model, "--swap-answer", " is", "--json")
    assert status == 0, err
    data = json.loads(shown)
    assert data["layers"] == [1, 2, 3]
    assert data["runs"][-1] == "control 8"
    assert data["prompts"][0]["answer_ids"][0] == data["top_ids"][0][0][0]
    status, shown, err = run("swap", *ASKED, "-m", model, "--controls", "0", "--json")
    assert json.loads(shown)["runs"] == ["before", "after"]
    status, shown, err = run("swap", *ASKED, "-m", model, "--control", "random-token", "--seed", "1", "--json")
    assert status == 0, err
    assert json.loads(shown)["control"] == "random token"


@pytest.mark.parametrize(
    ("layers", "words"), [("1,3", "layers 1, 3"), ("2", "layer 2"), ("1:4", "layers 1–3"), ("0:2,3", "layers 0–1, 3")]
)
def test_the_caption_names_the_layers_that_are_changed_and_no_others(run, model, layers, words):
    status, out, err = run("swap", *ASKED, "-m", model, "--layers", layers, "--controls", "1")
    assert status == 0, err
    assert f"{words} at 3 of 3 positions; change" in " ".join(out.split())


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ([*ASKED, "--layers", "77"], "layer 77"),
        ([*ASKED, "--layers", "3:1"], "layers 3:1: none of the layers 0–4 of the model; give the first layer and"),
        ([*ASKED, "--layers", "2,9:"], "layers 9:: none of the layers 0–4"),
        ([*ASKED, "--positions", ":0"], "positions :0: none of the prompt's"),
        ([*ASKED, "--layers", "8-20"], "--layers 8-20: give numbers and ranges"),
        ([*ASKED, "--positions", "77"], "position 77"),
        ([*ASKED, "--positions", "dog"], "not in the prompt"),
        (["The cat sat", " a longer text", " cat"], "it is"),
        (["The cat sat", "", " cat"], "token '': is no token of"),
        (["The cat sat", " cat", " cat"], "in its own place"),
        ([*ASKED, "--answer", " a longer text"], "give one of them"),
        ([*ASKED, "--controls", "-1"], "--controls -1"),
        ([*ASKED, "--control", "x"], "random"),
        ([*ASKED, "--lens", "nowhere/at/all"], "nowhere"),
        ([*ASKED, "-o", "x.txt"], "x.txt"),
        (["", " France", " cat"], "the prompt is empty"),
    ],
)
def test_mistakes_are_one_line(run, model, wrong, why):
    status, out, err = run("swap", *wrong, "-m", model)
    assert status == 2
    assert not out
    assert err.startswith("lenscope: ")
    assert why in err
    assert err.count("\n") == 1
    # FROM and TO are texts here, also those of digits
    assert "an id" not in err
