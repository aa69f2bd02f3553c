"""The command of sweeps: what a spec asks for, run as far as it is not there yet.

Knows: options, which of them go together, what is printed. Does not know: how rows are made and run.
"""

from typing import Annotated, Any

import typer

from lenscope.cli.options import AsJson
from lenscope.cli.streams import print_json, say, tell
from lenscope.cli.terminal import Screen, Stopped, progress_bar, show
from lenscope.cli.validation import make_folder, require_effect, require_model, require_name, require_path
from lenscope.errors import LenscopeError


def sweep_command(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="What is swept: a .yaml or .json file.")],
    output: Annotated[str | None, typer.Option("-o", "--output", help="The folder of the sweep.")] = None,
    status: Annotated[bool, typer.Option("--status", help="Say what is done; run nothing, load no model.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every row, run a sample, and say rows, time and memory.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="End after the part in which so many rows were run.")] = None,
    engine: Annotated[str, typer.Option(help="local: this process; ray: actors of Ray.")] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Ray: how many actors; default: as many as the processors allow.")
    ] = None,
    cpus_per_worker: Annotated[float | None, typer.Option(help="Ray: processors of an actor, 1 by default.")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="Ray: devices of an actor, or a share of one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run many patches of one spec: resumable, each row once, Parquet out."""
    require_path(spec, "file")
    require_name("--engine", engine, ("local", "ray"))
    for option, value in (
        ("--workers", workers),
        ("--cpus-per-worker", cpus_per_worker),
        ("--gpus-per-worker", gpus_per_worker),
    ):
        require_effect(option, value, engine == "ray", "is of Ray's actors, which --engine ray asks for")
    if status and dry_run:
        raise LenscopeError("--status and --dry-run: give one of them")
    require_effect("--limit", limit, not (status or dry_run), "ends a run, and nothing is run")
    if limit is not None and limit < 1:
        raise LenscopeError(f"--limit {limit}: give at least 1")
    if output is None and not dry_run:
        raise LenscopeError("-o: give the folder of the sweep, which is made where it does not exist")
    from lenscope.sweeps.spec import read_spec

    asked = read_spec(spec)
    if status:
        from lenscope.sweeps.sweep_folder import open_sweep

        done = open_sweep(str(output), asked).status()
        if as_json:
            print_json(done.to_json())
        else:
            say(done.line())
        return
    for model in asked.models:
        require_model(model.name)
    if dry_run:
        _try(asked, as_json)
        return
    folder = make_folder(str(output))
    from lenscope.sweeps.running import sweep
    from lenscope.sweeps.sweep_folder import open_sweep

    how: dict[str, Any] = {"workers": workers, "engine": engine, "limit": limit}
    how |= {"cpus_per_worker": cpus_per_worker} if cpus_per_worker is not None else {}
    how |= {"gpus_per_worker": gpus_per_worker} if gpus_per_worker is not None else {}
    try:
        with progress_bar("rows") as advance:
            result = sweep(asked, folder, progress=advance, **how)
    except KeyboardInterrupt as stop:
        try:
            reached = open_sweep(folder).status().line()
        except LenscopeError:
            raise stop from None
        raise Stopped(f"interrupted: {reached}; the same command goes on") from stop
    if result.damaged:
        tell(f"{len(result.damaged)} damaged and run again: {', '.join(result.damaged[:3])}")
    reached_status = result.status()
    if as_json:
        print_json({"folder": str(folder), **reached_status.to_json(), "rerun": list(result.damaged)})
    else:
        show(Screen(), result.table())
    tell(f"{folder}: {reached_status.line()}" + ("" if reached_status.complete else "; the same command goes on"))


def _try(asked: Any, as_json: bool) -> None:
    """Say what a sweep would take, from a sample."""
    from lenscope.sweeps.estimate import estimate_sweep
    from lenscope.sweeps.part_runs import PartRunner
    from lenscope.sweeps.running import prepare_sweep

    prepared = prepare_sweep(asked)
    with progress_bar("samples") as advance:
        estimate = estimate_sweep(PartRunner(prepared.bench, prepared.rows), prepared.rows, advance)
    if as_json:
        print_json(estimate.to_json())
    else:
        for line in estimate.lines():
            say(line)
