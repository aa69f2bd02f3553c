"""Write the tables of docs/scale.md from the formulas of lenscope.planning.

    python docs/make_scale.py          # write the page's tables
    python docs/make_scale.py --check  # exit status 1 if they are not what the formulas say

A table stands between two marks, which name it; everything else of the page is written by hand.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from lenscope.cli.plan import size_text, time_text
from lenscope.planning.machines import MACHINES
from lenscope.planning.model_shapes import ModelShape, model_shape
from lenscope.planning.plan import Task, TaskPlan, plan

PAGE = Path(__file__).with_name("scale.md")
GPUS = (1, 8, 64)
# Llama 3.2 1B, Llama 3 8B, GPT-NeoX-20B as a Llama of its width and depth, Llama 3 70B
SHAPES = {
    "1B": "layers=16,width=2048,heads=32,kv=8,inner=8192,vocab=128256",
    "7B": "layers=32,width=4096,heads=32,kv=8,inner=14336,vocab=128256",
    "20B": "layers=44,width=6144,heads=64,kv=64,inner=16384,vocab=50432",
    "70B": "layers=80,width=8192,heads=64,kv=8,inner=28672,vocab=128256",
}
TASKS = {
    "fit, muon, 200k tokens": Task("fit", tokens=200_000),
    "fit, muon, 16M tokens": Task("fit", tokens=16_000_000),
    "fit, published recipe, 65.5M tokens": Task("fit", tokens=65_536_000, recipe="published"),
    "trajectories of 1M tokens": Task("lens", tokens=1_000_000),
    "1M rows, next token": Task("sweep", rows=1_000_000),
    "100k rows × 20 tokens": Task("sweep", rows=100_000, new_tokens=20),
}


def shapes() -> dict[str, ModelShape]:
    """The four models."""
    return {name: model_shape(words) for name, words in SHAPES.items()}


def weights(models: dict[str, ModelShape]) -> Iterator[str]:
    """Exact numbers: parameters, bytes of weights and of what a fit keeps."""
    yield "| | parameters | weights, bfloat16 | translators | gradients | momentum | moments |"
    yield "|---|---|---|---|---|---|---|"
    for name, shape in models.items():
        parts = plan(shape, Task("fit"), MACHINES["h100"]).placements[0].parts
        sizes = [size_text(parts[part]) for part in ("translators", "gradients", "momentum", "moments")]
        yield f"| {name} | {shape.parameters:,} | {size_text(shape.nbytes)} | {' | '.join(sizes)} |"


def hours(models: dict[str, ModelShape]) -> Iterator[str]:
    """Of each task on each number of GPUs: the advised placement, peak memory, time, and what limits it."""
    yield "| | | " + " | ".join(f"{n} × H100" for n in GPUS) + " |"
    yield "|---|---|" + "---|" * len(GPUS)
    for task, asked in TASKS.items():
        for number, (name, shape) in enumerate(models.items()):
            cells = [cell(plan(shape, asked, MACHINES["h100"], n)) for n in GPUS]
            yield f"| {task if not number else ''} | {name} | {' | '.join(cells)} |"


def cell(planned: TaskPlan) -> str:
    """A plan in one cell."""
    best = planned.advised
    if best is None:
        least = min(planned.placements, key=lambda p: p.peak)
        return f"does not fit ({size_text(least.peak)})"
    return f"{time_text(best.seconds)}, {best.placement}, {size_text(best.peak)}, {best.limit}"


def written() -> str:
    """The page with its tables as they are now."""
    text, models = PAGE.read_text(), shapes()
    for name, make in (("weights", weights), ("hours", hours)):
        table = "\n".join(make(models))
        marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.escape(marks[0]) + r".*?" + re.escape(marks[1])
        text = re.sub(pattern, lambda _, t=table, m=marks: f"{m[0]}\n{t}\n{m[1]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(written() != PAGE.read_text())
    PAGE.write_text(written())
