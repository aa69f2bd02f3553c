"""The command of sweeps: what a spec asks for, run as far as it is not there yet.

Knows: options, which of them go together, what is printed. Does not know: how rows are made and run.
"""

from typing import Annotated, Any

import typer

from lenscope.cli.options import AsJson
from lenscope.cli.streams import print_json, say, tell
from lenscope.cli.terminal import Screen, Stopped, progress_bar, show
from lenscope.cli.validation import make_folder, require_effect, require_model, require_name, require_path
from lenscope.errors import LenscopeError, naming_place


def sweep_command(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="A .yaml or .json file that says what is patched where.")],
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Folder of the sweep; it is created if needed.")
    ] = None,
    status: Annotated[
        bool, typer.Option("--status", help="Say how much is done. Nothing is run and no model is loaded.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every row, run a sample, and estimate rows, time and memory.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(help="Stop after about this many rows; the same command continues.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Who runs the rows: local (this process) or ray (actors of Ray).")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(help="With --engine ray: number of actors; default: as many as the processors allow.")
    ] = None,
    cpus_per_worker: Annotated[
        float | None, typer.Option(help="With --engine ray: processors of an actor; default: 1.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="With --engine ray: GPUs of an actor, or a fraction of one; default: 0.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run many patches from one spec file.

    Rows are written to Parquet files part by part. A run that is killed continues with the same command, and each row
    is run once.

    \b
    Examples:
      lenscope sweep spec.yaml -o sweep --dry-run
      lenscope sweep spec.yaml -o sweep
    """
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
    with naming_place(asked.where):
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
