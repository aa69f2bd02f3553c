"""Docstrings as pages: what they call by name becomes a link, and signatures stand as they are written in the source.

Knows: how docstrings of this project are written (plain prose, single backticks, sections of names), which names are
public and where each is described. Does not know: which page has which name (reference/rooms/ says so).
"""

import ast
import inspect
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from sphinx.pycode import ModuleAnalyzer
from sphinx.util.nodes import make_refnode

import lenscope

# what stands in signatures for something longer, and the page that has a heading for each
TYPES_PAGE = "reference/rooms/types"
TYPES = frozenset(re.findall(r"^## (\w+)$", (Path(__file__).parent / f"{TYPES_PAGE}.md").read_text(), re.MULTILINE))
# classes that a function or a method gives: nobody calls them
GIVEN = {
    "Comparison", "Continuation", "Corpus", "Detector", "Evaluation", "ExplanationRow", "Grid", "HiddenStates", "LM",
    "PreparedSweep", "Prompt", "Report", "SteeredTexts", "StreamedExplanation", "Sweep", "SweepSpec",
    "WrittenTrajectory",
}  # fmt: skip
# sections of a docstring that describe names: their heading on a page
SECTIONS = {"Args:": "Parameters", "Attributes:": "Attributes"}
# what the mechanics call, and no user
HIDDEN = {
    "page_data", "file_kind", "file_mark", "in_lists", "units_of_measures",
    "Edit.apply", "Edit.op", "Edit.require_finite", "Edit.targets",
    "Patchscope.plan", "Patchscope.require_room", "Patchscope.without_patch", "Target.fixed",
}  # fmt: skip


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this."""
    ModuleAnalyzer.analyze = _without_overloads(ModuleAnalyzer.analyze)
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-skip-member", _skipped)
    app.connect("missing-reference", _reference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def offered(room: str) -> list[str]:
    """The public names of a room, or of the top level where it is ""."""
    if not room:
        return list(lenscope.__all__)
    module = import_module(f"lenscope.{room}")
    if hasattr(module, "__all__"):
        return list(module.__all__)
    face = ast.parse(Path(str(module.__file__)).read_text())
    names = set()
    for statement in face.body:
        if isinstance(statement, ast.ImportFrom) and str(statement.module).startswith("lenscope"):
            names |= {alias.asname or alias.name for alias in statement.names}
        elif isinstance(statement, ast.Assign):
            names |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
        elif isinstance(statement, ast.FunctionDef):
            names.add(statement.name)
    return sorted(names - {"LenscopeError"})


@cache
def described() -> dict[str, str]:
    """Every public name by its last part, as `Lens`, and where it is described: `lenscope.Lens`."""
    places = {
        name: f"lenscope.{room}.{name}"
        for room in lenscope.ROOMS
        for name in offered(room)
        if not inspect.ismodule(getattr(getattr(lenscope, room), name))
    }
    return {**places, **{name: f"lenscope.{name}" for name in offered("")}}


def as_rst(lines: list[str], owner: str = "") -> list[str]:
    """A docstring in the markup that Sphinx reads; `owner` is the class whose methods are called by name alone."""
    out: list[str] = []
    section = ""
    for line in lines:
        text = line.strip()
        if text in SECTIONS and not line.startswith(" "):
            section = SECTIONS[text]
            out += ["", f".. rubric:: {section}", ""]
        elif section and line.startswith("    "):
            out.append(_described_name(line[4:], owner))
        elif text.startswith("|") and text.endswith("|"):
            out += _table_row(text, lines, line, owner)
        else:
            section = section if not text else ""
            out.append(_prose(line, owner))
    return out


def _described_name(line: str, owner: str) -> str:
    """A line of a section: a name and what it is, or how that goes on."""
    name, colon, rest = line.partition(":")
    if line.startswith(" ") or not colon:
        return "  " + _prose(line.strip(), owner)
    return f"* ``{name}``: {_prose(rest.strip(), owner)}"


def _table_row(text: str, lines: list[str], line: str, owner: str) -> list[str]:
    """A row of a Markdown table; before the first one what makes it a table."""
    at = lines.index(line)
    if set(text) <= set("|-: "):
        return []
    first = at == 0 or not lines[at - 1].strip().startswith("|")
    cells = [_prose(cell.strip(), owner) for cell in re.split(r"(?<!\\)\|", text[1:-1])]
    row = [f"   {'*' if not n else ' '} - {cell}" for n, cell in enumerate(cells)]
    return ["", ".. list-table::", "   :header-rows: 1", "", *row] if first else row


def _prose(line: str, owner: str) -> str:
    """A line of prose: nothing in it is markup but what stands between single backticks."""
    parts = re.split(r"`([^`]+)`", line)
    return "".join(
        _code(part, owner) if n % 2 else re.sub(r"([\\*_|`])", r"\\\1", part) for n, part in enumerate(parts)
    )


def _code(text: str, owner: str) -> str:
    place = place_of(text, owner)
    # a letter may follow, as in `Edit`s
    return f"\\ :py:obj:`{text} <{place}>`\\ " if place else f"\\ ``{text}``\\ "


def place_of(text: str, owner: str = "") -> str | None:
    """Where a name that a docstring gives is described, as `lenscope.Lens.trajectory`; None for any other word."""
    name = re.sub(r"^(lenscope|ls)\.", "", text)
    first, _, rest = name.partition(".")
    if owner and hasattr_static(owner, name):
        return f"{owner}.{name}" if _has(owner, name) else None
    room = first if first in lenscope.ROOMS else ""
    if room:
        first, _, rest = rest.partition(".")
    # a small word such as `rank` or `page` is meant only where its room or the top level is
    place = described().get(first)
    if place is None or (first.islower() and not room and first not in lenscope.__all__):
        return None
    return place if not rest else f"{place}.{rest}" if _has(place, rest) else None


def _at(place: str) -> Any:
    here: Any = lenscope
    for part in place.split(".")[1:]:
        here = getattr(here, part)
    return here


@cache
def hasattr_static(place: str, member: str) -> bool:
    """Whether a class has a field, a method or a property of this name."""
    here = _at(place)
    fields = [name for one in getattr(here, "__mro__", ()) for name in getattr(one, "__annotations__", {})]
    return member in fields or inspect.getattr_static(here, member, None) is not None


@cache
def _has(place: str, member: str) -> bool:
    """Whether a class has a method or property of this name that its pages describe."""
    here = _at(place)
    value = inspect.getattr_static(here, member, None) if inspect.isclass(here) and member.isidentifier() else None
    return isinstance(value, property | staticmethod | classmethod) or inspect.isfunction(value)


def _skipped(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Whether a member stays out of the pages; None leaves that to Sphinx."""
    owner = getattr(obj, "__qualname__", "").rpartition(".")[0]
    return True if name in HIDDEN or f"{owner}.{name}" in HIDDEN or (name == "op" and owner == "") else None


def _docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    owner = name if what == "class" else name.rpartition(".")[0] if what in ("method", "property") else ""
    if what == "class" and obj.__name__ in GIVEN and "Args:" in lines:
        del lines[lines.index("Args:") :]
    lines[:] = as_rst(lines, owner)


# -- signatures


def _signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """The signature as it is written, where the source has one."""
    if what == "class":
        if issubclass(obj, Exception) or obj.__name__ in GIVEN:
            return "", None
        init = obj.__dict__.get("__init__")
        if init is not None and "__dataclass_fields__" not in obj.__dict__:
            return written_signature(init)[0] or signature, None
        fields = written_fields(obj)
        return (f"({', '.join(fields)})" if fields else signature), None
    plain = inspect.unwrap(getattr(obj, "__func__", obj)) if callable(obj) or hasattr(obj, "__func__") else obj
    if not inspect.isfunction(plain):
        return signature, returned
    arguments, result = written_signature(plain)
    return arguments or signature, result or returned


def _without_overloads(analyze: Any) -> Any:
    """Overloads stand as one signature, which `written_signature` gives; that a class is final is no news to users."""

    def analyzed(self: ModuleAnalyzer) -> None:
        analyze(self)
        self.overloads = {}
        self.finals = []

    return analyzed


def written_signature(function: Any) -> tuple[str | None, str | None]:
    """The arguments of a function and what it returns, as the source has them; of overloads, all that they take."""
    nodes = _nodes(function)
    if not nodes or not isinstance(nodes[-1], ast.FunctionDef):
        return None, None
    node = nodes[-1]
    arguments = node.args
    for argument in (*arguments.args, *arguments.kwonlyargs):
        if len(nodes) > 1 and argument.annotation is not None:
            ways = [
                a.annotation for n in nodes[:-1] for a in (*n.args.args, *n.args.kwonlyargs) if a.arg == argument.arg
            ]
            argument.annotation = _either([w for w in ways if w]) or argument.annotation
    if len(nodes) > 1:
        node.returns = _either([n.returns for n in nodes[:-1]])
    listed = [*arguments.posonlyargs, *arguments.args]
    if listed and listed[0].arg in ("self", "cls"):
        (arguments.posonlyargs or arguments.args).pop(0)
    result = ast.unparse(node.returns).strip("'") if node.returns else None
    return f"({_readable(ast.unparse(arguments))})", result


def written_fields(owner: type) -> list[str]:
    """The fields of a dataclass or named tuple with their types and defaults, as the source has them."""
    fields: dict[str, str] = {}
    for one in reversed(owner.__mro__):
        nodes = _nodes(one) if one.__module__.startswith("lenscope") else []
        for statement in nodes[-1].body if nodes else ():
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = ast.unparse(statement.annotation)
                if statement.target.id.startswith("_") or text.startswith("ClassVar"):
                    continue
                value = f" = {ast.unparse(statement.value)}" if statement.value else ""
                default = re.search(r"default(_factory)?=([^,)]+)", value) if "field(" in value else None
                if "field(" in value:
                    value = f" = {default[2]}{'()' if default[1] else ''}" if default else ""
                fields[statement.target.id] = f"{statement.target.id}: {_readable(text)}{value}"
    return list(fields.values())


def _readable(text: str) -> str:
    """Annotations as a reader wants them: without quotes around names that are not imported at run time."""
    return re.sub(r"(?<=: )'([\w\[\], |.]+)'|(?<=-> )'([\w\[\], |.]+)'", lambda m: m[1] or m[2], text)


@cache
def _tree(path: str) -> ast.Module:
    return ast.parse(Path(path).read_text())


def _either(annotations: list[Any]) -> Any:
    """Annotations as one: a union of those that differ."""
    texts = dict.fromkeys(part for a in annotations for part in ast.unparse(a).split(" | "))
    return ast.parse(" | ".join(texts), mode="eval").body if texts else None


def _nodes(obj: Any) -> list[Any]:
    """A class or function as it stands in its file, its overloads before it: copies, which may be changed."""
    try:
        path = inspect.getsourcefile(obj)
    except TypeError:
        return []
    if path is None or "lenscope" not in path:
        return []
    here: list[Any] = [_tree(path)]
    for part in obj.__qualname__.split("."):
        here = [n for n in here[-1].body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == part]
        if not here:
            return []
    return [ast.parse(ast.unparse(n)).body[0] for n in here]


def _reference(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """A name in a signature: linked where it is described, else as it stands: another package's, or of no interest."""
    if node.get("refdomain") != "py" or node["reftype"] not in ("class", "exc"):
        return None
    name = node["reftarget"].rpartition(".")[2]
    if name in TYPES:
        return make_refnode(app.builder, node["refdoc"], TYPES_PAGE, name.lower(), [contnode], name)
    there = env.get_domain("py").objects.get(described().get(name, ""))
    return make_refnode(app.builder, node["refdoc"], there.docname, there.node_id, [contnode]) if there else contnode
