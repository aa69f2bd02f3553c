"""Damaged and forged files of every kind: refused in one line, or read as what somebody could have written."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fuzzing
import pytest
from fuzzed import Kind

import lenscope as ls

HERE = Path(__file__).parents[1] / "support"


def test_damaged_files_of_every_kind_are_refused_or_read_right():
    """Six of each kind; python tests/fuzzing.py --mutations 10000 tries as many as one has time for."""
    command = [sys.executable, str(HERE / "fuzzing.py"), "--mutations", "6"]
    path = os.pathsep.join([str(Path(ls.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    kinds = [line for line in done.stdout.splitlines() if not line.startswith("all ")]
    assert len(kinds) >= 40
    assert all(sum(map(int, re.findall(r"\d+(?= [a-z]+)", line[24:]))) == 6 for line in kinds)


def number(path: Path) -> int:
    try:
        return int((path / "n.txt").read_text())
    except (ValueError, OSError) as error:
        raise ls.LenscopeError(f"{path}: is no number") from error


NUMBER = Kind("number", lambda f: (f / "n.txt").write_text("12345"), number, str, lambda n: "", False)


def faults(kind: Kind, folder: Path, count: int = 60) -> set[str]:
    kind.write(folder)
    outcomes = fuzzing.tried(kind, folder, range(count), [b"other"])
    assert [o.seed for o in outcomes] == list(range(count))
    assert fuzzing.report(outcomes).count("FAULT") == sum(o.fault for o in outcomes)
    return {o.result for o in outcomes if o.fault}


@pytest.mark.parametrize(
    ("wrong", "seen"),
    [
        ({}, set()),
        ({"load": lambda f: int((f / "n.txt").read_text())}, {"traceback"}),
        ({"load": lambda f: number(f) if number(f) <= 12345 else bytearray(3 << 30)}, {"memory"}),
        ({"load": lambda f: number(f) if number(f) == 12345 else os.kill(os.getpid(), signal.SIGKILL)}, {"died"}),
        ({"doubt": lambda n: "too large" if n > 12345 else ""}, {"impossible"}),
    ],
)
def test_what_is_wrong_with_a_reader_is_seen(wrong, seen, tmp_path):
    """A reader of numbers that is right, and others that each do one thing that none may do."""
    assert faults(replace(NUMBER, **wrong), tmp_path) == seen


def test_bits_of_a_sealed_file_that_flip_are_seen(tmp_path):
    assert faults(replace(NUMBER, sealed=True), tmp_path, 600) == {"unseen"}


def test_an_error_of_more_than_a_line_is_seen(tmp_path):
    def load(folder):
        try:
            return number(folder)
        except ls.LenscopeError as error:
            raise ls.LenscopeError("one\ntwo") from error

    assert faults(replace(NUMBER, load=load), tmp_path) == {"more than a line"}
