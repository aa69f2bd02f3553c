"""Ray's actors: the same files as one process writes, also where one of them is killed."""

import os
import signal
from pathlib import Path

import pytest

import lenscope as ls
from lenscope.sweeps import ray_workers
from lenscope.sweeps.part_files import PARTS
from lenscope.sweeps.parts import Part


def test_a_part_that_ends_its_worker_again_and_again_is_given_up(tmp_path):
    (tmp_path / PARTS).mkdir()
    part = Part(3, 0, 0, 1, 1, "0" * 64)
    for _ in range(ray_workers.TRIES):
        with pytest.raises(KeyboardInterrupt), ray_workers.counted_try(tmp_path, part):
            raise KeyboardInterrupt
    with (
        pytest.raises(ls.LenscopeError, match="part 3 ended its worker 5 times"),
        ray_workers.counted_try(tmp_path, part),
    ):
        pytest.fail("it was begun once more")


def test_workers_that_cannot_be_are_refused():
    for wrong in ({"workers": 0}, {"cpus": 0}, {"gpus": -1}, {"cpus": float("nan")}):
        with pytest.raises(ls.LenscopeError, match=f"{next(iter(wrong))}"):
            ray_workers.RayWorkers(**wrong)


def actors():
    """The processes of this process's own actors, by their names and parents."""
    names, parents = {}, {}
    for process in Path("/proc").iterdir():
        try:
            status = dict(
                line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line
            )
            names[int(status["Pid"])] = (process / "cmdline").read_text()
            parents[int(status["Pid"])] = int(status["PPid"])
        except (OSError, KeyError):
            continue

    def mine(pid):
        return pid == os.getpid() or (pid in parents and mine(parents[pid]))

    return [pid for pid, name in names.items() if name.startswith("ray::") and "PartWorker" in name and mine(pid)]


@pytest.mark.skipif(ray_workers.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="actors are found by /proc")
def test_a_killed_actor_loses_nothing(model, tmp_path):
    """Two actors, one of which is killed in the middle: byte for byte what this process writes alone."""
    spec = {
        "model": model,
        "sources": {"prompts": [f"the cat {n}" for n in range(12)]},
        "targets": "identity",
        "methods": ["predict", {"generate": 3}],
        "controls": ["random"],
        "rows_per_part": 10,
    }
    killed = []

    def kill(done, total):
        running = actors()
        if not killed and done > total // 4 and running:
            os.kill(running[0], signal.SIGKILL)
            killed.append(running[0])

    by_ray = ls.sweep(spec, tmp_path / "ray", engine="ray", workers=2, progress=kill)
    assert killed
    alone = ls.sweep(spec, tmp_path / "alone")
    files = [{p.name: p.read_bytes() for p in (one.folder / PARTS).iterdir()} for one in (by_ray, alone)]
    assert files[0] == files[1]
