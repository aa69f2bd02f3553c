"""The public names: 32 at the top level, the rest by room; those of version 0.1.0 still work."""

import ast
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

import lenscope
from lenscope._names_of_0_1_0 import MOVED

SOURCE = Path(lenscope.__file__).parent
TOP = """
load LM Prompt HiddenStates Edit Continuation check
Lens Trajectory Comparison load_results save evaluate Evaluation transfer
Patchscope Target Grid load_grid sweep
Corpus fit Recipe load_lens export_tuned_lens fit_mapping load_mapping Affine
Estimate Report LenscopeError __version__
"""
# room → its names, in the order of the alphabet
BY_ROOM = {
    room: [a.value for a in statement.value.elts]
    for room in lenscope.ROOMS
    for statement in ast.parse((SOURCE / room / "__init__.py").read_text()).body
    if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "__all__"
}


def stub() -> str:
    """What __init__.pyi holds: the same names as imports, which type checkers follow."""
    lines = [f"from lenscope import {room} as {room}" for room in sorted(lenscope.ROOMS)]
    lines.append("from lenscope._version import __version__ as __version__")
    for module, names in sorted(lenscope.NAMES.items()):
        lines += [f"from lenscope.{module} import {name} as {name}" for name in sorted(names)]
    listed = "".join(f'    "{name}",\n' for name in lenscope.__all__)
    return "\n".join(lines) + f"\n\n__all__ = [\n{listed}]\n"


def test_the_names_at_the_top_are_these():
    assert sorted(TOP.split()) == lenscope.__all__
    assert len(lenscope.__all__) == 32
    for name in lenscope.__all__:
        assert getattr(lenscope, name) is not None


def test_type_checkers_see_the_same_names():
    assert (SOURCE / "__init__.pyi").read_text() == stub(), f"make it again: {sys.executable} {__file__}"


def test_a_room_offers_what_it_says():
    for room, names in BY_ROOM.items():
        module = import_module(f"lenscope.{room}")
        assert names == sorted(names)
        for name in names:
            assert getattr(module, name).__doc__, f"lenscope.{room}.{name} has no docstring"


def test_no_name_is_offered_by_two_rooms():
    offered = [name for names in BY_ROOM.values() for name in names]
    assert len(offered) == len(set(offered))


@pytest.mark.parametrize("name", MOVED)
def test_a_name_of_0_1_0_still_works_and_says_where_it_is(name):
    room, _, new = MOVED[name].partition(".")
    with pytest.warns(DeprecationWarning, match=f"lenscope.{name} is now lenscope.{room}.{new or name}"):
        found = getattr(lenscope, name)
    assert found is getattr(import_module(f"lenscope.{room}"), new or name)
    assert (new or name) in BY_ROOM[room]


def test_a_name_that_never_was_is_an_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        lenscope.nothing  # noqa: B018
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not hasattr(lenscope, "nothing")


def test_help_needs_no_heavy_import():
    """`lenscope --help` answers at once: neither torch nor transformers nor matplotlib is imported for it."""
    program = (
        "import sys, contextlib, io\nfrom lenscope.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main(['--help'])\n"
        "print([m for m in ('torch', 'transformers', 'matplotlib', 'pyarrow', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


if __name__ == "__main__":
    (SOURCE / "__init__.pyi").write_text(stub())
