"""The laws of the house: small files that say what they know, one name a thing, and who may print, draw, write."""

import ast
import re
from collections import defaultdict

import house
import pytest

import lenscope

MODULES = list(house.files())
FACES = [m for m in MODULES if house.is_face(m)]
# these hold no more than their name says
PLAIN = ("_version", "errors")
# no names for values: each says nothing of what it holds
EMPTY = {"told", "found", "made", "some", "kept", "said"}
# what writes a file, as calls: a name, or an attribute
WRITES = {"write_text", "write_bytes", "savefig", "save_file", "write_table", "ParquetWriter", "to_parquet", "to_csv"}
# outside of files/, and without files.writing: where, and why
WRITERS = {
    "models.cached_folders": "the seal of a folder in the cache, which is written last, when the folder is complete",
    "models.loading": "the cache of built-in models, in a temporary folder that is renamed when it is complete",
    "text.documents": "a temporary copy of a compressed file, which no one else reads",
    "fitting.pretraining": "checkpoints in transformers' own format, in a temporary folder that is renamed",
    "cli.streams": "the null device, in place of a standard stream that is closed",
}


def calls(module):
    """The names of what a module calls, and the calls."""
    for node in ast.walk(house.tree(module)):
        if isinstance(node, ast.Call):
            target = node.func
            yield target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", ""), node


def libraries(module):
    """What a module imports from elsewhere, dotted."""
    for node in ast.walk(house.tree(module)):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{a.name}" for a in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names)


@pytest.mark.parametrize("module", [m for m in MODULES if m not in FACES])
def test_a_file_is_small_and_says_what_it_knows(module):
    text = house.files()[module].read_text()
    assert text.count("\n") <= 400
    docstring = ast.get_docstring(house.tree(module)) or ""
    assert docstring.partition("\n")[0].endswith((".", ":"))
    assert module in PLAIN or ("Knows:" in docstring and re.search(r"Does(?: not|n't) know:", docstring)), docstring


@pytest.mark.parametrize("module", [m for m in FACES if m not in ("__init__", "experiments")])
def test_a_face_is_short_and_only_hands_on(module):
    assert house.files()[module].read_text().count("\n") <= 40
    for node in house.tree(module).body:
        assert isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign), ast.unparse(node)


def test_no_class_or_function_has_the_name_of_another():
    homes = defaultdict(set)
    for module in MODULES:
        for node in house.tree(module).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name not in ("__getattr__", "__dir__"):
                homes[node.name].add(module)
    twice = {name: sorted(where) for name, where in homes.items() if len(where) > 1}
    assert not twice, "\n".join(f"{name}: {', '.join(where)}" for name, where in sorted(twice.items()))


@pytest.mark.parametrize("module", MODULES)
def test_values_say_what_they_hold(module):
    names = []
    for node in ast.walk(house.tree(module)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append((node.id, node.lineno))
        elif isinstance(node, ast.arg | ast.FunctionDef):
            names.append((node.arg if isinstance(node, ast.arg) else node.name, node.lineno))
    assert not [(name, line) for name, line in names if name.strip("_") in EMPTY]


def test_a_file_is_named_once():
    """No two files of a room are twins, as `ablation` and `ablating` were."""
    files = [m for m in MODULES if m not in FACES]
    for module in files:
        name = module.rpartition(".")[2]
        twins = [m for m in files if m != module and house.room_of(m) == house.room_of(module)
                 and m.rpartition(".")[2] in (f"{name}s", f"{name}ing", f"{name.removesuffix('e')}ing")]  # fmt: skip
        assert not twins, f"{module}: {twins}"


def test_only_the_command_line_prints():
    for module in MODULES:
        assert module == "cli.streams" or "print" not in [
            name for name, node in calls(module) if isinstance(node.func, ast.Name)
        ], module
        if house.room_of(module) != "cli":
            assert not [n for n in ast.walk(house.tree(module)) if isinstance(n, ast.Attribute)
                        and ast.unparse(n) in ("sys.stdout", "sys.stderr")], module  # fmt: skip


def test_only_display_draws():
    for module in MODULES:
        if house.room_of(module) != "display":
            assert not [name for name in libraries(module) if name.startswith("matplotlib")], module


def test_only_files_writes():
    """Outside of files/ whatever is written goes through files.writing, so that it is there whole or not at all."""
    alone = set()
    for module in MODULES:
        writes = [
            name
            for name, node in calls(module)
            if name in WRITES
            or (name == "save" and ast.unparse(node.func) == "torch.save")
            or (name == "open" and re.search(r"""['"][wax]b?\+?['"]""", ast.unparse(node)))
        ]
        through = [name for name, _ in house.imports(module) if name.startswith("files.")]
        if writes and house.room_of(module) != "files" and not through:
            alone.add(module)
    assert alone <= set(WRITERS), alone - set(WRITERS)


def test_only_distributed_names_torch_distributed_and_only_kernels_names_triton():
    for module in MODULES:
        text = house.files()[module].read_text()
        for word, room in (("torch.distributed", "distributed"), ("triton", "kernels")):
            assert word not in text or house.room_of(module) == room, f"{module} names {word}"


def test_every_test_lies_in_the_room_of_what_it_tests():
    """tests/ROOM/test_FILE.py tests src/lenscope/ROOM/FILE.py; tests/laws holds what several rooms promise.

    What is no Python lies in a folder of its room: tests/ROOM/test_FOLDER_… tests src/lenscope/ROOM/FOLDER/.
    """
    for path in (house.ROOT / "tests").rglob("test_*.py"):
        parts = path.relative_to(house.ROOT / "tests").with_suffix("").parts
        if parts[0] == "laws":
            continue
        tested = ".".join([*parts[:-1], parts[-1].removeprefix("test_")])
        folder = house.SOURCE.joinpath(*parts[:-1], parts[-1].removeprefix("test_").partition("_")[0])
        assert tested in MODULES or folder.is_dir(), f"{path}: there is no {tested}"


def test_versions_agree():
    changelog = (house.ROOT / "CHANGELOG.md").read_text()
    assert f"## {lenscope.__version__}" in changelog
