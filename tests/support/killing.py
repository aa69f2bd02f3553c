"""Commands that are killed, again and again, until one ends by itself: it must leave what an unbroken one does.

Every life of a command is a forked process that ends by SIGKILL: after a random time, or right before the n-th change
that Python makes to a file below its folder (open for writing, rename, remove, make and remove a folder).

    python tests/support/killing.py --kills 20                 # of each command, at random times
    python tests/support/killing.py fit --changes              # before every change of a file, once each
    python tests/support/killing.py eval --damage --full --two # damaged checkpoints, full disks, two runs at once

Knows: forks, moments, faults, counts. Does not know: what commands do and leave (killed_commands.py).
"""

import argparse
import mmap
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch

from lenscope.cli.main import main
from lenscope.files.writing import LOCK

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
    """What was seen of a command: faults by what they left or what was said, runs that ended, what differs in them."""

    name: str
    seen: Counter[str] = field(default_factory=Counter)
    faults: int = 0
    ended: int = 0
    differing: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        """One line of the table."""
        seen = ", ".join(f"{n} {what}" for what, n in sorted(self.seen.items()))
        equal = self.ended - len(self.differing)
        return f"{self.name} | {self.faults} | {seen} | {self.ended} | {equal} | {time.monotonic() - self.began:.0f}"


HEAD = "command, fault | faults | what they left, or what was said | runs ended | equal | seconds"


def live(
    command: Command,
    folder: Path,
    *,
    after: float | None = None,
    change: int | None = None,
    bytes_of_files: int | None = None,
) -> Life:
    """A command's process, killed after some seconds or before a change of a file, if it has not ended before.

    No file of it may be larger than `bytes_of_files`.
    """
    log, counter = folder.parent / f"{folder.name}.log", mmap.mmap(-1, 8)
    began = time.monotonic()
    child = os.fork()
    if not child:
        _be(command, folder, log, counter, change, bytes_of_files)
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


def _be(command: Command, folder: Path, log: Path, counter: mmap.mmap, change: int | None, most: int | None) -> None:
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
        if most is not None:
            # writing beyond it is an error, as on a full disk
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
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
    count.faults += 1
    count.seen["after a checkpoint" if command.checkpoint(folder) else "before a checkpoint"] += 1
    count.seen["with a half-written file"] += bool(half_written(folder))


def half_written(folder: Path) -> list[str]:
    """The names of temporary files that writers left below a folder."""
    return [p.name for p in folder.rglob(".lenscope-*.part*")]


def compare(count: Count, command: Command, folder: Path, whole: dict[str, Any]) -> None:
    """Count a run that ended, and what differs from the unbroken one."""
    count.ended += 1
    result = command.result(folder)
    unlike = sorted(name for name in {*whole, *result} if whole.get(name) != result.get(name))
    left = half_written(folder)
    if unlike or left:
        shown = [f"{n} {str(whole.get(n))[:100]} ≠ {str(result.get(n))[:100]}" for n in unlike]
        count.differing.append(f"{count.name}, {folder.name}: {', '.join([*shown, *left])}")
    else:
        shutil.rmtree(folder)


def ends_equal(count: Count, command: Command, folder: Path, whole: dict[str, Any]) -> None:
    """One more life, which must end well, with what the unbroken one leaves."""
    ended_well(command, folder, live(command, folder))
    compare(count, command, folder, whole)


def at_random_times(
    command: Command, place: Path, whole: dict[str, Any], life: Life, kills: int, draw: Random, share: float = 0.9
) -> Count:
    """Runs that are killed at random times, each until it ends by itself, until there were so many kills.

    Moments are drawn from the first `share` of the seconds that an unbroken run takes.
    """
    count = Count(f"{command.name}, killed at random times")
    while count.faults < kills:
        folder = place / f"{command.name}-{count.ended}"
        while True:
            moment = draw.uniform(0, share * life.seconds) if count.faults < kills else None
            each = live(command, folder, after=moment)
            if each.status is not None:
                break
            note(count, command, folder)
        ended_well(command, folder, each)
        compare(count, command, folder, whole)
    return count


def before_changes(
    command: Command, place: Path, whole: dict[str, Any], life: Life, changes: Sequence[int] | None = None
) -> Count:
    """Runs that are killed before one change of a file each, of all that an unbroken run makes or those numbers."""
    count = Count(f"{command.name}, killed before a file changes")
    for change in range(life.changes) if changes is None else [n % life.changes for n in changes]:
        folder = place / f"{command.name}-change-{change}"
        if live(command, folder, change=change).status is None:
            note(count, command, folder)
        ends_equal(count, command, folder, whole)
    return count


def with_a_checkpoint(command: Command, folder: Path, life: Life) -> None:
    """Make a folder as a run leaves it that was killed after a checkpoint."""
    for change in range(life.changes // 2, life.changes):
        shutil.rmtree(folder, ignore_errors=True)
        killed = live(command, folder, change=change).status is None
        # what is half-written is cleared by the next writer, and is no part of the checkpoint
        if killed and command.checkpoint(folder) and not half_written(folder):
            return
    raise RuntimeError(f"{command.name}: no kill left a checkpoint")


def said_in_one_line(command: Command, life: Life) -> str:
    """What a life said that ended with status 2; RuntimeError for more than a line, or another end."""
    lines = life.said.splitlines()
    if life.status != 2 or len(lines) != 1 or not lines[0].startswith("lenscope: "):
        raise RuntimeError(f"{command.name}: ended with status {life.status}: {life.said[-3000:]}")
    return lines[0].removeprefix("lenscope: ")


def damages(path: Path) -> dict[str, Callable[[], Any]]:
    """What is done to a file, by name."""
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :] if content else b"\0"
    return {
        "flipped": lambda: path.write_bytes(flipped),
        "cut": lambda: path.write_bytes(content[: len(content) * 2 // 3]),
        "emptied": lambda: path.write_bytes(b""),
        "deleted": path.unlink,
    }


def with_damage(command: Command, place: Path, whole: dict[str, Any], life: Life) -> Count:
    """Every file that a killed run left damaged in each way: refused in a line that says what to remove, or redone."""
    count = Count(f"{command.name}, a file of its checkpoint damaged")
    sound = place / f"{command.name}-sound"
    with_a_checkpoint(command, sound, life)
    for name in sorted(p.relative_to(sound) for p in sound.rglob("*") if p.is_file() and p.name != LOCK):
        for how in damages(sound / name):
            folder = place / f"{command.name}-damaged-{name.name}-{how}"
            shutil.copytree(sound, folder)
            damages(folder / name)[how]()
            count.faults += 1
            each = live(command, folder)
            if each.status == 0:
                count.seen["redone"] += 1
                compare(count, command, folder, whole)
                continue
            line = said_in_one_line(command, each)
            remove = Path(line.partition(": ")[0])
            if "remove it" not in line or not remove.exists() or folder not in [remove, *remove.parents]:
                raise RuntimeError(f"{command.name}, {name} {how}: no remedy in: {line}")
            count.seen["refused in one line with the remedy"] += 1
            shutil.rmtree(remove) if remove.is_dir() else remove.unlink()
            folder.mkdir(exist_ok=True)
            ends_equal(count, command, folder, whole)
    return count


def with_a_full_disk(
    command: Command, place: Path, whole: dict[str, Any], sizes: Sequence[int] = (200, 1_000, 8_000, 30_000)
) -> Count:
    """Runs that cannot write more than so many bytes into a file: told in one line; with more room they go on."""
    count = Count(f"{command.name}, disk full")
    for size in sizes:
        folder = place / f"{command.name}-full-{size}"
        each = live(command, folder, bytes_of_files=size)
        count.faults += 1
        if each.status == 0:
            count.seen["large enough"] += 1
        else:
            line = said_in_one_line(command, each)
            if "cannot be written" not in line or half_written(folder):
                raise RuntimeError(f"{command.name} with {size} bytes: {line} {half_written(folder)}")
            count.seen["told in one line"] += 1
        ends_equal(count, command, folder, whole)
    return count


def of_two(command: Command, place: Path, whole: dict[str, Any], life: Life) -> Count:
    """A second run in the folder of a first, which is stopped meanwhile: told in one line, and nothing changes."""
    count, folder = Count(f"{command.name}, two on one folder"), place / f"{command.name}-two"
    log = folder.parent / f"{folder.name}-first.log"
    first = os.fork()
    if not first:
        _be(command, folder, log, mmap.mmap(-1, 8), None, None)
    until = time.monotonic() + PATIENCE
    while not any(folder.rglob(LOCK)) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(first, signal.SIGSTOP)
    count.faults += 1
    line = said_in_one_line(command, live(command, folder))
    if "another run is writing to it" not in line:
        raise RuntimeError(f"{command.name}, the second run: {line}")
    count.seen["told in one line"] += 1
    os.kill(first, signal.SIGCONT)
    if os.waitpid(first, 0)[1]:
        raise RuntimeError(f"{command.name}, the first of two runs: {log.read_text()}")
    compare(count, command, folder, whole)
    return count


def tell(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def program() -> int:
    """The command line: exit status 1 where anything differs."""
    import killed_commands

    parser = argparse.ArgumentParser(description="Kill commands until they end, and compare what they leave.")
    parser.add_argument("commands", nargs="*", help="names of killed_commands.py; default: all")
    parser.add_argument("--kills", type=int, default=0, help="kills at random times, of each command")
    parser.add_argument("--changes", nargs="*", type=int, help="also before these changes of files; no number: all")
    parser.add_argument("--damage", action="store_true", help="also damage every file of a checkpoint")
    parser.add_argument("--full", nargs="*", type=int, help="also with files of at most so many bytes")
    parser.add_argument("--two", action="store_true", help="also two runs on one folder")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    differing = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        commands = killed_commands.commands(place)
        unknown = {*given.commands} - {*commands}
        if unknown:
            raise SystemExit(f"no command {unknown}: there are {[*commands]}")
        tell(HEAD)
        for command in [commands[name] for name in given.commands or commands]:
            whole, life = unbroken(command, place)
            known = command, place, whole
            runs: list[Callable[[], Count]] = []
            if given.kills:
                draw = Random(f"{command.name} {given.seed}")
                runs.append(partial(at_random_times, *known, life, given.kills, draw))
            if given.changes is not None:
                runs.append(partial(before_changes, *known, life, given.changes or None))
            if given.damage:
                runs.append(partial(with_damage, *known, life))
            if given.full is not None:
                runs.append(partial(with_a_full_disk, *known, *([given.full] if given.full else [])))
            if given.two:
                runs.append(partial(of_two, *known, life))
            for run in runs:
                count = run()
                tell(count.line())
                differing += count.differing
    for line in differing:
        tell(line)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(program())
