"""A sweep, run: what is asked for becomes rows, all of them are checked, and what of them is not there is run.

Knows: the order of checks, what is not run again, where a run may end. Does not know: how a part is run, how Ray is.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenscope.errors import LenscopeError, naming_place
from lenscope.files.writing import folder_lock
from lenscope.models.inputs import count
from lenscope.models.language_model import LM
from lenscope.models.progress import Progress
from lenscope.sweeps.configurations import Bench
from lenscope.sweeps.listed_prompts import check_first_prompts, listed_prompts
from lenscope.sweeps.manifest import manifest_of, read_manifest, require_same_sweep, write_manifest
from lenscope.sweeps.part_files import PARTS, part_state, write_part
from lenscope.sweeps.part_runs import PartRunner
from lenscope.sweeps.parts import Part, SweepRows, sweep_rows
from lenscope.sweeps.ray_workers import RayWorkers, require_ray, run_with_ray
from lenscope.sweeps.spec import SweepSpec, read_spec
from lenscope.sweeps.spots import read_spots
from lenscope.sweeps.sweep_folder import Sweep, spec_head
from lenscope.sweeps.swept_models import load_models, model_identities

ENGINES = ("local", "ray")


@dataclass(frozen=True, eq=False)
class PreparedSweep:
    """A sweep whose every row is known and checked: its models, its rows, and the manifest of its folder."""

    spec: SweepSpec
    bench: Bench
    rows: SweepRows
    manifest: dict[str, Any]


def sweep(
    spec: "SweepSpec | Mapping[str, Any] | str | os.PathLike[str]",
    folder: str | os.PathLike[str],
    *,
    models: Mapping[str, LM] | None = None,
    engine: str = "local",
    workers: int | None = None,
    cpus_per_worker: float = 1,
    gpus_per_worker: float = 0,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Run many patches from one spec, part by part, and give the rows as one data set.

    A spec multiplies sources, layers, positions, targets, mappings, models and methods (docs/reference/sweep-specs.md
    has every key); rows that are asked for twice are run once. All rows are checked before any is run. Rows that the
    folder has already are not run again. A part is a file, parts/NUMBER-DIGEST.parquet, which is there whole or not at
    all: a run that was killed is completed by the same call, parts that are damaged are run again, and numbers depend
    neither on how often a run was killed nor on the engine, to the last bit on machines and numbers of threads that are
    alike.

    Args:
        spec: a .yaml or .json file, or a dictionary with the same keys.
        folder: where the manifest and the parts go; it is created if needed.
        models: models in memory, by the names that the spec gives them; others are loaded.
        engine: "local", this process, or "ray", actors of Ray Data, which write parts into the folder themselves.
        workers: how many Ray actors there are, each with models of its own; None: as many as the processors allow.
        cpus_per_worker: processors of an actor, and its threads.
        gpus_per_worker: devices of an actor, or its share of one.
        limit: end after the part in which so many rows were run; None: run all.
        progress: called with how many rows are done and how many there are.

    Raises LenscopeError, before any model runs, for a spec that is none, for a row that cannot be run (it names the
    prompt and the key), for a folder that holds another sweep or is written to by another run, and without Ray where it
    is asked for; and where a part cannot be written.
    """
    if engine not in ENGINES:
        raise LenscopeError(f"engine {engine!r}: give {' or '.join(ENGINES)}")
    if limit is not None:
        limit = count(limit, "limit")
    ray_workers = None
    if engine == "ray":
        require_ray()
        ray_workers = RayWorkers(workers, cpus_per_worker, gpus_per_worker)
        if models:
            raise LenscopeError(
                "models: Ray's actors load models by their names; leave models out, or use engine local"
            )
    folder = Path(folder)
    known_spec = read_spec(spec)
    with folder_lock(folder):
        before = read_manifest(folder)
        if before is not None:
            # what is seen without a model is seen at once
            require_same_sweep(folder, before, spec_head(known_spec))
        prepared = prepare_sweep(known_spec, models, anywhere=ray_workers is not None)
        bench: Bench | None = prepared.bench
        rows, manifest = prepared.rows, prepared.manifest
        del prepared
        if before is not None:
            require_same_sweep(folder, before, manifest)
        else:
            write_manifest(folder, manifest)
        _make_folder(folder / PARTS)
        states = [part_state(folder, part) for part in rows.parts]
        damaged = tuple(
            f"{PARTS}/{part.name}" for part, state in zip(rows.parts, states, strict=True) if state == "damaged"
        )
        done = sum(part.rows for part, state in zip(rows.parts, states, strict=True) if state == "whole")
        missing = [part for part, state in zip(rows.parts, states, strict=True) if state != "whole"]
        parts = _limited(missing, limit)

        def advance(n: int) -> None:
            nonlocal done
            done += n
            if progress is not None:
                progress(done, rows.total)

        advance(0)
        if ray_workers is not None and parts:
            # the models of this process make room for those of the actors
            bench = None
            run_with_ray(ray_workers, known_spec, rows, manifest["models"], folder, parts, advance)
        elif bench is not None:
            run_parts(PartRunner(bench, rows), folder, parts, advance)
        return Sweep(folder, manifest, damaged)


def prepare_sweep(spec: SweepSpec, models: Mapping[str, LM] | None = None, anywhere: bool = False) -> PreparedSweep:
    """Load the models of a spec and check every row of it; LenscopeError, in one line, for what cannot be run.

    `models` are those in memory, by their names in the spec. `anywhere`: the others are loaded to the CPU.
    """
    with naming_place(spec.where):
        check_first_prompts(spec.sources)
        lms = load_models(spec.models, models or {}, anywhere)
        spots = read_spots(listed_prompts(spec.sources), lms[0])
        bench = Bench(spec, lms)
        bench.require_answers(spots.answers)
        rows = sweep_rows(spots, bench.configurations(spots.layer_sets), spec.seed, spec.rows_per_part)
    identities = model_identities(spec.models, lms)
    return PreparedSweep(spec, bench, rows, manifest_of(spec, spec_head(spec)["inputs"], identities, rows.parts))


def run_parts(runner: PartRunner, folder: Path, parts: Iterable[Part], advance: Callable[[int], None]) -> None:
    """Run parts one after the other, and write each when it is done; `advance` is told how many rows that were."""
    for part in parts:
        write_part(folder, part, runner.run(part))
        advance(part.rows)


def _limited(parts: Sequence[Part], limit: int | None) -> list[Part]:
    """The first parts, up to the one in which `limit` rows are reached."""
    taken: list[Part] = []
    rows = 0
    for part in parts:
        if limit is not None and rows >= limit:
            break
        taken.append(part)
        rows += part.rows
    return taken


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise LenscopeError(f"{folder}: cannot be made ({error.strerror or error})") from error
