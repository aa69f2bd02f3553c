"""What all benchmarks share: timing alternatives in turn, peak memory, child processes, tables and the closing line.

Knows: how a figure is taken, paired and printed, and on which machine. Does not know: what is measured, two checkouts
(checkouts.py).
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch

HERE = Path(__file__).parent
PEERS = HERE / "peers"
# processors name what they can do; the widest comes last
VECTORS = {"asimd": "NEON", "sve": "SVE", "avx2": "AVX2", "avx512f": "AVX-512"}
EXTRAS = {"bf16": "bf16", "avx512_bf16": "bf16", "amx_tile": "AMX"}

# a row's key: the heading, the width and the format of its column; text has no format
Columns = dict[str, tuple[str, int, str]]


class Spread(NamedTuple):
    """A value and the bounds around it: of times and ratios the median and the quartiles."""

    middle: float
    low: float
    high: float


# -- the machine


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code, as JSON values."""
    file = Path("/proc/cpuinfo")
    lines = [line.partition(":") for line in file.read_text().splitlines()] if file.exists() else []
    info = {key.strip().lower(): value.strip() for key, _, value in reversed(lines)}
    flags = set((info.get("flags") or info.get("features") or "").split())
    widest = [name for flag, name in VECTORS.items() if flag in flags][-1:]
    more = dict.fromkeys(name for flag, name in EXTRAS.items() if flag in flags)
    return {
        "processor": info.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "vectors": " ".join([*widest, *more]) or "unknown",
        "torch_uses": torch.backends.cpu.get_cpu_capability(),  # less than the widest where a variable says so
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "date": date.today().isoformat(),
    }


def print_machine() -> None:
    """The line that a table of figures is worth little without."""
    m = machine()
    print(
        f"{m['processor']}, {m['cores']} cores, {m['vectors']} (torch: {m['torch_uses']}), {m['gpu'] or 'no GPU'}, "
        f"torch {m['torch']}, Python {m['python']}, {m['threads']} threads, {m['date']}",
        flush=True,
    )


# -- time


def clock(run: Callable[[], Any], scale: float = 1.0, device: str = "cpu") -> Callable[[], float]:
    """A call that runs `run` and returns the seconds it took, times `scale` where `run` is a sample of the work."""

    def now() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed() -> float:
        gc.collect()
        began = now()
        run()
        return (now() - began) * scale

    return timed


def in_turn(clocks: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every alternative, measured one after the other and then again: A, B, A, B, …"""
    times: dict[str, list[float]] = {name: [] for name in clocks}
    for _ in range(repeats):
        for name, timed in clocks.items():
            times[name].append(timed())
    return times


def spread(values: Sequence[float]) -> Spread:
    """The median of the values and their quartiles, between which half of them lie."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def paired(values: Sequence[float], base: Sequence[float]) -> Spread:
    """The ratios of values to those of the baseline that were measured right beside them."""
    return spread([a / b for a, b in zip(values, base, strict=True)])


def summary(times: Mapping[str, Sequence[float]], base: str) -> dict[str, dict[str, Any]]:
    """The median seconds of every alternative, and its ratio to the one named `base`."""
    return {
        name: {"median_s": statistics.median(values), "ratio": paired(values, times[base])}
        for name, values in times.items()
    }


# -- memory


def touch(model: torch.nn.Module) -> None:
    """Read every memory-mapped weight once, so that no page of them is charged to what runs afterwards."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.sum()


def memory_of(run: Callable[[], Any], device: str = "cpu") -> tuple[float, float]:
    """Megabytes (10**6 bytes) held before `run` and at its peak, of this process or of the accelerator."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return before / 1e6, torch.cuda.max_memory_allocated() / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak of loading
    before_mb = _status_mb("VmRSS")
    run()
    return before_mb, _status_mb("VmHWM")


def peak_above(run: Callable[[], Any], device: str = "cpu") -> float:
    """Megabytes at the peak of `run` above what was held before it, such as the loaded model."""
    before, peak = memory_of(run, device)
    return peak - before


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


# -- child processes


def call(command: Sequence[str], variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The JSON in the last line that a process printed, or as its "note" the last line of its error."""
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(variables or {})}
    )
    lines = ended.stdout.strip().splitlines()
    if ended.returncode or not lines:
        return {"note": (ended.stderr.strip().splitlines() or ["failed"])[-1][:200]}
    return json.loads(lines[-1])


def child(work: Sequence[str], variables: Mapping[str, str] | None = None, may_fail: bool = False) -> dict[str, Any]:
    """What a fresh process of the running script answers to `work`, the arguments of its command line."""
    reply = call([sys.executable, sys.argv[0], *work], variables)
    if "note" in reply and not may_fail:
        raise SystemExit(f"{' '.join(work)}: {reply['note']}")
    return reply


def answer(times: Mapping[str, Sequence[float]], peak_mb: float | None = None, **more: Any) -> None:
    """Print what `child` reads: seconds by alternative, the memory of the first one, and whose lenscope ran."""
    import lenscope

    source = str(Path(lenscope.__file__).resolve().parents[1])
    print(json.dumps({"times": times, "peak_mb": peak_mb, "source": source, **more}))


# -- the command line, tables, the closing line


def options(description: str | None, *, repeats: int | None = 5, model: bool = True) -> argparse.ArgumentParser:
    """The parser that a benchmark adds its own options to."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if model:
        parser.add_argument("--model", default="smollm2-135m")
    if repeats:
        parser.add_argument("--repeats", type=int, default=repeats, help="how often each figure is taken")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    return parser


def print_heading(columns: Columns) -> None:
    """Print the headings over the columns: those of numbers to the right."""
    heads = [f"{heading:{'>' if form else '<'}{width}}" for heading, width, form in columns.values()]
    print("".join(heads), flush=True)


def print_row(columns: Columns, row: Mapping[str, Any]) -> None:
    """Print a row as far as it has values; a "note" stands in place of all numbers."""
    line = ""
    for key, (_, width, form) in columns.items():
        if form and "note" in row:
            continue
        value = row.get(key)
        line += f"{_cell(value, form):{'>' if form else '<'}{width}}"
    print(line + (f"  {row['note']}" if "note" in row else ""), flush=True)


def _cell(value: Any, form: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, Spread):
        return format(value, form)
    if value.low == value.high:
        return format(value.middle, form)
    return f"{value.middle:{form}} [{value.low:{form}}, {value.high:{form}}]"


def print_closing(benchmark: str, results: Any, **setting: Any) -> None:
    """Print the one line of JSON that a benchmark ends with."""
    print(json.dumps({"benchmark": benchmark, **setting, "machine": machine(), "results": results}))
