"""Several lenses of one command: which they are, what each is called, and how their trajectories are shown and saved.

Knows: names of lenses on the command line, tables beside each other. Does not know: any command, how trajectories are
computed (lenses/side_by_side.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lenscope.cli.options import name_and_place, open_lens
from lenscope.cli.terminal import Screen, headline, rank_line, show
from lenscope.errors import LenscopeError
from lenscope.visible_text import printable

if TYPE_CHECKING:
    from lenscope.lenses.lens import Lens
    from lenscope.lenses.side_by_side_results import SideBySide
    from lenscope.lenses.trajectory_files import TrajectoryFile
    from lenscope.mappings.mapping import StateMap
    from lenscope.models.language_model import LM

# what names the logit lens among others; a folder of this name is ./logit
LOGIT = "logit"


def lenses_by_name(given: Sequence[str]) -> dict[str, str | None]:
    """The places of several lenses by name, None being the logit lens: NAME=LENS, or the end of the place.

    Two places that end alike are called by as much of their paths as tells them apart. LenscopeError for a lens that is
    given twice, and for a name that two lenses have.
    """
    named = [(LOGIT, None) if text == LOGIT else name_and_place(text) for text in given]
    unnamed = [where for name, where in named if name is None and where is not None]
    places: dict[str, str | None] = {}
    for text, (name, where) in zip(given, named, strict=True):
        called = _shortest_name(str(where), unnamed) if name is None else name
        if not called or where == "":
            raise LenscopeError(f"--lens {text}: give each lens a name and a place, as NAME=LENS")
        if called in places:
            same_place = _path_parts(str(where)) == _path_parts(str(places[called]))
            why = "is given twice; leave one out" if same_place else "give each lens a name of its own, as NAME=LENS"
            raise LenscopeError(f"--lens {text}: {why}")
        places[called] = where
    return places


def opened_lenses(places: dict[str, str | None], lm: "LM", transferred: bool) -> "dict[str, StateMap | None]":
    """The lenses of a command by the names that results call them: what kind of lens each is, and its own name."""
    lenses: dict[str, StateMap | None] = {}
    for name, where in places.items():
        if where is None:
            lenses["logit lens"] = None
            continue
        f = open_lens(where, lm, transferred)
        lenses[f"{f.report.get('lens', 'lens')} {name}"] = f
    return lenses


def lenses_as_named(places: dict[str, str | None], lm: "LM", transferred: bool) -> "dict[str, Lens]":
    """The lenses of a command by the names that the command line gives them."""
    from lenscope.lenses.lens import Lens

    return {n: Lens(lm, None if w is None else open_lens(w, lm, transferred), name=n) for n, w in places.items()}


@contextmanager
def shown_side_by_side(lm: "LM", measure: str, top_k: int) -> Iterator[Callable[["SideBySide"], None]]:
    """Shows each result as tables beside each other, or one above the other, as soon as it is there."""
    console = Screen()
    first = True

    def shown(result: "SideBySide") -> None:
        nonlocal first
        if not first:
            console.print()
        first = False
        console.print(headline(lm, repr(result.text), console.width, f"{len(result.lenses)} lenses"))
        show(console, result.table(measure, top_k=top_k, width=console.width))
        for trajectory in result.trajectories:
            if trajectory.target is not None:
                console.print(rank_line(trajectory, printable(f"{trajectory.lens}: ")))
        console.print()
        show(console, result.agreement_table(width=console.width))

    yield shown


def file_of_several(path: str, single: bool, lenses: int) -> "TrajectoryFile":
    """A file that results of so many lenses go into one by one."""
    from lenscope.lenses.side_by_side_results import side_by_side_metadata, side_by_side_rows
    from lenscope.lenses.trajectory_files import TrajectoryFile

    metadata: Any = partial(side_by_side_metadata, lenses=lenses)
    return TrajectoryFile.open(path, single, side_by_side_rows, metadata)


def _shortest_name(where: str, places: Sequence[str]) -> str:
    """The end of a path, as much of it as no other place ends with; all of it where another is the same."""
    parts = _path_parts(where)
    others = [_path_parts(place) for place in places if _path_parts(place) != parts]
    sizes = range(1, len(parts) + 1)
    shared = next((n for n in sizes if all(parts[-n:] != other[-n:] for other in others)), len(parts))
    return "/".join(parts[-shared:]).replace("//", "/") if parts else ""


def _path_parts(where: str) -> tuple[str, ...]:
    return Path(where).parts or Path(where).resolve().parts[-1:]
