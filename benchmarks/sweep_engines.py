"""A sweep by Ray's actors against one process: rows a second once models are loaded, and seconds in all.

The same spec (states of every layer of short prompts at the last layers of a target prompt, next tokens) is run by one
process of one thread and by Ray with actors of one thread each, in turn. Rows a second are those after the first part
was written, so that they leave out starting Ray and loading models; the seconds in all have both. The folders must be
equal to the byte, else the script fails.

    OMP_NUM_THREADS=1 python benchmarks/sweep_engines.py
    OMP_NUM_THREADS=1 python benchmarks/sweep_engines.py --prompts 48 --repeats 1 --workers 2
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import timing
import torch

import lenscope as ls

PLACES = (
    "France", "Germany", "Italy", "Spain", "Japan", "China", "India", "Brazil", "Canada", "Mexico", "Egypt", "Kenya",
    "Nigeria", "Ghana", "Peru", "Chile", "Argentina", "Colombia", "Cuba", "Greece", "Turkey", "Iran", "Iraq", "Israel",
)  # fmt: skip
TEXTS = ("The capital of {} is", "The currency of {} is the", "The language of {} is", "The largest city of {} is")
COLUMNS: timing.Columns = {
    "engine": ("engine", 22, ""),
    "rows_per_s": ("rows/s", 10, ".1f"),
    "ratio": ("× one process", 24, ".2f"),
    "whole_s": ("s in all", 10, ".1f"),
}


def swept(spec: dict[str, Any], folder: Path, **how: Any) -> tuple[float, float]:
    """Rows a second after the first part, and seconds in all."""
    marks: list[tuple[float, int]] = []
    began = time.perf_counter()
    ls.sweep(spec, folder, progress=lambda done, _: marks.append((time.perf_counter(), done)), **how)
    (first, done), (last, total) = marks[1], marks[-1]
    return (total - done) / (last - first), last - began


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "parts").iterdir()}


def main() -> None:
    parser = timing.options(__doc__, repeats=3)
    parser.add_argument("--prompts", type=int, default=96, help="each is 186 rows of smollm2-135m")
    parser.add_argument("--workers", type=int, default=2, help="actors of Ray")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    timing.print_machine()
    texts = [text.format(place) for text in TEXTS for place in PLACES]
    n_layers = ls.load(arguments.model).n_layers
    spec = {
        "model": arguments.model,
        "sources": {"prompts": texts[: arguments.prompts]},
        "targets": ["identity"],
        "target_layers": f"{n_layers - 5}:{n_layers + 1}",
        # enough parts for actors to end together
        "rows_per_part": 512,
    }
    ray = f"ray, {arguments.workers} workers"
    engines: dict[str, dict[str, Any]] = {"one process": {}, ray: {"engine": "ray", "workers": arguments.workers}}
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for name, how in engines.items():
                speed, whole = swept(spec, Path(folder) / name, **how)
                speeds[name].append(speed)
                seconds[name].append(whole)
            if contents(Path(folder) / "one process") != contents(Path(folder) / ray):
                raise SystemExit("the folders differ")
    timing.print_heading(COLUMNS)
    rows = [
        {
            "engine": name,
            "rows_per_s": statistics.median(speeds[name]),
            "ratio": timing.paired(speeds[name], speeds["one process"]),
            "whole_s": statistics.median(seconds[name]),
        }
        for name in engines
    ]
    for row in rows:
        timing.print_row(COLUMNS, row)
    timing.print_closing("sweep_engines", rows, model=arguments.model, prompts=arguments.prompts)


if __name__ == "__main__":
    main()
