"""What the peer scripts share: arguments, token ids, memory readings, timing and the one line of JSON on stdout.

Needs nothing but the standard library, torch and (for ``--text``) tokenizers, so it runs in every peer's own venv.
Sizes are in MB of 10**6 bytes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def parse_args(description: str) -> argparse.Namespace:
    """The command line that every peer script takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, type=Path, help="folder saved by transformers (safetensors)")
    parser.add_argument("--tokens", type=int, default=512, help="how many tokens of the input to run")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs, after one warm-up")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--ids-json", type=Path, help="a JSON list of token ids; the first --tokens of them are run")
    source.add_argument("--text", type=Path, help="a text file, tokenised with the folder's tokenizer.json")
    args = parser.parse_args()
    if args.tokens < 2 or args.repeats < 1 or args.threads < 1:
        parser.error("--tokens must be 2 or more, --repeats and --threads 1 or more")
    return args


def read_ids(args: argparse.Namespace) -> list[int]:
    """The first ``--tokens`` ids of the input."""
    if args.ids_json is not None:
        ids = [int(i) for i in json.loads(args.ids_json.read_text(encoding="utf-8"))]
    else:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
        ids = tokenizer.encode(args.text.read_text(encoding="utf-8")).ids
    if len(ids) < args.tokens:
        sys.exit(f"the input has {len(ids)} tokens, fewer than --tokens {args.tokens}")
    return ids[: args.tokens]


def take_stdout() -> int:
    """Send everything that libraries print to stderr; returns the real stdout's file descriptor for the JSON line."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    return real


def _status_mb(field: str) -> float | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    return None


def rss_mb() -> float | None:
    """Resident memory now."""
    return _status_mb("VmRSS")


def peak_rss_mb() -> float:
    """Peak resident memory since :func:`reset_peak`, or since the process began where that is not possible.

    Reads the kernel's VmHWM where there is one: ``ru_maxrss`` of a child also counts what its parent held when it
    started the child, so a large benchmark process would be counted as the peer's memory.
    """
    peak = _status_mb("VmHWM")
    if peak is None:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    return peak


def reset_peak() -> bool:
    """Start the peak anew from now, so that loading does not count; False where the kernel does not offer it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def measure(run: Callable[[], Any], repeats: int, summary: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Run ``run`` once as a warm-up and ``repeats`` times under the clock.

    Each result is dropped, and garbage collected outside the clock, before the next run starts. ``summary`` makes of
    the warm-up's result what is to go into the JSON. ``cpu_s`` is the processor time of all threads and ``sys_s``
    the kernel's part of it: a wall time above ``cpu_s`` tells of a machine busy with something else, a large ``sys_s``
    of memory that malloc gave back and had to map anew.
    """
    gc.collect()
    loaded = rss_mb()
    was_reset = reset_peak()
    start = time.perf_counter()
    result = run()
    warmup = time.perf_counter() - start
    peak_first = peak_rss_mb()
    out: dict[str, Any] = summary(result)
    del result
    wall, cpu, system = [], [], []
    for _ in range(repeats):
        gc.collect()
        start, before = time.perf_counter(), os.times()
        result = run()
        wall.append(time.perf_counter() - start)
        after = os.times()
        cpu.append(after.user + after.system - before.user - before.system)
        system.append(after.system - before.system)
        del result
    out.update(
        wall_s=[round(s, 4) for s in wall],
        cpu_s=[round(s, 2) for s in cpu],
        sys_s=[round(s, 2) for s in system],
        median_s=round(statistics.median(wall), 4),
        warmup_s=round(warmup, 4),
        loaded_rss_mb=None if loaded is None else round(loaded, 1),
        peak_rss_mb=round(peak_rss_mb(), 1),
        peak_rss_first_run_mb=round(peak_first, 1),
        peak_excludes_loading=was_reset,
    )
    return out


def emit(stdout_fd: int, record: dict[str, Any]) -> None:
    """Print the one line of JSON to the real stdout."""
    with os.fdopen(stdout_fd, "w", encoding="utf-8") as out:
        out.write(json.dumps(record) + "\n")
