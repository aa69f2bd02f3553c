"""The command line where things fail: consoles, pipes, disks, interruptions, memory; each is a line and a status."""

import io
import json
import os
import subprocess
import sys

import pytest
import tiny

import lenscope as ls
from lenscope.cli import streams
from lenscope.cli.main import main
from lenscope.lenses.trajectory_files import Kept

FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny.model("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


def process(code, *arguments, **how):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output="stdout" not in how, check=False, **how)


MAIN = "from lenscope.cli.main import main; main()"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8", "latin-1"])
@pytest.mark.parametrize("command", ["check", "lens", "json", "reproduce"])
def test_a_console_of_any_encoding(model, encoding, command, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    arguments = {
        "check": ["check", model],
        "lens": ["lens", "Привет – 日本", "-m", model],
        "json": ["lens", "Привет – 日本", "-m", model, "--json"],
        "reproduce": ["reproduce"],
    }
    with pytest.raises(SystemExit) as left:
        main(arguments[command])
    assert left.value.code == 0
    text = raw.getvalue().decode(encoding)
    if command == "json":
        assert json.loads(text)["prompt"]["text"] == "Привет – 日本"
    if (command, encoding) == ("check", "ascii"):
        assert "\n+ readout" in text or "+ " in text


def test_json_is_nothing_that_a_terminal_acts_on(monkeypatch):
    value = {"a": "\x9b2J\u202e\ud83d\x7f\u2028 é 日本", "b": [float("nan"), float("inf"), 1.5]}
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    text = streams.as_json(value)
    assert json.loads(text) == {"a": value["a"], "b": [None, None, 1.5]}
    assert "é 日本" in text
    assert not any(c in text for c in "\x9b\u202e\ud83d\x7f\u2028")
    text.encode("utf-8")


def test_an_argument_that_is_no_text_is_one_line(run):
    status, out, err = run("lens", "caf\udce9")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "caf\\udce9: is no text" in err


def test_an_error_is_one_line_whatever_it_names(run):
    status, _, err = run("lens", "hi", "--layers", "\x1b[31m\u202e\n9")
    assert (status, err.count("\n")) == (2, 1)
    assert "<1B>[31m<202E>" in err
    status, _, err = run("lens", "hi", "--no\x1b[31m")
    assert (status, err.count("\n")) == (2, 1)
    assert "\x1b" not in err


@FULL
@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["reproduce"], ["reproduce", "--json"], ["lens", "--help"]]
)
def test_a_full_disk_behind_stdout_is_one_line(arguments):
    with open("/dev/full", "w") as full:
        done = process(MAIN, *arguments, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.decode() == "lenscope: the output cannot be written (No space left on device)\n"


def test_a_closed_pipe_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    done = process(MAIN, "reproduce", stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_is_saved_is_saved_though_nobody_reads(model, tmp_path, monkeypatch, capsys):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(SystemExit) as left:
        main(["lens", "hi", "-m", model, "-o", str(tmp_path / "r.json")])
    assert left.value.code == 0
    assert ls.load_results(tmp_path / "r.json").text == "hi"


def test_what_cannot_be_saved_was_shown(run, model, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ls.Grid, "save", full)
    status, out, err = run("patch", "the cat", "-m", model, "-t", "a b", "-n", "1", "-o", str(tmp_path / "g.json"))
    assert status == 2
    assert "p(1st)" in out
    assert err.endswith("cannot be written (No space left on device)\n")
    monkeypatch.setattr("lenscope.lenses.trajectory_files.Json._add", full)
    status, out, err = run("lens", "hi", "-m", model, "-o", str(tmp_path / "r.json"))
    assert status == 2
    assert "colour" in out
    assert "r.json: cannot be written (No space left on device)" in err
    assert [p.name for p in tmp_path.iterdir()] == []


PRESS = """
import os, signal, sys
# a process that was started in the background would ignore Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)
pressed = sys.argv.pop(1)
class Press:
    def find_spec(self, name, path=None, target=None):
        if name == pressed:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Press())
from lenscope.cli.main import main
main()
"""


@pytest.mark.parametrize(
    "module", ["typer", "lenscope.cli.lens", "rich.table", "lenscope.models.loading", "torch", "numpy"]
)
def test_an_interruption_while_things_are_imported_is_one_line(module, model):
    done = process(PRESS, module, "lens", "hi", "-m", model)
    assert (done.returncode, done.stdout) == (130, b"")
    assert done.stderr.decode() == "lenscope: interrupted\n"


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried")]
)
def test_too_little_memory_is_one_line(run, model, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(ls.Lens, "trajectory", fail)
    status, out, err = run("lens", "hi", "-m", model)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "out of memory" in err


def test_an_interrupted_run_of_prompts_keeps_what_is_done(run, model, tmp_path, monkeypatch):
    trajectory = ls.Lens.trajectory
    (tmp_path / "p.txt").write_text("one\ntwo\nthree\n")

    def stopping(self, prompt, *given, **how):
        if prompt.text == "three":
            raise KeyboardInterrupt
        return trajectory(self, prompt, *given, **how)

    monkeypatch.setattr(ls.Lens, "trajectory", stopping)
    for name in ("r.parquet", "r.json", "r.html"):
        target = ["--html" if name.endswith("html") else "-o", str(tmp_path / name)]
        status, out, err = run("lens", "-f", str(tmp_path / "p.txt"), "-m", model, "--json", *target)
        assert status == 130
        assert [t["prompt"]["text"] for t in json.loads(out)] == ["one", "two"]
        assert "2 of 3 prompts done; they are kept" in err
    for name in ("r.parquet", "r.json"):
        assert [t.text for t in ls.load_results(tmp_path / name)] == ["one", "two"]
    assert (tmp_path / "r.html").read_text().rstrip().endswith("</html>")


def test_prompts_are_written_as_they_come(lm, tmp_path, monkeypatch):
    """What waits to be written does not grow with the number of prompts, and the file is the one that `save` writes."""
    monkeypatch.setattr("lenscope.lenses.trajectory_files.GROUP", 40)
    many = [ls.Lens(lm).trajectory(f"prompt {n}") for n in range(12)]
    for name in ("r.parquet", "r.json"):
        kept = Kept.open(tmp_path / name)
        for t in many:
            kept.add(t)
            assert sum(map(len, getattr(kept, "_waiting", ()))) < 80
        assert not (tmp_path / name).exists()
        assert kept.end()
        ls.save(many, tmp_path / f"whole-{name}")
        ours, whole = (ls.load_results(tmp_path / n) for n in (name, f"whole-{name}"))
        assert [t.to_json() for t in ours] == [t.to_json() for t in whole]
    nothing = Kept.open(tmp_path / "none.json")
    assert not nothing.end()
    assert not (tmp_path / "none.json").exists()
