"""The command that says what a fit, trajectories or a sweep would cost, before anything is loaded.

Knows: sizes as they are written, which lines and columns a plan is shown in. Does not know: how costs are counted
(planning/plan.py).
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from lenscope.cli.options import AsJson, parse_amount, require_dtype_option
from lenscope.cli.streams import print_json
from lenscope.cli.terminal import Screen, show
from lenscope.cli.validation import require_effect, require_name
from lenscope.errors import LenscopeError
from lenscope.visible_text import printable

if TYPE_CHECKING:
    from lenscope.planning.plan import PlacedWork, TaskPlan

SHAPE = "layers=80,width=8192,heads=64,kv=8,inner=28672,vocab=128256"


def plan_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=f"A built-in name, a folder, a hub id, or a shape such as {SHAPE}.")
    ],
    task: Annotated[str, typer.Option("--task", "-t", help="What is planned: fit, lens or sweep.")] = "fit",
    gpus: Annotated[int, typer.Option("--gpus", "-n", help="Number of GPUs; a machine has 8.")] = 1,
    memory: Annotated[
        str | None, typer.Option(help="Memory of each GPU, such as 80GB; default: that of the device.")
    ] = None,
    device: Annotated[
        str,
        typer.Option(help="h100, h200, a100, cpu (this machine, measured now), or FLOPS,BANDWIDTH such as 400T,2T."),
    ] = "h100",
    disk: Annotated[str | None, typer.Option(help="Bytes that the disk reads in a second, such as 2GB.")] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Tokens that a fit or a lens reads; default: 200k for a fit, 1M for a lens.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens of a text or a prompt; default: 512, in a sweep 32.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="With --task fit: muon, ridge, bias, published or published-ce.")
    ] = "muon",
    rows: Annotated[str | None, typer.Option(help="With --task sweep: number of rows; default: 100k.")] = None,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", help="With --task sweep: tokens that each row writes.")
    ] = 0,
    tuned: Annotated[bool, typer.Option("--tuned", help="With --task lens: read through a tuned lens.")] = False,
    dtype: Annotated[
        str | None, typer.Option(help="Number format of the weights; default: as the configuration says.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate memory and time of a task before you run it.

    Everything is counted from the model's configuration; no weights are loaded and nothing is run.

    \b
    Examples:
      lenscope plan path/to/70b --task fit --gpus 8 --memory 80GB
      lenscope plan smollm2-135m --task lens --device cpu
    """
    require_name("--task", task, ("fit", "lens", "sweep"))
    require_effect("--tokens", tokens, task != "sweep", "are those of a fit or a lens; a sweep has --rows")
    require_effect("--rows", rows, task == "sweep", "are those of a sweep")
    require_effect("--new-tokens", new_tokens or None, task == "sweep", "are those of a sweep")
    require_effect("--recipe", recipe if recipe != "muon" else None, task == "fit", "is that of a fit")
    require_effect("--tuned", tuned, task == "lens", "says which lens is read")
    if gpus < 1:
        raise LenscopeError(f"--gpus {gpus}: give at least 1")
    if length is not None and length < 2:
        raise LenscopeError(f"--length {length}: give at least 2 tokens")
    if new_tokens < 0:
        raise LenscopeError(f"--new-tokens {new_tokens}: give 0 (the next token is measured) or more")
    require_dtype_option(dtype)
    room = None if memory is None else parse_bytes(memory, "memory")
    speed = None if disk is None else parse_bytes(disk, "disk")
    import torch

    from lenscope.planning.machines import machine
    from lenscope.planning.model_shapes import model_shape
    from lenscope.planning.plan import Task, plan

    asked = Task(
        task,
        tokens=None if tokens is None else parse_amount(tokens, "tokens"),
        length=length,
        recipe=recipe,
        tuned=tuned,
        rows=None if rows is None else parse_amount(rows, "rows"),
        new_tokens=new_tokens,
    )
    on = machine(device, memory=room, disk=speed)
    if on.cached and gpus > 1:
        raise LenscopeError(f"--gpus {gpus}: --device cpu is one machine; name a GPU")
    shape = model_shape(model, None if dtype is None else getattr(torch, dtype))
    planned = plan(shape, asked, on, gpus)
    if as_json:
        print_json(planned.to_json())
    else:
        show_plan(planned)


def parse_bytes(text: str, name: str) -> float:
    """Read a number of bytes: 80GB, 500MB, 1.5TB; powers of ten, as GPUs are sold. LenscopeError for anything else."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)\s*([MGT])i?B?", text.strip(), re.IGNORECASE)
    value = float(match[1]) * {"M": 1e6, "G": 1e9, "T": 1e12}[match[2].upper()] if match else 0.0
    if value <= 0:
        raise LenscopeError(f"--{name} {printable(text)[:40]}: give bytes such as 80GB, 500MB or 1.5TB")
    return value


def show_plan(planned: "TaskPlan") -> None:
    """Print a plan: the model, a column for each placement, what is advised, and what the numbers stand on."""
    from lenscope.planning.plan import describe_placements, fewest_gpus

    console, shape, advised = Screen(), planned.shape, planned.advised
    console.print(Text(printable(f"{shape.name}: {_model_line(planned)}"), style="bold"), soft_wrap=True)
    console.print(Text(_task_line(planned)), soft_wrap=True)
    console.print()
    show(console, plan_table(planned.placements))
    console.print(Text(describe_placements([p.placement for p in planned.placements]), style="dim"))
    console.print()
    if advised is None:
        least = min(planned.placements, key=lambda p: p.peak)
        more = fewest_gpus(shape, planned.task, planned.machine)
        where = f"; it fits from {more} GPUs on" if more and more > planned.gpus else ""
        line = f"nothing fits: {least.placement} needs {size_text(least.peak)} on each GPU{where}"
        console.print(Text(line, style="bold red"), soft_wrap=True)
    else:
        console.print(Text(f"{advised.placement}, about {time_text(advised.seconds)}:", style="bold"), soft_wrap=True)
        console.print(Text(printable(str(planned.command()))), soft_wrap=True)
    console.print()
    for line in _notes(planned):
        console.print(Text(line, style="dim"))


def plan_table(placements: Sequence["PlacedWork"]) -> Table:
    """Bytes, FLOPs and hours, a column for each placement; per GPU."""
    from lenscope.display.tables import TableColumn, dim, plain_table

    parts = [name for name in placements[0].parts if any(p.parts[name] for p in placements)]
    rows: list[list[str | Text]] = [["weights", *(size_text(p.weights) for p in placements)]]
    rows += [[name, *(size_text(p.parts[name]) for p in placements)] for name in parts]
    rows.append([Text("peak", style="bold"), *(Text(size_text(p.peak), style="bold") for p in placements)])
    rows.append(["fits", *(Text("yes" if p.fits else "no", style="green" if p.fits else "red") for p in placements)])
    for name, key in (("PFLOP", "flops"), ("moved", "moved"), ("sent", "sent"), ("from disk", "read")):
        totals = [sum(getattr(part.work, key) for part in p.works) for p in placements]
        if key in ("flops", "moved") or any(totals):
            rows.append([name, *(f"{n / 1e15:,.3g}" if key == "flops" else size_text(n) for n in totals)])
    fetched = [sum(part.work.fetched for part in p.works) for p in placements]
    if any(fetched):
        rows.append(["from the CPU", *map(size_text, fetched)])
    rows.append(["time", *(time_text(p.seconds) for p in placements)])
    rows.append(["limited by", *(p.limit for p in placements)])
    lines = [[dim(row[0]) if isinstance(row[0], str) else row[0], *row[1:]] for row in rows]
    columns = [
        TableColumn("per GPU", folds="none"),
        *(TableColumn(p.placement, "right", folds="none") for p in placements),
    ]
    return plain_table(columns, lines, "", gap=2)


def size_text(count: float) -> str:
    """Bytes in three digits: 1.23 GB."""
    for unit, scale in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            value = count / scale
            return (
                f"{value:.2f} {unit}" if value < 10 else f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
            )
    return f"{count / 1e6:.1f} MB" if count else "–"


def time_text(seconds: float) -> str:
    """Seconds as hours, minutes or seconds."""
    if seconds >= 3600 * 48:
        return f"{seconds / 86400:.1f} days"
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def _model_line(planned: "TaskPlan") -> str:
    from lenscope.models.load_options import dtype_name

    shape = planned.shape
    parts = [
        f"{shape.parameters:,} parameters",
        f"{shape.layers} blocks with {shape.blocks:,}",
        f"head {shape.head:,}" + (", which is the embedding" if shape.tied else f", embedding {shape.embedding:,}"),
    ]
    if shape.active < shape.blocks:
        parts.append(f"a token meets {shape.active:,} of the blocks'")
    return "; ".join(parts) + f"; {size_text(shape.nbytes)} in {dtype_name(shape.dtype)}"


def _task_line(planned: "TaskPlan") -> str:
    from lenscope.planning.plan import LENGTHS, ROWS, TOKENS

    task, on = planned.task, planned.machine
    length = task.length or LENGTHS[task.kind]
    what = {
        "fit": f"fit, recipe {task.recipe}, {task.tokens or TOKENS['fit']:,} tokens in rows of {length}",
        "lens": f"trajectories of {task.tokens or TOKENS['lens']:,} tokens in texts of {length}, at all layers",
        "sweep": f"{task.rows or ROWS:,} rows of whole grids, prompts of {length} tokens, "
        + (f"{task.new_tokens} new tokens each" if task.new_tokens else "next tokens"),
    }[task.kind]
    return f"{what}; {planned.gpus} × {on.name}, {size_text(on.memory)}"


def _notes(planned: "TaskPlan") -> list[str]:
    """What is exact, and what the estimates take for granted."""
    on = planned.machine
    exact = [name for name, count in planned.placements[0].parts.items() if name != "passing" and count]
    half, single = on.matrix[16] / 1e12, on.matrix[32] / 1e12
    reached = ", ".join(f"{kind} {share:g}" for kind, share in on.shares.items()) or "all of it"
    return [
        f"exact, counted from the configuration: parameters, bytes of {', '.join(['weights', *exact])}",
        "estimated: passing (activations, pieces of logits, solving), and with it the peak; FLOPs to a few per cent; "
        "bytes moved, time",
        f"{on.name}: {half:,.4g} TFLOP/s in 16 bits, {single:,.4g} in 32, {size_text(on.bandwidth)}/s ({on.source}); "
        f"taken to be reached: {reached}; disk {size_text(on.disk)}/s",
    ]
