"""The house as its own imports show it: which file imports which, and the table of floors.

Knows: src/lenscope, read as syntax trees. Does not know: what any of it does.
"""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "lenscope"

# from the ground up; a room imports from lower floors only, and rooms of one floor do not know each other
FLOORS = (
    ("errors", "contents", "visible_text", "_version"),
    ("files", "statistics"),
    ("display", "models"),
    ("measures", "mappings", "distributed"),
    ("engine",),
    ("text", "patchscopes"),
    ("lenses", "fitting", "verbalisers"),
    ("interventions", "directions", "tasks", "planning"),
    ("detection", "sweeps", "web"),
    ("saved_results", "experiments"),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS, 1) for room in rooms}
# they import by name, when a public name is first asked for
DOORS = ("__init__", "_names_of_0_1_0")


@cache
def files() -> dict[str, Path]:
    """Every module, dotted below lenscope, and its file; a face is named after its room."""
    return {dotted(p): p for p in sorted(SOURCE.rglob("*.py"))}


def dotted(path: Path) -> str:
    """The name of a module below lenscope."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


@cache
def tree(module: str) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(files()[module].read_text())


def room_of(module: str) -> str:
    """The room of a module, or itself where it lies in none."""
    return module.partition(".")[0]


def is_face(module: str) -> bool:
    """Whether a module is the `__init__` of a room."""
    return files()[module].name == "__init__.py"


@cache
def imports(module: str) -> tuple[tuple[str, int], ...]:
    """What a module imports of lenscope, also within functions and for types alone: modules, and the lines where."""
    seen = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "lenscope":
            base = (node.module or "").partition(".")[2]
            for alias in node.names:
                inner = f"{base}.{alias.name}".strip(".")
                seen.append((inner if inner in files() else base or "__init__", node.lineno))
        elif isinstance(node, ast.Import):
            seen += [(a.name.partition(".")[2], node.lineno) for a in node.names if a.name.startswith("lenscope.")]
    return tuple(seen)
