"""The command that asks about states, on a tiny model."""

import json

import pytest

import lenscope as ls
from lenscope.models.adapters import with_adapter
from lenscope.patchscopes.questions_about_states import NOTHING_TRAINED, WAYS
from lenscope.verbalisers.oracles import activation_oracle, load_oracle_settings


def test_ask_shows_the_states_beside_their_controls(run, roomy):
    asked = ["ask", "the cat sat on a mat", "What is it?", "-m", roomy, "--layers", "1,2", "-n", "3"]
    code, out, err = run(*asked, "--at", "cat", "--at", "1", "--at", "mat")
    assert code == 0
    assert all(way in out for way in WAYS)
    assert err == f"lenscope: {NOTHING_TRAINED}\n"
    code, out, err = run(*asked, "--at", "cat", "--at", "mat", "--contrast", "1", "--json")
    assert (code, err) == (0, f"lenscope: {NOTHING_TRAINED}\n")
    document = json.loads(out)
    assert document["trained"] == ""
    assert document["note"] == NOTHING_TRAINED
    assert len(document["tokens"]) == 2
    assert document["provenance"]["contrast"] == 1.0
    assert [(a["way"], a["layer"]) for a in document["answers"]] == [
        *((way, layer) for layer in (1, 2) for way in ("state", "other position", "random vector")),
        ("no state", None),
        ("text alone", None),
    ]


def test_mistakes_are_one_line(run, roomy):
    asked = ["ask", "the cat sat", "What is it?", "-m", roomy]
    for wrong, message in (
        (["--at", "dog"], "'dog': not in the prompt"),
        (["--layers", "40"], "layer 40"),
        (["--layers", "x"], "--layers x"),
        (["--max-tokens", "0"], "--max-tokens 0: give at least 1"),
        (["--max-tokens", "100000"], "max_new_tokens 100000"),
        (["--contrast", "-1"], "--contrast -1"),
        (["--contrast", "1e300"], "--contrast 1e+300: give a number from 0 to 1000, such as 0.5"),
        (["--stop", ""], "--stop: an empty text"),
        (["--oracle", "/nowhere"], "/nowhere"),
        (["--seed", "-1"], "--seed -1: give at least 0"),
    ):
        code, out, err = run(*asked, *wrong)
        assert (code, out) == (2, ""), wrong
        assert message in err
        assert err.count("\n") == 1
    assert run("ask", "the cat", " ", "-m", roomy)[:2] == (2, "")


def test_an_oracle_answers_with_its_adapter_and_reads_without(run, roomy, tmp_path):
    peft_adapters = pytest.importorskip("peft_adapters")
    lm = ls.load(roomy)
    folder = str(peft_adapters.saved(tmp_path / "oracle", lm.model, peft_adapters.lora()))
    # the tiny tokenizer has no token " ?"
    (tmp_path / "oracle" / "ao_config.json").write_text(json.dumps({"special_token": "?"}))
    how = {"settings": load_oracle_settings(folder)}
    prompt, question = "the cat sat on a mat", "What is it?"
    code, out, err = run(
        "ask", prompt, question, "-m", roomy, "--oracle", folder, "--at", "cat", "--layers", "2", "-n", "4", "--json"
    )
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["trained"] == f"the adapter {folder}, asked as an Activation Oracle"
    assert document["note"] == ""
    answers = {a["way"]: a["text"] for a in document["answers"]}
    scope = activation_oracle(lm, question, 2, **how, adapter=with_adapter(lm, folder))
    assert answers["state"] == scope.generate(lm.read(prompt, 2, "cat"), max_new_tokens=4).texts[0]
    # the model's own text keeps the token that ends it
    assert answers["no state"] == scope.lm.generate(scope.resolved[0][0], 4).text.removesuffix("</s>")
    # the adapter does something here
    plain = activation_oracle(lm, question, 2, **how).generate(lm.read(prompt, 2, "cat"), max_new_tokens=4)
    assert answers["state"] != plain.texts[0]
