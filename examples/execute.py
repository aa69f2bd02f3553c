"""Run the notebooks of this folder: write down what their cells show, or compare it with what is written down.

    python examples/execute.py                            # all notebooks: run them, write the outputs into the files
    python examples/execute.py see-a-model-think          # one of them
    python examples/execute.py --check [NAME…]            # run and compare; exit status 1 where something differs

A notebook runs from top to bottom in a kernel of its own and in an empty folder. A cell that fails ends the run. What
is compared is text, as docs/snippets.py compares it: numbers may be off by 2 %, or by what a cell's tag such as
"within 20 %" says; times and sizes are not compared. A cell with the tag "not compared" only has to run. Pages and
pictures have to be there, and pages have to be whole. What libraries write to stderr is left out.
"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "docs"))

import snippets  # noqa: E402

SECONDS = 600  # a cell that takes longer fails
PAGES = 3  # a notebook has at most so many pages of some 200 KB each
UNTOUCHED = "not compared"
# when a result was computed, in the data of a page: the next run would write another time
CREATED = re.compile(r",&quot;created&quot;:&quot;[^&]*&quot;|&quot;created&quot;:&quot;[^&]*&quot;,")


def notebooks(names: Sequence[str] = ()) -> list[Path]:
    """The notebooks of these names, all if none is named. ValueError for one that is not there."""
    there = {path.stem: path for path in sorted(HERE.glob("*.ipynb"))}
    wanted = [Path(name).stem for name in names] or list(there)
    for name in wanted:
        if name not in there:
            raise ValueError(f"notebook {name!r}: there are {', '.join(there)}")
    return [there[name] for name in wanted]


def executed(path: Path) -> Any:
    """A notebook with the outputs of a new run; CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    source = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": source, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        client = NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
        )
        client.execute(env=environment)
    return tidied(notebook)


def code_cells(notebook: Any) -> list[Any]:
    """The cells that run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tidied(notebook: Any) -> Any:
    """The notebook without what differs from run to run, or from one editor to the next, although it shows the same."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
    for cell in code_cells(notebook):
        outputs: list[Any] = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name != "stdout":
                continue
            if output.output_type == "stream" and outputs and outputs[-1].output_type == "stream":
                outputs[-1].text += output.text
            else:
                outputs.append(output)
            data = output.get("data", {})
            if "text/html" in data:
                data["text/html"] = CREATED.sub("", data["text/html"])
        cell.outputs = outputs
    return notebook


def seen(cell: Any) -> tuple[str, list[str]]:
    """What a cell shows: its text, and what else there is, as "page", "picture" or "table"."""
    texts, others = [], []
    for output in cell.outputs:
        if output.output_type == "stream":
            texts.append(output.text)
            continue
        data = output.get("data", {})
        texts.append(data.get("text/plain", "") + "\n")
        rich = data.get("text/html", "")
        if is_page(rich):
            others.append("page")
        elif rich:
            others.append("table")
        if "image/png" in data:
            others.append("picture")
    return snippets.without_escapes("".join(texts)), others


def is_page(rich: str) -> bool:
    """Whether HTML is a whole page in a frame."""
    return rich.startswith("<iframe") and rich.rstrip().endswith("</iframe>") and "&lt;/html&gt;" in rich


def differences(written: Any, again: Any) -> Iterator[str]:
    """Where a new run shows something else than is written in a notebook, cell by cell."""
    for number, (old, new) in enumerate(zip(code_cells(written), code_cells(again), strict=True), 1):
        tags = old.metadata.get("tags", [])
        within = next((float(t.split()[1]) / 100 for t in tags if t.startswith("within ")), 0.02)
        (expected, shown), (printed, others) = seen(old), seen(new)
        head = f"cell {number}, which begins with {old.source.partition(chr(10))[0]!r}"
        if old.execution_count != number:
            yield f"{head}: its outputs are not of one run from top to bottom; run examples/execute.py"
        elif shown != others:
            yield f"{head}: shows {others} where {shown} is written down"
        elif UNTOUCHED not in tags and not snippets.agrees(expected.rstrip().split("\n"), printed, within):
            yield f"{head}: shows\n{printed}\nwhere this is written down:\n{expected}"
    pages = sum(seen(cell)[1].count("page") for cell in code_cells(again))
    if pages > PAGES:
        yield f"shows {pages} pages of some 200 KB; {PAGES} are the most"


def main() -> None:
    """The command line of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="notebooks of this folder; none: all of them")
    parser.add_argument("--check", action="store_true", help="compare with the outputs in the files; write nothing")
    given = parser.parse_args()
    failed = False
    try:
        paths = notebooks(given.names)
    except ValueError as error:
        parser.error(str(error))
    for path in paths:
        written = nbformat.read(path, as_version=4)
        try:
            again = executed(path)
        except CellExecutionError as error:
            print(f"{path.name}: a cell fails\n{error}")
            failed = True
            continue
        if given.check:
            found = list(differences(written, again))
            failed = failed or bool(found)
            for line in found:
                print(f"{path.name}: {line}")
        else:
            nbformat.write(again, path)
    sys.exit(failed)


if __name__ == "__main__":
    main()
