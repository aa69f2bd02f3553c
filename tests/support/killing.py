"""Commands that are killed, again and again, until one ends by itself: it must leave what an unbroken one does.

Every life of a command is a forked process that ends by SIGKILL: after a random time, or right before the n-th change
that Python makes to a file below its folder (open for writing, rename, remove, make and remove a folder).

    python tests/support/killing.py --kills 20                 # of each command, at random times
    python tests/support/killing.py fit --changes              # before every change of a file, once each

Knows: forks, moments, counts. Does not know: what commands do and leave (killed_commands.py).
"""

import argparse
import mmap
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch

from lenscope.cli.main import main

# what Python says before it changes files
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
# seconds that a life may last
PATIENCE = 300.0


@dataclass(frozen=True)
class Command:
    """A command that can be killed: its arguments for a folder, what it leaves there, and what of that must be equal.

    `checkpoint` says whether a killed run left what the next one can go on from; `prepare` makes blocks small and
    checkpoints frequent, in the process of the command.
    """

    name: str
    arguments: Callable[[Path], list[str]]
    result: Callable[[Path], dict[str, Any]]
    checkpoint: Callable[[Path], bool]
    prepare: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Life:
    """One process of a command: its exit status, None where it was killed, how long it was, what it said."""

    status: int | None
    seconds: float
    said: str
    changes: int


@dataclass
class Count:
    """What was seen of a command: kills by what they left, runs that ended by themselves, what differs in them."""

    name: str
    kills: int = 0
    nothing: int = 0
    checkpoint: int = 0
    writing: int = 0
    ended: int = 0
    differing: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        """One line of the table."""
        parts = [self.kills, self.nothing, self.checkpoint, self.writing, self.ended, self.ended - len(self.differing)]
        return " | ".join([self.name, *map(str, parts), f"{self.seconds:.0f}"])


HEAD = "command | kills | before a checkpoint | after one | with a half-written file | runs ended | equal | seconds"


def live(command: Command, folder: Path, *, after: float | None = None, change: int | None = None) -> Life:
    """A command's process, killed after some seconds or before a change of a file, if it has not ended before."""
    log, counter = folder.parent / f"{folder.name}.log", mmap.mmap(-1, 8)
    began = time.monotonic()
    child = os.fork()
    if not child:
        _be(command, folder, log, counter, change)
    limit = began + (PATIENCE if after is None else after)
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() >= limit:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            break
        time.sleep(min(0.002, max(0.0, limit - time.monotonic())))
    seconds, said = time.monotonic() - began, log.read_text() if log.exists() else ""
    if os.WIFSIGNALED(status) and after is None and change is None:
        raise RuntimeError(f"{command.name}: died by signal {os.WTERMSIG(status)} or lasted {seconds:.0f} s: {said}")
    ended = None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return Life(ended, seconds, said, int.from_bytes(counter[:8], "little"))


def _be(command: Command, folder: Path, log: Path, counter: mmap.mmap, change: int | None) -> None:
    """The child: run the command and end with its status."""
    status = 70
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        torch.set_num_threads(1)
        folder.mkdir(exist_ok=True)
        command.prepare()
        below, seen = str(folder), 0

        def hear(event: str, given: tuple[Any, ...]) -> None:
            nonlocal seen
            if event == "open":
                changing = bool((given[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            else:
                changing = event in CHANGES
            if changing and any(isinstance(g, str | os.PathLike) and os.fspath(g).startswith(below) for g in given):
                if seen == change:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1
                counter[:8] = seen.to_bytes(8, "little")

        sys.addaudithook(hear)
        main(command.arguments(folder))
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended_well(command: Command, folder: Path, life: Life) -> None:
    """RuntimeError for a life that ended with an error."""
    if life.status:
        raise RuntimeError(f"{command.name} in {folder}: ended with status {life.status}: {life.said[-3000:]}")


def unbroken(command: Command, place: Path) -> tuple[dict[str, Any], Life]:
    """What a run that nobody kills leaves, and its life."""
    folder = place / f"{command.name}-unbroken"
    life = live(command, folder)
    ended_well(command, folder, life)
    result = command.result(folder)
    shutil.rmtree(folder)
    return result, life


def note(count: Count, command: Command, folder: Path) -> None:
    """Count a kill by what it left."""
    count.kills += 1
    count.writing += any(folder.rglob(".lenscope-*.part*"))
    if command.checkpoint(folder):
        count.checkpoint += 1
    else:
        count.nothing += 1


def compare(count: Count, command: Command, folder: Path, whole: dict[str, Any]) -> None:
    """Count a run that ended, and what differs from the unbroken one."""
    count.ended += 1
    result = command.result(folder)
    unlike = sorted(name for name in {*whole, *result} if whole.get(name) != result.get(name))
    left = [p.name for p in folder.rglob(".lenscope-*.part*")]
    if unlike or left:
        shown = [f"{n} {str(whole.get(n))[:100]} ≠ {str(result.get(n))[:100]}" for n in unlike]
        count.differing.append(f"{folder.name}: {', '.join([*shown, *left])}")
    else:
        shutil.rmtree(folder)


def at_random_times(command: Command, place: Path, kills: int, draw: Random, share: float = 0.9) -> Count:
    """Runs that are killed at random times, each until it ends by itself, until there were so many kills.

    Moments are drawn from the first `share` of the seconds that an unbroken run takes.
    """
    count, began = Count(command.name), time.monotonic()
    whole, life = unbroken(command, place)
    while count.kills < kills:
        folder = place / f"{command.name}-{count.ended}"
        while True:
            moment = draw.uniform(0, share * life.seconds) if count.kills < kills else None
            each = live(command, folder, after=moment)
            if each.status is not None:
                break
            note(count, command, folder)
        ended_well(command, folder, each)
        compare(count, command, folder, whole)
    count.seconds = time.monotonic() - began
    return count


def before_changes(command: Command, place: Path, changes: Sequence[int] | None = None) -> Count:
    """Runs that are killed before one change of a file each, of all that an unbroken run makes or those numbers."""
    count, began = Count(f"{command.name}, changes"), time.monotonic()
    whole, life = unbroken(command, place)
    for change in range(life.changes) if changes is None else [n % life.changes for n in changes]:
        folder = place / f"{command.name}-change-{change}"
        if live(command, folder, change=change).status is None:
            note(count, command, folder)
            each = live(command, folder)
            ended_well(command, folder, each)
        compare(count, command, folder, whole)
    count.seconds = time.monotonic() - began
    return count


def tell(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def killed(
    commands: Sequence[Command], place: Path, *, kills: int, changes: Sequence[int] | None, seed: int = 0
) -> list[Count]:
    """The counts of all commands, told as they come; `changes` are numbers of changes, none for all of them."""
    counts = []
    tell(HEAD)
    for command in commands:
        if kills:
            counts.append(at_random_times(command, place, kills, Random(f"{command.name} {seed}")))
            tell(counts[-1].line())
        if changes is None or changes:
            counts.append(before_changes(command, place, changes))
            tell(counts[-1].line())
    return counts


def program() -> int:
    """The command line: exit status 1 where anything differs."""
    import killed_commands

    parser = argparse.ArgumentParser(description="Kill commands until they end, and compare what they leave.")
    parser.add_argument("commands", nargs="*", help="names of killed_commands.py; default: all")
    parser.add_argument("--kills", type=int, default=0, help="kills at random times, of each command")
    parser.add_argument("--changes", nargs="*", type=int, help="also before these changes of files; no number: all")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        commands = killed_commands.commands(Path(place))
        unknown = {*given.commands} - {*commands}
        if unknown:
            raise SystemExit(f"no command {unknown}: there are {[*commands]}")
        chosen = [commands[name] for name in given.commands or commands]
        changes: Sequence[int] | None = () if given.changes is None else given.changes or None
        counts = killed(chosen, Path(place), kills=given.kills, changes=changes, seed=given.seed)
        differing = [line for count in counts for line in count.differing]
    for line in differing:
        tell(line)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(program())
