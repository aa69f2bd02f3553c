"""The house rules: rooms import upwards only, files stay small, the public names are these."""

import ast
import re
from pathlib import Path

import pytest

import lenscope

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lenscope"
# A module imports only from those before it; docs/design.md has what each knows.
ROOMS = [
    *(
        "_version",
        "installed",
        "quizzes",
        "facts",
        "errors",
        "contents",
        "names",
        "untrusted",
        "writing",
        "kinds",
        "pickles",
        "visible",
        "textfiles",
        "inputs",
        "spelling",
        "statistics",
        "probes",
        "selection",
        "blockwise",
        "outliers",
        "measures",
        "prompts",
        "anatomy",
        "context",
        "exclusive",
        "readout",
        "regimes",
        "batches",
        "edits",
        "states",
        "generation",
        "exactness",
        "model",
        "matching",
        "cascade",
        "staircase",
        "plain",
        "prefixes",
        "patched_rows",
        "exact_modes",
        "rows",
        "hub",
        "checkpoints",
        "loading",
        "constituents",
        "identity",
        "likeness",
        "provenance",
        "reduction",
        "tables",
        "griddraw",
        "web",
        "footers",
        "resultfiles",
        "results",
        "keeping",
        "artifacts",
        "directions",
        "mappings",
        "foreign",
        "regression",
        "grids",
        "effects",
        "lens",
        "decoding",
        "continuing",
        "relations",
        "cellscores",
        "features",
        "questions",
        "detection",
        "trials",
        "sources",
        "scoring",
        "patchscope",
        "controls",
        "verbalizing",
        "interventions",
        "softprompt",
        "extraction",
        "methods",
        "document_files",
        "documents",
        "packing",
        "samples",
        "corpus",
        "grouping",
        "tokens",
        "association",
        "distributed",
        "moments",
        "objective",
        "energy",
        "optimizers",
        "pretraining",
        "schedule",
        "training",
        "choosing",
        "tuning",
        "predictions",
        "covariance",
        "finetuning",
        "ablating",
        "causal",
        "ablation",
        "evaluation",
        "saved",
        "evaluating",
        "checks",
        "plots",
        "report",
        "setting",
        "readings",
        "wording",
        "next_token",
        "entities",
        "hopping",
        "multihop",
        "worth",
        "descriptions",
        "prediction",
        "ablations",
        "overthinking",
        "transplant",
        "fidelity",
        "cross_model",
        "attributes",
        "difficulty",
        "injected",
        "injection",
        "drift",
        "alignment",
        "streams",
        "screen",
        "given",
        "terminal",
        "lensing",
        "looking",
        "patching",
        "causing",
        "detecting",
        "experiments",
        "reproducing",
        "demo",
        "commands",
        "cli",
    ),
]


def modules():
    return {
        p.stem if p.stem != "__init__" else p.parent.name: p for p in SOURCE.rglob("*.py") if p.parent == SOURCE or p
    }


@pytest.mark.parametrize("name", ROOMS)
def test_a_module_imports_only_from_rooms_above(name):
    tree = ast.parse(modules()[name].read_text())
    typing_only = {id(n) for b in ast.walk(tree) if isinstance(b, ast.If) and "TYPE_CHECKING" in ast.dump(b.test)
                   for n in ast.walk(b)}  # fmt: skip
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith("lenscope")
            and id(node) not in typing_only
        ):
            rooms = [node.module.split(".")[-1]] if "." in node.module else [a.name for a in node.names]
            for room in rooms:
                assert ROOMS.index(room) < ROOMS.index(name), f"{name} imports {room}"


def test_every_module_has_its_room():
    assert set(modules()) == {*ROOMS, "lenscope"}


def test_the_table_of_rooms_lists_every_room_in_order():
    design = (ROOT / "docs" / "design.md").read_text()
    table = design[design.index("| module | knows") : design.index("Where this differs")]
    rows = (line.split("|")[1] for line in table.splitlines() if line)
    named = [name for row in rows for name in re.findall(r"(?<!\*)`(\w+)(?:\.py|/)`", row)]
    assert named == ROOMS


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.name)
def test_files_stay_small_and_say_what_they_know(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    first = ast.get_docstring(ast.parse(text)) or ""
    assert path.name in ("_version.py", "errors.py") or "Knows:" in first


def test_the_public_names_are_pinned():
    assert lenscope.__all__ == sorted(
        lenscope.__all__, key=lambda n: (not n.isupper(), n.startswith("_") or n[0].islower(), n)
    )
    for name in lenscope.__all__:
        assert getattr(lenscope, name) is not None
    with pytest.raises(AttributeError):
        lenscope.__getattr__("nothing")


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
