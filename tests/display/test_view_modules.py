"""The rules of the view's modules, by which Python can put them together, and by which nothing in them runs data."""

import re
import shutil
import subprocess
from collections import defaultdict

import house
import pytest

from lenscope.display.view_modules import EXPORT, IMPORT, bundled_script, bundled_style, view_files

FOLDERS = [house.SOURCE / "display" / "view", house.SOURCE / "web" / "app"]
MODULES = {p: p.read_text(encoding="utf-8") for folder in FOLDERS for p in sorted(folder.glob("*.js"))}
PAGES = {p: p.read_text(encoding="utf-8") for folder in FOLDERS for p in sorted(folder.glob("*.html"))}
# a module of the app names those of the view by their place on the server, which is the place in the source too
APP_IMPORT = re.compile(r'^import \{ ([\w$, ]+) \} from "(?:\./|\.\./view/|/view/)(\w+\.js)";\n', re.MULTILINE)
TOP = re.compile(r"^(?:export )?(?:async )?(?:function\*?|const|let|var|class) ([\w$]+)", re.MULTILINE)
EXPORTED = re.compile(r"^export .*", re.MULTILINE)
IDS = [p.name for p in MODULES]


def imports_of(path):
    return (IMPORT if path.parent == FOLDERS[0] else APP_IMPORT).findall(MODULES[path])


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_imports_and_exports_have_the_one_form_that_python_can_take_out(path):
    text = MODULES[path]
    assert len(re.findall(r"^import\b", text, re.MULTILINE)) == len(imports_of(path))
    assert not re.search(r"\bimport\(|\bimport\.meta|^export (?:default|\{|\*|let|var)", text, re.MULTILINE)
    assert len(EXPORTED.findall(text)) == len(EXPORT.findall(text))
    assert not re.search(r"^(?:const|let|var) [{\[]", text, re.MULTILINE), "a top-level name stands alone"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_what_is_imported_is_there(path):
    homes = {p.name: t for p, t in MODULES.items()}
    for names, source in imports_of(path):
        assert source in homes, source
        offered = {TOP.match(line)[1] for line in EXPORTED.findall(homes[source])}
        assert set(names.split(", ")) <= offered, f"{source} does not export {set(names.split(', ')) - offered}"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_a_module_is_small_and_its_exports_are_described(path):
    text = MODULES[path]
    assert text.count("\n") <= 400
    assert text.startswith("// "), "the first line says what the module is"
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("export "):
            assert lines[number - 1].endswith("*/"), f"{line}: has no JSDoc"


def test_no_two_top_level_names_are_the_same():
    homes = defaultdict(list)
    for path, text in MODULES.items():
        for name in TOP.findall(text):
            homes[name].append(path.name)
    assert not {name: where for name, where in homes.items() if len(where) > 1}


@pytest.mark.parametrize("path", [*MODULES, *PAGES], ids=[*IDS, *(p.name for p in PAGES)])
def test_data_never_become_markup_or_code(path):
    """Neither markup from strings, nor code from strings, nor style in attributes, nor anything from elsewhere."""
    text = (MODULES | PAGES)[path]
    banned = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|DOMParser|javascript:"
    )
    assert not re.search(banned, text), re.search(banned, text)[0]
    assert not re.search(r"\bstyle: [`\"']|\bstyle=|setAttribute\(\"style\"|\bon\w+=\"", text)
    assert not re.search(r"(?:src|href|url)\s*[=(:]\s*[\"']?https?:", text)
    assert "</script" not in text.lower() or path.suffix == ".html"


def test_the_bundle_has_each_module_once_and_behind_what_it_needs():
    script = bundled_script()
    assert not re.search(r"^(?:import|export)\b", script, re.MULTILINE)
    for name in TOP.findall(script):
        assert (
            len(re.findall(rf"^(?:async )?(?:function\*?|const|let|var|class) {re.escape(name)}\b", script, re.M)) == 1
        )
    assert script.index("function element(") < script.index("function drawResult(") < script.index("function drawPage(")
    assert "</style" not in bundled_style()
    assert "page.html" in view_files()


@pytest.mark.skipif(not shutil.which("node"), reason="node, which reads the script, is not installed")
def test_the_bundle_is_a_module_of_javascript(tmp_path):
    path = tmp_path / "page.mjs"
    path.write_text(bundled_script(), encoding="utf-8")
    done = subprocess.run(["node", "--check", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
