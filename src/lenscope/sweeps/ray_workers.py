"""Parts run by Ray: actors that each hold the models, and write what they ran into the sweep's folder.

Knows: Ray Data's map_batches, its quiet start, what an actor that died leaves to others.
Does not know: how a part is run, which parts are missing.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lenscope.errors import LenscopeError
from lenscope.files.untrusted import reason
from lenscope.files.writing import write_text
from lenscope.sweeps.configurations import Bench
from lenscope.sweeps.part_files import PARTS, write_part
from lenscope.sweeps.part_runs import PartRunner
from lenscope.sweeps.parts import Part, SweepRows
from lenscope.sweeps.spec import SweepSpec
from lenscope.sweeps.swept_models import load_models, model_identities

# how often a part is begun: Ray starts an actor that died again without end, and gives it the part that ended it
TRIES = 5
# Bytes of shared memory that Ray takes on this machine: what actors hand over is a number for each part.
SHARED = 160 << 20


@dataclass(frozen=True)
class RayWorkers:
    """How many actors there are, and what each may use; None: as many as the processors, or devices, allow."""

    workers: int | None = None
    cpus: float = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise LenscopeError(f"workers {self.workers}: give at least 1")
        if not 0 < self.cpus < float("inf"):
            raise LenscopeError(f"cpus_per_worker {self.cpus:g}: give a number above 0")
        if not 0 <= self.gpus < float("inf"):
            raise LenscopeError(f"gpus_per_worker {self.gpus:g}: give 0, a share of a device such as 0.5, or devices")


@dataclass(frozen=True, eq=False)
class SweepJob:
    """What an actor must know: the spec, all rows, what the models must be, where parts go, its threads."""

    spec: SweepSpec
    rows: SweepRows
    models: Mapping[str, str]
    folder: Path
    threads: int


class PartWorker:
    """An actor: it loads the models of a sweep once, then runs and writes the parts whose numbers it is given."""

    def __init__(self, job: Any) -> None:
        import ray

        one: SweepJob = ray.get(job) if isinstance(job, ray.ObjectRef) else job
        torch.set_num_threads(one.threads)
        lms = load_models(one.spec.models, {})
        here = model_identities(one.spec.models, lms)
        other = [name for name in here if here[name] != one.models[name]]
        if other:
            raise LenscopeError(
                f"engine ray: the model {other[0]} of a worker has other weights than that of the driver"
            )
        self.job = one
        self.runner = PartRunner(Bench(one.spec, lms), one.rows)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Run and write the parts of a batch, and give back their numbers."""
        for number in batch["part"].tolist():
            part = self.job.rows.parts[number]
            with counted_try(self.job.folder, part):
                write_part(self.job.folder, part, self.runner.run(part))
        return batch


@contextmanager
def counted_try(folder: Path, part: Part) -> Iterator[None]:
    """Count how often a part is begun, in a file that is gone when it ends; LenscopeError where that is too often."""
    path = _tries(folder, part)
    before = int(path.read_text() or 0) if path.is_file() else 0
    if before >= TRIES:
        raise LenscopeError(
            f"engine ray: part {part.number} ended its worker {before} times, as one that is out of memory does; give "
            "the workers more of it, or fewer workers"
        )
    write_text(path, str(before + 1))
    yield
    path.unlink(missing_ok=True)


def _tries(folder: Path, part: Part) -> Path:
    return folder / PARTS / f"{part.name}.tries"


def require_ray() -> None:
    """Raise LenscopeError where Ray is not installed."""
    if find_spec("ray") is None:
        raise LenscopeError("engine ray: Ray is not installed; run: pip install 'lenscope[ray]'")


def run_with_ray(
    workers: RayWorkers, spec: SweepSpec, rows: SweepRows, models: Mapping[str, str], folder: Path,
    parts: Sequence[Part], advance: Callable[[int], None],
) -> None:  # fmt: skip
    """Run parts by actors of Ray, of a cluster where RAY_ADDRESS names one, else of this machine.

    An actor that dies is started again, and another one runs what it had: parts are files that are there whole or not
    at all. Raises LenscopeError where actors die over and over, and for what went wrong in one of them.

    Args:
        workers: how many actors, and what each may use.
        spec: the spec of the sweep.
        rows: its rows.
        models: identities of its models, by their labels.
        folder: where parts go; all actors must see it under this name.
        parts: what is run.
        advance: called with the rows of a part when it is written.
    """
    with _started(workers) as (ray, mine):
        import ray.data as data
        from ray.exceptions import RayError

        number = workers.workers or _as_many_as_fit(ray.cluster_resources(), workers)
        if mine:
            _require_resources(ray.cluster_resources(), workers, number)
        for part in parts:
            _tries(folder, part).unlink(missing_ok=True)
        threads = max(1, int(workers.cpus))
        job = ray.put(SweepJob(spec, rows, models, folder.resolve(), threads))
        items = data.from_items([{"part": p.number} for p in parts], override_num_blocks=min(len(parts), 10_000))
        done = items.map_batches(
            PartWorker,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=min(number, len(parts))),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
        )
        try:
            for row in done.iter_rows():
                advance(rows.parts[row["part"]].rows)
        except RayError as error:
            raise _in_one_line(error) from error


def _as_many_as_fit(resources: Mapping[str, float], workers: RayWorkers) -> int:
    fits = resources.get("CPU", 1) // workers.cpus
    if workers.gpus:
        fits = min(fits, resources.get("GPU", 0) // workers.gpus)
    return max(1, int(fits))


def _require_resources(resources: Mapping[str, float], workers: RayWorkers, number: int) -> None:
    """Ray waits without end for what there is not."""
    if number * workers.gpus > resources.get("GPU", 0) or number * workers.cpus > resources.get("CPU", 0):
        raise LenscopeError(
            f"engine ray: {number} workers with {workers.cpus:g} processors and {workers.gpus:g} devices each do not "
            f"fit into {resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}; give fewer workers, or less to each"
        )


@contextmanager
def _started(workers: RayWorkers) -> Iterator[tuple[Any, bool]]:
    """Ray, started without pages, prints and reports where it does not run already; then it ends with the block.

    With it comes whether it is this machine alone, which grows no further.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    mine = not ray.is_initialized()
    if mine:
        how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not os.environ.get("RAY_ADDRESS"):
            needed = int((workers.workers or 1) * workers.cpus + 0.999)
            how |= {
                "include_dashboard": False,
                "num_cpus": max(os.cpu_count() or 1, needed),
                "object_store_memory": SHARED,
            }
        ray.init(**how)
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = context.enable_auto_log_stats = False
    try:
        yield ray, mine and not os.environ.get("RAY_ADDRESS")
    finally:
        if mine:
            ray.shutdown()


def _in_one_line(error: BaseException) -> LenscopeError:
    """What went wrong in an actor, as it would be told here."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, LenscopeError):
            return LenscopeError(str(inner))
        inner = getattr(inner, "cause", None) or inner.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines_of_ours = [line for line in lines if "LenscopeError:" in line]
    if lines_of_ours:
        return LenscopeError(lines_of_ours[-1].partition("LenscopeError:")[2].strip())
    return LenscopeError(
        f"engine ray: workers failed ({reason(ValueError(lines[-1] if lines else type(error).__name__))}); what they "
        "wrote is there, and the same call goes on"
    )
