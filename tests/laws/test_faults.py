"""Commands that are killed, damaged, out of room or not alone leave what others leave, or say so in one line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lenscope as ls

PROGRAM = Path(__file__).parents[1] / "support" / "killing.py"


@pytest.mark.parametrize("command", ["fit", "eval"])
def test_a_command_that_is_killed_ends_as_one_that_is_not(command):
    """A few of each fault; python tests/support/killing.py tries as many as one has time for."""
    path = os.pathsep.join([str(Path(ls.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    # before the first and the last changes, and around the middle
    faults = ["--kills", "2", "--changes", "2", "60", "-2", "--full", "1000", "--two"]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), command, *faults],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    rows = [re.split(r" \| ", line) for line in done.stdout.splitlines()[1:]]
    assert [(row[0].partition(", ")[2], row[1]) for row in rows] == [
        ("killed at random times", "2"), ("killed before a file changes", "3"), ("disk full", "1"),
        ("two on one folder", "1"),
    ]  # fmt: skip
    assert all(row[3] == row[4] != "0" for row in rows)
    assert "told in one line" in rows[2][2]
