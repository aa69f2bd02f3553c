"""The house rules: rooms import upwards only, files stay small, the public names are these."""

import ast
import re
from pathlib import Path

import pytest

import lenscope

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "lenscope"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.name)
def test_files_stay_small_and_say_what_they_know(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    first = ast.get_docstring(ast.parse(text)) or ""
    assert path.name in ("_version.py", "errors.py") or "Knows:" in first


def test_only_the_edges_print():
    for path in SOURCE.rglob("*.py"):
        if path.name != "streams.py":
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), path.name


def test_the_readmes_python_runs(smollm2):
    """The examples of the README, in order, as one program."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    exec("\n".join(blocks), {})


def test_versions_agree():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {lenscope.__version__}" in changelog
