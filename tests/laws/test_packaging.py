"""What is packed and how it is named: the wheel's and the source distribution's files, extras, the citation, forms.

Nothing is built here: `python tests/support/built_packages.py` builds, installs and runs both packages.
"""

import re
import subprocess
import tomllib
from pathlib import Path

import house
import pytest
import yaml
from packaging.requirements import Requirement

import lenscope
from lenscope.cli import serve

PROJECT = tomllib.loads((house.ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
# beside Python's own
KINDS = {".py", ".pyi", ".js", ".css", ".html"}


def tracked(below="."):
    """The files of a folder that git has; the test is skipped where this is no checkout."""
    command = ["git", "ls-files", "--", below]
    listed = subprocess.run(command, cwd=house.ROOT, check=False, capture_output=True, text=True).stdout
    if not listed:
        pytest.skip("this is no checkout of git")
    return [Path(name) for name in listed.splitlines() if (house.ROOT / name).is_file()]


def test_the_wheel_holds_the_package_and_what_it_shows():
    build = PROJECT["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"] == {"packages": ["src/lenscope"]}
    files = tracked("src")
    assert {p.parts[:2] for p in files} == {("src", "lenscope")}
    assert {p.suffix for p in files if p.name != "py.typed"} <= KINDS
    for name in ("py.typed", "__init__.pyi", "display/view/page.html", "web/app/index.html"):
        assert house.SOURCE / name in [house.ROOT / p for p in files]
    # 1 MB as it is packed; a model or a picture would be more
    assert sum((house.ROOT / p).stat().st_size for p in files) < 6e6


def test_the_source_distribution_holds_what_builds_and_tests_it():
    packed = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"]
    # hatchling adds README and LICENSE, which the metadata names, and .gitignore
    apart = {".ci", ".gitattributes", ".gitignore", "LICENSE", "README.md", "pyproject.toml"}
    assert {p.parts[0] for p in tracked()} - apart <= set(packed)
    assert {"src", "tests", "docs", "Makefile", "constraints.txt"} <= set(packed)


def test_an_extra_is_named_by_what_it_brings():
    assert EXTRAS.keys() == {"serve", "hub", "pandas", "ray", "peft", "all", "docs", "dev"}
    assert EXTRAS["all"] == ["lenscope[serve,hub,pandas,ray,peft]"]
    needs = {name: {Requirement(one).name for one in EXTRAS[name]} for name in ("serve", "hub", "pandas", "ray")}
    core = {Requirement(one).name for one in PROJECT["project"]["dependencies"]}
    assert needs["serve"] == set(serve.NEEDED) - core
    assert (needs["hub"], needs["pandas"], needs["ray"]) == ({"datasets"}, {"pandas"}, {"ray"})
    assert not core & set.union(*needs.values())


def test_messages_name_extras_that_there_are():
    for module, path in house.files().items():
        for name in re.findall(r"lenscope\[([\w,]+)\]", path.read_text()):
            assert set(name.split(",")) <= EXTRAS.keys(), module


def test_versions_are_pinned_within_what_is_required():
    pinned = dict(
        line.split("==") for line in (house.ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    every = [PROJECT["project"]["dependencies"], *EXTRAS.values()]
    for required in (Requirement(one) for group in every for one in group):
        if required.name in pinned:
            assert required.specifier.contains(pinned[required.name]), required


def test_the_citation_is_current():
    cited = yaml.safe_load((house.ROOT / "CITATION.cff").read_text())
    assert (cited["cff-version"], cited["type"], cited["title"]) == ("1.2.0", "software", "lenscope")
    assert cited["version"] == lenscope.__version__
    assert cited["license"] == PROJECT["project"]["license"]
    assert cited["authors"] == PROJECT["project"]["authors"]
    assert cited["message"]


@pytest.mark.parametrize(
    "form", sorted((house.ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda p: p.stem
)
def test_a_form_asks_what_is_needed(form):
    asked = yaml.safe_load(form.read_text())
    assert asked["name"]
    assert asked["description"]
    questions = [part for part in asked["body"] if part["type"] != "markdown"]
    ids = [part["id"] for part in questions]
    assert len(ids) == len(set(ids))
    assert all(part["attributes"]["label"] for part in questions)
    if form.stem == "bug_report":
        assert {"check", "version", "platform", "command", "expected"} <= set(ids)
