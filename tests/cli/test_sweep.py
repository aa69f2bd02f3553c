"""The command of sweeps: what it says, and one line for every mistake."""

import importlib.util
import json

import pytest


@pytest.fixture(scope="module")
def spec(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("spec") / "spec.yaml"
    path.write_text(
        f"model: {model}\n"
        "sources:\n"
        "  prompts: [the cat sat, {text: on the mat, answer: x}]\n"
        "  layers: 0:5:2\n"
        "targets: identity\n"
        "methods: [predict, {generate: 2}]\n"
        "controls: [random]\n"
        "rows_per_part: 4\n"
    )
    return str(path)


def test_a_sweep_is_tried_limited_completed_and_asked_for_its_status(run, spec, tmp_path):
    folder = str(tmp_path / "out")
    code, out, _ = run("sweep", spec, "--dry-run", "--json")
    tried = json.loads(out)
    assert (code, tried["rows"], tried["sample_parts"]) == (0, 24, 2)
    assert min(tried["seconds"], tried["memory"], tried["disk"]) > 0
    code, out, _ = run("sweep", spec, "--dry-run")
    assert (code, out.splitlines()[0]) == (0, "rows    24 distinct, in 4 parts")
    code, out, err = run("sweep", spec, "-o", folder, "--status")
    assert (code, out) == (2, "")
    assert "holds no sweep" in err
    code, out, err = run("sweep", spec, "-o", folder, "--limit", "5")
    assert code == 0
    assert "6 of 24 rows, 1 of 4 parts are done; the same command goes on" in err
    code, out, _ = run("sweep", spec, "-o", folder, "--json")
    assert (code, json.loads(out)["complete"]) == (0, True)
    code, out, _ = run("sweep", spec, "-o", folder, "--status")
    assert (code, out) == (0, "24 of 24 rows, 4 of 4 parts are done\n")
    part = next((tmp_path / "out" / "parts").iterdir())
    part.write_bytes(part.read_bytes()[:-5])
    code, out, err = run("sweep", spec, "-o", folder)
    assert code == 0
    assert f"1 damaged and run again: parts/{part.name}" in err
    assert "identity" not in out
    assert "random" in out
    caption = " ".join(out.split("means over rows; ")[1].split())
    assert caption.startswith(
        "top: probability of the top (or first) token; kl: KL(unpatched ‖ patched) in nats; p@1: how"
    )


def test_mistakes_of_a_sweep_are_one_line(run, spec, tmp_path, model, monkeypatch):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(f"model: {model}\nsources: {{prompts: [the cat], layer: 1}}\ntargets: identity\n")
    folder = str(tmp_path / "out")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    from lenscope.sweeps import ray_workers

    monkeypatch.setattr(ray_workers, "find_spec", lambda name: None)
    for arguments, line in (
        ([str(wrong), "-o", folder], "wrong.yaml: sources.layer: unknown key; did you mean layers?"),
        ([spec], "-o: give the folder of the sweep"),
        ([spec, "-o", folder, "--engine", "rey"], "there are local, ray; did you mean ray?"),
        ([spec, "-o", folder, "--workers", "2"], "--workers: is of Ray's actors, which --engine ray asks for"),
        ([spec, "-o", folder, "--limit", "0"], "--limit 0: give at least 1"),
        ([spec, "-o", folder, "--engine", "ray"], "Ray is not installed; run: pip install 'lenscope[ray]'"),
        ([spec, "-o", folder, "--status", "--dry-run"], "give one of them"),
        (["nothing.yaml", "-o", folder], "nothing.yaml: no such file"),
    ):
        code, out, err = run("sweep", *arguments)
        assert (code, out) == (2, "")
        assert line in err
        assert err.count("\n") == 1


def test_every_mistake_of_a_spec_begins_with_the_name_of_its_file(run, tmp_path, model, monkeypatch):
    """Those that are seen without a model, and those that are not; what needs none is seen before one is loaded."""
    from lenscope.sweeps import running

    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"text": "the cat"}\n{"text": "the cat",\n')
    (tmp_path / "none.jsonl").write_text("\n")
    (tmp_path / "other.csv").write_text("question,layers\nthe cat,1\n")
    loaded = []

    def load(*arguments):
        loaded.append(arguments)
        return load_models(*arguments)

    load_models = running.load_models
    monkeypatch.setattr(running, "load_models", load)
    for name, sources, targets, message, with_model in (
        (
            model,
            "{file: nope.jsonl}",
            "identity",
            f"sources.file: nope.jsonl: no such file (looked for {tmp_path}/",
            False,
        ),
        (model, "{file: bad.jsonl}", "identity", "bad.jsonl, line 2: is not JSON", False),
        (model, "{file: none.jsonl}", "identity", "sources.file: none.jsonl: has no prompts", False),
        (model, "{file: other.csv}", "identity", "other.csv, line 2: has no column 'text'", False),
        (model, "{prompts: the cat, layer: 1}", "identity", "sources.layer: unknown key; did you mean layers?", False),
        ("no-such-model", "{prompts: the cat}", "identity", "no-such-model: no built-in model", False),
        (model, "{prompts: the cat, layers: 9}", "identity", "sources.prompts[0] ('the cat'): layer 9", True),
        (model, "{prompts: the cat}", "{text: a b, at: ' y'}", "targets[0]: position ' y': not in the prompt", True),
    ):
        (tmp_path / "mine.yaml").write_text(f"model: {name}\nsources: {sources}\ntargets: {targets}\n")
        for more in (["--dry-run"], ["-o", "out"]):
            loaded.clear()
            code, out, err = run("sweep", "mine.yaml", *more)
            assert (code, out) == (2, "")
            assert err.startswith(f"lenscope: mine.yaml: {message}")
            assert err.count("\n") == 1
            assert bool(loaded) == with_model


def test_an_interruption_says_what_is_there(run, spec, tmp_path, monkeypatch):
    from lenscope.sweeps import running

    written = running.write_part

    def stop(folder, part, table):
        if part.number == 2:
            raise KeyboardInterrupt
        written(folder, part, table)

    monkeypatch.setattr(running, "write_part", stop)
    code, out, err = run("sweep", spec, "-o", str(tmp_path / "out"))
    assert (code, out) == (130, "")
    assert "interrupted: 12 of 24 rows, 2 of 4 parts are done; the same command goes on" in err
