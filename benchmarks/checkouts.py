"""The same work timed with the lenscope of two checkouts: what holds a change of the code to the speed before it.

Knows: which checkout a child process imports, and how pairs of processes are compared. Does not know: the work.
"""

import argparse
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import timing

SOURCE = timing.HERE.parent / "src"  # this checkout's lenscope
COLUMNS: timing.Columns = {
    "work": ("", 28, ""),
    "new_s": ("new s", 9, ".3f"),
    "old_s": ("old s", 9, ".3f"),
    "ratio": ("new/old [half of the pairs]", 29, ".3f"),
    "new_mb": ("new MB", 9, ".0f"),
    "old_mb": ("old MB", 9, ".0f"),
    "memory_ratio": ("new/old [half of the pairs]", 29, ".3f"),
}


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add --against to a benchmark's options."""
    parser.add_argument(
        "--against", type=Path, metavar="SRC", help="only compare with the lenscope in another checkout's src"
    )


def compare(
    works: Mapping[str, Sequence[str]], old: Path, repeats: int, variables: Mapping[str, str] | None = None
) -> dict[str, dict]:
    """Run each work in children that import this checkout's lenscope and the one in `old`, in turn; print the ratios.

    A pair is one process of each. Which of the two goes first changes from pair to pair, so that a machine that slows
    down favours neither.
    """
    sides = {"new": SOURCE.resolve(), "old": old.resolve()}
    for source in sides.values():
        if not (source / "lenscope" / "__init__.py").exists():
            raise SystemExit(f"{source}: give the folder that holds lenscope/, a checkout's src")
    print(f"new: {sides['new']}\nold: {sides['old']}\npairs of processes: {repeats}")
    timing.print_heading(COLUMNS)
    rows = {}
    for name, work in works.items():
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        peaks: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(repeats):
            for side in sorted(sides, reverse=turn % 2 == 1):
                took = timing.child(work, {**(variables or {}), "PYTHONPATH": path_with(sides[side])})
                if Path(took["source"]) != sides[side]:
                    raise SystemExit(f"{took['source']} was imported in place of {sides[side]}")
                seconds[side].append(statistics.median(next(iter(took["times"].values()))))
                peaks[side].append(took["peak_mb"])
        rows[name] = {
            **{f"{side}_s": statistics.median(values) for side, values in seconds.items()},
            **{f"{side}_mb": statistics.median(values) for side, values in peaks.items()},
            "ratio": timing.paired(seconds["new"], seconds["old"]),
            # work that fits into memory which is held already has a peak of 0
            "memory_ratio": timing.paired(peaks["new"], peaks["old"]) if min(peaks["old"]) > 0 else None,
        }
        timing.print_row(COLUMNS, {"work": name, **rows[name]})
    return rows


def path_with(source: Path) -> str:
    """PYTHONPATH with `source` before all that it has."""
    return os.pathsep.join([str(source), *filter(None, [os.environ.get("PYTHONPATH")])])
