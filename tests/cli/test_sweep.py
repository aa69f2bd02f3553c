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
