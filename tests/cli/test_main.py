"""The command line where things fail: pipes, disks, interruptions, memory; each is a line and a status."""

import os
import shutil
import subprocess
import sys

import pytest
import shellingham

import lenscope as ls

MAIN = "from lenscope.cli.main import main; main()"
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")


def process(code, *arguments, **how):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output="stdout" not in how, check=False, **how)


def test_help_and_version_do_not_load_the_heavy_libraries():
    code = "import sys; from lenscope.cli.main import command_line; command_line(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_and_version(run):
    for command in ([], ["lens"], ["check"], ["demo"]):
        status, out, _ = run(*command, "--help")
        assert status == 0
        assert "Usage" in out
    assert run("--version") == (0, f"lenscope {ls.__version__}\n", "")


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "lenscope", "--version"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"lenscope {ls.__version__}\n")


ASKED = r"""
eval "$(lenscope --show-completion)"
complete -p lenscope
asked() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
    _lenscope_completion lenscope
    echo "${COMPREPLY[@]}"
}
asked lenscope pa
asked lenscope fit --to
lenscope --install-completion
"""


@pytest.fixture
def home(tmp_path):
    """The environment of a shell with a home of its own, in which `lenscope` is a program."""
    program = tmp_path / "bin" / "lenscope"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{MAIN}" "$@"\n')
    program.chmod(0o755)
    return os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_and_options(home, tmp_path):
    asked = subprocess.run(["bash", "--norc", "-c", ASKED], env=home, check=False, capture_output=True, text=True)
    assert (asked.returncode, asked.stderr) == (0, "")
    lines = asked.stdout.splitlines()
    assert lines[:3] == ["complete -o default -F _lenscope_completion lenscope", "patch", "--tokens"]
    assert "bash completion installed" in lines[3]
    assert ".bash_completions/lenscope.sh" in (tmp_path / ".bashrc").read_text()


@pytest.mark.parametrize("option", ["--install-completion", "--show-completion"])
def test_a_shell_that_cannot_be_completed_is_one_line(run, monkeypatch, option):
    monkeypatch.setattr(shellingham, "detect_shell", lambda: ("dash", "/bin/dash"))
    wanted = f"lenscope: {option}: was started from dash; run it in bash, zsh, fish, pwsh or powershell\n"
    assert run(option) == (2, "", wanted)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_complete_commands_and_options(run, monkeypatch, shell):
    monkeypatch.setenv("_LENSCOPE_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    for line, completed in (("lenscope pa", "patch"), ("lenscope fit --to", "--tokens")):
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
        status, out, err = run()
        assert (status, err) == (0, "")
        assert completed in out


def test_an_unknown_command_is_one_line(mistaken):
    assert "No such command 'peer'" in mistaken("peer")


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


def test_what_cannot_be_saved_was_shown(run, model, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ls.Grid, "save", full)
    status, out, err = run("patch", "the cat", "-m", model, "-t", "a b", "-n", "1", "-o", str(tmp_path / "g.json"))
    assert status == 2
    assert "p(1st)" in out
    assert err.endswith("cannot be written (No space left on device)\n")
    monkeypatch.setattr("lenscope.lenses.trajectory_files.JsonFile._add", full)
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


def test_of_several_processes_the_first_alone_speaks(run, monkeypatch):
    alone = run("reproduce")
    assert alone[1]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert run("reproduce") == alone
    monkeypatch.setenv("RANK", "1")
    assert run("reproduce") == (0, "", "")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--dtype", "fp16"], "--dtype fp16: give float32, float64, bfloat16 or float16; did you mean float16?"),
        (["--device", "gpu"], "--device gpu: there is no such device; give cpu"),
        (["--attn", " "], "--attn ' ': give a name"),
    ],
)
def test_what_a_model_is_loaded_with_is_told_as_options(run, model, option, message):
    for more in ([], ["--stream"]) if option[0] != "--device" else ([],):
        status, out, err = run("lens", "hi", "-m", model, *option, *more)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"lenscope: {message}")
