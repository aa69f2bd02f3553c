"""The map is true: the picture is what the code says, every room is in the table, files that pages name are there."""

import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import house
import pytest

import lenscope

DOCS = house.ROOT / "docs"
_spec = importlib.util.spec_from_file_location("docstrings", DOCS / "docstrings.py")
docstrings = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(docstrings)
PAGES = [*(p for p in sorted(DOCS.rglob("*.md")) if p.name != "log.md"), house.ROOT / "README.md"]


def test_the_picture_of_the_house_is_current():
    done = subprocess.run([sys.executable, DOCS / "draw_house.py", "--check"], check=False)
    assert done.returncode == 0, "draw it again: python docs/draw_house.py"


def test_the_tables_of_scale_are_current():
    done = subprocess.run([sys.executable, DOCS / "make_scale.py", "--check"], check=False)
    assert done.returncode == 0, "write them again: python docs/make_scale.py"


def test_the_pages_of_commands_are_what_their_help_says():
    done = subprocess.run([sys.executable, DOCS / "make_commands.py", "--check"], check=False)
    assert done.returncode == 0, "write them again: python docs/make_commands.py"


@pytest.mark.parametrize("room", ["", *lenscope.ROOMS])
def test_every_public_name_is_described_on_the_page_of_its_room(room):
    """Each once: a name of the top level on the page of these, and only linked from the page of its room."""
    text = (DOCS / "reference" / "rooms" / f"{room or 'lenscope'}.md").read_text()
    names = re.findall(r"^\.\. (?:auto|py:)\w+:: lenscope\.([\w.]+)$", text, re.MULTILINE)
    assert len(names) == len(set(names))
    own = {name for name in docstrings.offered(room) if not isinstance(getattr(_room(room), name), ModuleType)}
    described = {name.removeprefix(f"{room}.") for name in names if name.count(".") == bool(room)}
    assert described == (own - {*lenscope.__all__} if room else own)


def _described_names():
    """Every public class and function, and its methods."""
    for room in ["", *lenscope.ROOMS]:
        for name in docstrings.offered(room):
            here = getattr(_room(room), name)
            if inspect.isclass(here) or inspect.isfunction(here):
                yield name, here
            if inspect.isclass(here):
                yield from ((f"{name}.{n}", m) for n, m in vars(here).items() if inspect.isfunction(m) and n[0] != "_")


def test_docstrings_describe_arguments_and_fields_that_are_there():
    long = [n for n, here in _described_names() if "\n" in (inspect.getdoc(here) or "").partition("\n\n")[0]]
    assert not long, "the first line is no sentence of its own"
    for name, here in _described_names():
        text = inspect.getdoc(here) or ""
        sections = dict(re.findall(r"^(Args|Attributes):\n((?:    .*\n?)+)", text, re.MULTILINE))
        there = {"Args": set(inspect.signature(here).parameters) if sections else set()}
        fields = {n for one in getattr(here, "__mro__", ()) for n in getattr(one, "__annotations__", {})}
        there["Attributes"] = fields | set(vars(here)) if inspect.isclass(here) else set()
        for section, lines in sections.items():
            given = set(re.findall(r"^    (\w+):", lines, re.MULTILINE))
            if fields or section == "Args":
                assert given <= there[section], f"{name}: {section} {sorted(given - there[section])}"


def _room(name):
    return getattr(lenscope, name) if name else lenscope


def test_the_table_of_rooms_has_every_room_on_its_floor():
    page = (DOCS / "design.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (`[^|]+`) \|", page, re.MULTILINE)
    table = [(int(floor), name) for floor, names in rows for name in re.findall(r"`(\w+)`", names)]
    assert sorted(table) == sorted((floor, room) for room, floor in house.FLOOR.items() if room != "_version")
    assert [floor for floor, _ in table] == sorted(floor for floor, _ in table)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(house.ROOT)))
def test_files_that_a_page_names_are_there(page):
    places = (house.SOURCE, house.ROOT, house.ROOT / "tests", house.ROOT / "tests" / "support")
    names = re.findall(r"`((?:\w+/)+\w+\.py)\b", page.read_text())
    assert not [name for name in names if not any((place / name).exists() for place in places)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(house.ROOT)))
def test_names_that_a_page_gives_are_there(page):
    """As `lenscope.patchscopes.methods.named_target` and `ls.tasks.mentions`: rooms, modules and what they hold."""
    for name in re.findall(r"\b(?:lenscope|ls)((?:\.\w+)+)", page.read_text()):
        here: Any = lenscope
        for part in name[1:].split("."):
            if part in ("com", "json", "cli", "md"):
                break
            if not hasattr(here, part) and isinstance(here, ModuleType):
                import_module(f"{here.__name__}.{part}")
            here = getattr(here, part)


def test_examples_of_commands_are_command_lines():
    """Each example of docs/commands/ is taken by its command: options are there, values are of their kind."""
    from typer.main import get_command

    from lenscope.cli.main import command_line

    lines = [
        line
        for page in sorted((DOCS / "commands").glob("*.md"))
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
        if "lenscope " in line
    ]
    assert len(lines) > 20
    for line in lines:
        words = shlex.split(line, comments=True)
        words = words[words.index("lenscope") + 1 :]
        words = words[: next((n for n, w in enumerate(words) if w in ("|", ">", "<")), len(words))]
        command = get_command(command_line())
        context = command.make_context("lenscope", list(words), resilient_parsing=True)
        while hasattr(command, "resolve_command"):
            name, command, words = command.resolve_command(context, words)
            assert command is not None, line
            context = command.make_context(
                name, list(words), parent=context, resilient_parsing=hasattr(command, "resolve_command")
            )
