"""Damaged and forged files of every kind, read with little memory: python tests/support/fuzzing.py --mutations 10000.

Each mutation is loaded in a forked process that may allocate 1 GB more than a sound file needs. What may happen: one
LenscopeError in one line; the same value; where the bytes are not sealed, another value that a writer could have
written. All else is a fault, and is printed with the seed that makes it again (--kind NAME --first SEED --mutations 1).

Knows: forks, limits, counts. Does not know: files (fuzzed.py), how they are damaged (mutating.py).
"""

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
# its own allocator reserves addresses by the gigabyte
os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"

import pyarrow as pa
import torch
from fuzzed import Kind, Stage, kinds, unseal
from mutating import DAMAGE, FORGED

import lenscope as ls

GIGABYTE = 1 << 30
# processor seconds that one file may take
PATIENCE = 60


@dataclass(frozen=True)
class Outcome:
    """What one mutation came to: "refused", "equal", "another", or a fault with what was seen."""

    kind: str
    seed: int
    mutation: str
    result: str
    seen: str = ""

    @property
    def fault(self) -> bool:
        return self.result not in ("refused", "equal", "another")


def mutated(folder: Path, draw: Random, others: Sequence[bytes], without: Sequence[str]) -> str:
    """Mutate one file of a folder, in none of the ways `without`; the name of what was done."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    while True:
        path = draw.choice(files)
        data = path.read_bytes()
        match draw.randrange(12):
            case 0:
                how = draw.choice(("gone", "folder", "other", "loop"))
                path.unlink()
                if how == "folder":
                    path.mkdir()
                elif how == "other":
                    path.write_bytes(draw.choice(others))
                elif how == "loop":
                    path.symlink_to(path.name)
                return f"{how} {path.name}"
            case 1 | 2 | 3 | 4 | 5:
                mutation = draw.choice(DAMAGE)
            case _:
                mutation = draw.choice(FORGED)
        made = None if mutation.__name__ in without else mutation(data, draw)
        if made is not None and made != data:
            path.write_bytes(made)
            forged = mutation not in DAMAGE and draw.randrange(2)
            if forged:
                unseal(folder)
            return f"{mutation.__name__} {path.name}{' without digests' if forged else ''}"


def load(kind: Kind, folder: Path, original: str, mutation: str) -> tuple[str, str]:
    """The result of loading a mutated file, and what was seen."""
    try:
        value = kind.load(folder)
        if kind.told(value) == original:
            return "equal", ""
        doubt = kind.doubt(value)
    except ls.LenscopeError as error:
        if out_of_memory(error):
            return "memory", str(error)
        said = str(error)
        return ("refused", said) if "\n" not in said and said.strip() else ("more than a line", said)
    except BaseException as error:  # whatever comes out of a loader but LenscopeError is what is looked for
        return ("memory" if out_of_memory(error) else "traceback"), f"{type(error).__name__}: {error}"
    if doubt:
        return "impossible", doubt
    return ("unseen" if kind.sealed and mutation.startswith("flipped") else "another"), ""


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an allocation failed, here or in what this error was made of."""
    while error is not None:
        if isinstance(error, MemoryError | pa.ArrowMemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def batch(kind: Kind, pristine: Path, seeds: Sequence[int], others: Sequence[bytes], send: int) -> None:
    """In a process of its own: mutate and load, one after the other, and tell the parent of each."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1), os.dup2(nowhere, 2)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGVTALRM, _too_long)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "case"
        shutil.copytree(pristine, folder)
        # the first reading of a sound file makes what stays: caches, pools
        original = kind.told(kind.load(folder))
        shutil.rmtree(folder)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + GIGABYTE
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        for seed in seeds:
            draw = Random(f"{kind.name} {seed}")
            shutil.copytree(pristine, folder)
            mutation = mutated(folder, draw, others, kind.without)
            _tell(send, (seed, mutation, "begun", ""))
            signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
            result, seen = load(kind, folder, original, mutation)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            _tell(send, (seed, mutation, result, " ".join(seen.split())[:300]))
            shutil.rmtree(folder)


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"more than {PATIENCE} s")


def _tell(send: int, told: tuple[int, str, str, str]) -> None:
    os.write(send, json.dumps(told).encode("utf-8", "replace") + b"\n")


def tried(kind: Kind, pristine: Path, seeds: Sequence[int], others: Sequence[bytes]) -> list[Outcome]:
    """Every seed's outcome; a process that dies tells by its signal, and the next one goes on."""
    done: list[Outcome] = []
    while len(done) < len(seeds):
        receive, send = os.pipe()
        child = os.fork()
        if not child:
            os.close(receive)
            try:
                batch(kind, pristine, seeds[len(done) :], others, send)
            except BaseException as error:
                _tell(send, (-1, "", "broken harness", f"{type(error).__name__}: {error}"))
            os._exit(0)
        os.close(send)
        last = None
        with os.fdopen(receive) as told:
            for line in told:
                seed, mutation, result, seen = json.loads(line)
                if seed < 0:
                    raise RuntimeError(f"{kind.name}: {seen}")
                last = seed, mutation
                if result != "begun":
                    done.append(Outcome(kind.name, seed, mutation, result, seen))
                    last = None
        status = os.waitpid(child, 0)[1]
        if last is not None:
            killed = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {status}"
            done.append(Outcome(kind.name, *last, "died", killed))
        elif len(done) < len(seeds):
            raise RuntimeError(f"{kind.name}: the process ended after {len(done)} of {len(seeds)} files ({status})")
    return done


def fuzz(mutations: int, names: Iterable[str] = (), first: int = 0) -> list[Outcome]:
    """`mutations` of each kind of files, of those named or of all."""
    torch.set_num_threads(1)
    stage = Stage()
    wanted = {*names}
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as place:
        made = []
        for n, kind in enumerate(kinds(stage)):
            folder = Path(place) / str(n)
            folder.mkdir()
            kind.write(folder)
            made.append((kind, folder))
        others = [p.read_bytes() for _, folder in made for p in sorted(folder.rglob("*")) if p.is_file()]
        unknown = wanted - {kind.name for kind, _ in made}
        if unknown:
            raise SystemExit(f"no kind {unknown}: there are {[kind.name for kind, _ in made]}")
        for kind, folder in made:
            if not wanted or kind.name in wanted:
                outcomes += tried(kind, folder, range(first, first + mutations), others)
    return outcomes


def report(outcomes: Sequence[Outcome]) -> str:
    """A line per kind: how often which result came; then the faults."""
    lines = []
    for kind in dict.fromkeys(o.kind for o in outcomes):
        counts = Counter(o.result for o in outcomes if o.kind == kind)
        lines.append(f"{kind:24} " + ", ".join(f"{n} {result}" for result, n in counts.most_common()))
    counts = Counter(o.result for o in outcomes)
    lines.append(f"{'all':24} " + ", ".join(f"{n} {result}" for result, n in counts.most_common()))
    lines += [f"FAULT {o.kind!r} {o.seed} {o.mutation}: {o.result} {o.seen}" for o in outcomes if o.fault]
    return "\n".join(lines)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--mutations", type=int, default=100, help="of each kind")
    options.add_argument("--kind", action="append", default=[], help="one of the kinds; may be repeated")
    options.add_argument("--first", type=int, default=0, help="the first seed")
    chosen = options.parse_args()
    found = fuzz(chosen.mutations, chosen.kind, chosen.first)
    sys.stdout.write(report(found) + "\n")
    sys.exit(any(o.fault for o in found))
