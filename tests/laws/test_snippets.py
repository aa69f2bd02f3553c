"""Every snippet of README and docs runs on the real model and prints what the page says; the comparison can fail."""

import importlib.util
import re
import sys
from pathlib import Path

import house
import pytest

_spec = importlib.util.spec_from_file_location("snippets", house.ROOT / "docs" / "snippets.py")
snippets = importlib.util.module_from_spec(_spec)
sys.modules["snippets"] = snippets
_spec.loader.exec_module(snippets)

PAGES = [
    page
    for page in [house.ROOT / "README.md", *sorted((house.ROOT / "docs").rglob("*.md"))]
    if "_build" not in page.parts
    and re.search(r"^\s*```(python|console|sh|bash|shell)\b", page.read_text(encoding="utf-8"), re.MULTILINE)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(house.ROOT)))
def test_a_page_prints_what_it_says(page, smollm2):
    differences, _ = snippets.run_page(page)
    assert not differences, "\n\n".join(map(str, differences))


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        (["loss 0.512"], "loss 0.519\n"),
        (["loss 0.512"], "loss   0.510"),
        (["12 ·Paris   77%"], "12 ·Paris 76%"),
        (["fitted in 12 s, 3.1 GB"], "fitted in 340 s, 1.0 GB"),
        (["a", "…", "z"], "a\nb\nc\nz"),
        (["a", "…", "z"], "a\nz"),
        (["hash … done"], "hash 3f0a done"),
        (["──────────"], "────"),
        ([], ""),
        (["[.31, .42]"], "[.31, .42]"),
        (["1,234 rows"], "1,236 rows"),
        (["-0.00"], "0.00"),
    ],
)
def test_outputs_that_agree(expected, printed):
    assert snippets.agrees(expected, printed)


@pytest.mark.parametrize(
    ("expected", "printed"),
    [
        (["loss 0.512"], "loss 0.53"),
        (["loss 0.512"], "loss nan"),
        (["layer 12"], "layer 13"),
        (["12 ·Paris   77%"], "12 ·Rome 77%"),
        (["12 ·Paris   77%"], "12 ·Paris 71%"),
        (["a"], "a\nb"),
        (["a", "b"], "a"),
        (["a", "…", "z"], "a\nb"),
        ([], "something"),
        (["1,234 rows"], "1,334 rows"),
        (["rows 100"], "rows "),
        (["smollm2-135m"], "smollm2-136m"),
        (["a1 v2"], "a1 v3"),
    ],
)
def test_outputs_that_do_not_agree(expected, printed):
    assert not snippets.agrees(expected, printed)


def test_a_wider_tolerance_is_asked_for():
    assert not snippets.agrees(["KL 1.00"], "KL 1.15")
    assert snippets.agrees(["KL 1.00"], "KL 1.15", within=0.2)
    assert not snippets.agrees(["KL 1.00"], "KL 1.35", within=0.2)


def page(tmp_path, text):
    path = tmp_path / "page.md"
    path.write_text(text)
    return snippets.run_page(path)[0]


def test_a_page_whose_output_is_wrong_or_whose_code_fails_is_seen(tmp_path):
    assert not page(tmp_path, "```python\nx = 3\nx + 1\n```\n\n```text\n4\n```\n")
    assert page(tmp_path, "```python\n3 + 2\n```\n\n```text\n4\n```\n")
    assert "raises ZeroDivisionError" in str(page(tmp_path, "```python\n1 / 0\n```\n")[0])
    assert page(tmp_path, "```console\n$ echo a\nb\n```\n")
    assert not page(tmp_path, "```console\n$ echo a \\\n>   b\na b\n$ echo c\n```\n")
    assert page(tmp_path, "```console\n$ lenscope lens hello --layers 99 --top-k x\n5\n```\n")
    assert "status 3" in str(page(tmp_path, "```console\n$ exit 3\n```\n")[0])
    assert not page(tmp_path, "<!-- not run: it never ends -->\n```console\n$ exit 3\n```\n")


def test_a_page_shows_an_error_that_is_meant(tmp_path):
    assert not page(tmp_path, "```python\n1 / 0\n```\n\n```text\nZeroDivisionError: division by zero\n```\n")


def test_commands_that_would_not_run_are_refused(tmp_path):
    with pytest.raises(ValueError, match="say why"):
        snippets.blocks("```sh\nlenscope lens\n```\n")
    with pytest.raises(ValueError, match="begins with a command"):
        snippets.blocks("```console\nlenscope lens\n```\n")


def test_outputs_are_written_down(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("```console\n$ echo a\n?\n$ echo b\n?\n```\n\ntext\n\n```python\n1 + 1\n```\n\n```text\n?\n```\n")
    snippets.write_outputs(path, snippets.run_page(path)[0])
    assert path.read_text() == (
        "```console\n$ echo a\na\n$ echo b\nb\n```\n\ntext\n\n```python\n1 + 1\n```\n\n```text\n2\n```\n"
    )
    assert not snippets.run_page(path)[0]


def test_a_trained_model_is_not_handed_to_the_next_page(smollm2):
    with snippets.models_loaded_once():
        from lenscope.models import loading

        first = loading.load("smollm2-135m")
        assert loading.load("smollm2-135m") is first
        weight = next(first.model.parameters())
        weight.data.mul_(1.5)
        assert loading.load("smollm2-135m") is not first
    assert Path.cwd().exists()
