"""Commands that are killed, damaged, out of room or not alone leave what others leave, or say so in one line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import lenscope as ls

PROGRAM = Path(__file__).parents[1] / "support" / "killing.py"


def test_commands_that_are_killed_end_as_those_that_are_not():
    """A few of each fault; python tests/support/killing.py tries as many as one has time for."""
    path = os.pathsep.join([str(Path(ls.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    # the last change but one: the result is there, and what it came of is not gone yet
    faults = ["--kills", "3", "--changes", "-2", "--full", "1000"]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "fit", "eval", *faults],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    rows = [re.split(r" \| ", line) for line in done.stdout.splitlines()[1:]]
    tried = [("killed at random times", "3"), ("killed before a file changes", "1"), ("disk full", "1")]
    assert [tuple(row[:2]) for row in rows] == [
        (f"{command}, {fault}", count) for command in ("fit", "eval") for fault, count in tried
    ]
    assert all(row[3] == row[4] != "0" for row in rows)
    assert all("1 told in one line" in row[2] for row in rows[2::3])
