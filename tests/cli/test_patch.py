"""The command of Patchscopes, on the real model and on a tiny one."""

import json

import pytest

import lenscope as ls
from lenscope.models import loading


def test_patch_explains_layer_by_layer_and_says_mistakes_in_one_line(smollm2, run, tmp_path, monkeypatch):
    """The paper's example, on the real model."""
    path = tmp_path / "said.json"
    code, out, _ = run("patch", "Diana, Princess of Wales", "--layers", "0,12", "-n", "6", "-o", str(path), "--json")
    grid = json.loads(out)
    assert code == 0
    assert grid["cells"]["layer"] == [0, 12]
    assert "Country" in grid["texts"][0]
    assert "British monarch" in grid["texts"][1]
    assert json.loads(path.read_text()) == grid
    # loading the real model for each mistake would take a second each
    monkeypatch.setattr(loading, "load", lambda *_, **__: smollm2)
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


def test_controls_stand_beneath(smollm2, run, monkeypatch):
    monkeypatch.setattr(loading, "load", lambda *_, **__: smollm2)
    code, out, _ = run("patch", "Diana, Princess of Wales", "--layers", "0,12", "-n", "6", "--stop", ",", "--controls")
    assert code == 0
    above, beneath = out.split("\n\n")
    assert "British monarch" in above
    lines = beneath.splitlines()
    assert lines[0].startswith("without the state it says: -box: Chinese")
    assert "," not in lines[0]
    assert lines[1] == "random vectors, as long as the states:"
    # of the same cells
    assert [line.split()[0] for line in lines[3:]] == ["0", "12"]
    assert "British monarch" not in beneath


def test_a_contrast_reaches_texts_next_tokens_and_controls(run, model):
    plain, grids = ["patch", "the cat sat", "-m", model, "-t", "a b x c", "--layers", "1,3"], []
    for more in ((), ("--contrast", "2"), ("-n", "0", "--contrast", "2")):
        code, out, _ = run(*plain, *more, "--json")
        assert code == 0
        grids.append(json.loads(out))
    assert [grid["provenance"]["contrast"] for grid in grids] == [0.0, 2.0, 2.0]
    assert grids[0]["cells"]["log_probs"] != grids[1]["cells"]["log_probs"]
    written, predicted = ([p[0] for p in grid["cells"]["log_probs"]] for grid in grids[1:])
    assert written == pytest.approx(predicted, abs=1e-4)
    code, out, _ = run(*plain, "--contrast", "2", "--controls")
    assert code == 0
    assert "with contrast 2" in " ".join(out.split())
    for wrong in ("-1.0", "nan", "inf", "1000.5", "1e+300"):
        code, out, err = run(*plain, "--contrast", wrong)
        assert (code, out) == (2, "")
        assert err == f"lenscope: --contrast {wrong}: give a number from 0 to 1000, such as 0.5; 0 is no contrast\n"


def test_an_interruption_is_one_line_and_status_130(run, model, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ls.LM, "read", stop)
    code, out, err = run("patch", "the cat", "-m", model, "-t", "a b")
    assert (code, out) == (130, "")
    assert err.endswith("lenscope: interrupted\n")


def test_a_grid_and_an_evaluation_go_onto_pages(run, model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat. " * 40)
    evaluated = ["eval", "-m", model, "-d", str(text), "--tokens", "64"]
    for arguments in (["patch", "the cat", "-m", model, "-t", "a b", "--grid"], evaluated):
        page = tmp_path / f"{arguments[0]}.html"
        code, _, err = run(*arguments, "--html", str(page))
        assert (code, err.splitlines()[-1]) == (0, f"lenscope: saved {page}")
        assert page.read_text().startswith("<!doctype html>")
        code, out, err = run(*arguments, "--html", "page.htm")
        assert (code, out) == (2, "")
        assert "page.htm: give a file that ends in .html" in err


def test_an_adapter_is_on_in_the_model_or_in_the_target_alone(model, run, tmp_path):
    peft_adapters = pytest.importorskip("peft_adapters", reason="the package peft is not installed")
    lm = ls.load(model)
    first = peft_adapters.saved(tmp_path / "first", lm.model, peft_adapters.lora())
    second = peft_adapters.saved(tmp_path / "second", lm.model, peft_adapters.lora(r=2), seed=1)
    text, target = "the cat sat", "a cat -> a cat, x ->"
    command = ["patch", text, "-m", str(model), "-t", target, "--layers", "2", "-n", "8", "--json"]

    def texts(adapter, on_target):
        source = lm if adapter is None else ls.models.with_adapter(lm, adapter)
        scope = ls.Patchscope(source, target, adapter=on_target)
        return scope.generate(source.read(text, positions=-1), [(2, 2)], max_new_tokens=8).texts

    expected = {(a, b): list(texts(a, b)) for a, b in ((None, None), (first, None), (None, second), (first, second))}
    assert len({str(one) for one in expected.values()}) == 4
    for (adapter, on_target), one in expected.items():
        options = [
            *(["--adapter", str(adapter)] if adapter else []),
            *(["--target-adapter", str(on_target)] if on_target else []),
        ]
        code, out, _ = run(*command, *options)
        assert code == 0
        assert json.loads(out)["texts"] == one
    for wrong in (["--adapter", str(model)], ["--target-adapter", "nowhere"], ["--adapter", "no/such/one"]):
        code, out, err = run(*command, *wrong)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
    code, out, err = run("lens", text, "-m", str(model), "--stream", "--adapter", str(first))
    assert (code, err) == (2, f"lenscope: --adapter {first}: --stream takes no adapter; leave it out\n")
