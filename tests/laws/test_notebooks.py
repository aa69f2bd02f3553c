"""Every notebook of examples/ runs and shows what is written in it; the comparison can fail; the site gets them."""

import copy
import importlib.util
import os
import subprocess
import sys

import house
import pytest

NOTEBOOKS = sorted((house.ROOT / "examples").glob("*.ipynb"))


def module_at(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def execute():
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    return module_at(house.ROOT / "examples" / "execute.py")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_is_written_in_it(path, execute, smollm2):
    run = [sys.executable, house.ROOT / "examples" / "execute.py", "--check", path.stem]
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    # tests run side by side: threads that wait for each other would take several times as long
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(run, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebooks_file_has_nothing_that_changes(path, execute):
    """Written again it is the same: no times, no names of kernels, outputs of one run; three pages at most."""
    written = execute.nbformat.read(path, as_version=4)
    assert execute.nbformat.writes(execute.tidied(copy.deepcopy(written))) == path.read_text(encoding="utf-8").rstrip(
        "\n"
    )
    assert not list(execute.differences(written, written))
    assert all(cell.outputs != [] or "=" in cell.source for cell in execute.code_cells(written))


def test_what_differs_is_seen(execute):
    new = execute.nbformat.v4

    def notebook(*outputs, tags=(), count=1):
        cell = new.new_code_cell("x", execution_count=count, outputs=list(outputs), metadata={"tags": list(tags)})
        return new.new_notebook(cells=[cell])

    def shown(text, **more):
        return new.new_output("execute_result", {"text/plain": text, **more})

    def printed(text):
        return new.new_output("stream", name="stdout", text=text)

    page = '<iframe srcdoc="&lt;html&gt;&lt;/html&gt;"></iframe>'
    plain = notebook(printed("KL 1.00 nats\n"), shown("\x1b[1mfour\x1b[0m"))
    assert not list(execute.differences(plain, notebook(printed("KL 1.01 nats\n"), shown("four"))))
    assert list(execute.differences(plain, notebook(printed("KL 1.10 nats\n"), shown("four"))))
    assert list(execute.differences(plain, notebook(printed("KL 1.00 nats\n"), shown("five"))))
    assert list(execute.differences(plain, notebook(printed("KL 1.00 nats\n"))))
    wide = notebook(printed("KL 1.00 nats\n"), tags=["within 20 %"])
    assert not list(execute.differences(wide, notebook(printed("KL 1.10 nats\n"))))
    free = notebook(printed("a"), tags=["not compared"])
    assert not list(execute.differences(free, notebook(printed("b"))))
    seen = notebook(shown("a", **{"text/html": page}))
    assert not list(execute.differences(seen, notebook(shown("a", **{"text/html": page.replace("width", "w")}))))
    assert list(execute.differences(seen, notebook(shown("a"))))
    assert list(execute.differences(seen, notebook(shown("a", **{"text/html": page[:20]}))))
    many = notebook(*(shown("a", **{"text/html": page}) for _ in range(4)))
    assert "4 pages" in " ".join(execute.differences(many, many))
    assert "one run" in " ".join(execute.differences(notebook(count=3), notebook(count=1)))


def test_a_name_that_is_no_notebook_is_refused(execute):
    with pytest.raises(ValueError, match="notebook 'no-such'"):
        execute.notebooks(["no-such"])


def test_the_site_gets_the_notebooks(tmp_path):
    site = module_at(house.ROOT / "docs" / "example_notebooks.py")
    there, copies = tmp_path / "examples", tmp_path / "copies"
    there.mkdir()
    copies.mkdir()
    (copies / "gone.ipynb").write_text("{}")
    (there / "a.ipynb").write_text("{1}")
    site.copy_notebooks(there, copies)
    assert {path.name: path.read_text() for path in copies.iterdir()} == {"a.ipynb": "{1}"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_sites_list_of_notebooks_is_whole(path):
    assert f"]({path.name})" in (house.ROOT / "docs" / "examples" / "index.md").read_text(encoding="utf-8")
