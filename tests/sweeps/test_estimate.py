"""What a sweep will take, from a sample: the time of its rows, without what is done once for a model."""

import pytest

from lenscope.sweeps import estimate
from lenscope.sweeps.part_runs import PartRunner
from lenscope.sweeps.running import prepare_sweep
from lenscope.sweeps.spec import read_spec

SPEC = {
    "model": "tiny",
    "sources": {"prompts": ["the cat", "on the mat", "a dog"], "layers": [1, 2]},
    "targets": "identity",
    "methods": ["predict", {"generate": 2}],
    "controls": ["random", "unpatched"],
    "rows_per_part": 4,
}


@pytest.mark.parametrize("at_first", [1, 2])
def test_what_is_measured_once_of_a_model_is_no_part_of_the_time_of_a_row(lm, monkeypatch, at_first):
    """By a clock: a row takes a second, and a measurement 100, made in the first run or in the first with many rows."""
    prepared = prepare_sweep(read_spec(SPEC), {"tiny": lm})
    runner = PartRunner(prepared.bench, prepared.rows)
    now, measured = 0.0, []

    class Clock:
        @staticmethod
        def perf_counter():
            return now

    def run(self, part):
        nonlocal now
        table = plain(self, part)
        now += part.rows
        if not measured and part.stop - part.start >= at_first:
            measured.append(part)
            now += 100
            monkeypatch.setitem(lm.runner.measured.values, ("test",), 1)
        return table

    plain = PartRunner.run
    # what a tiny model has measured elsewhere is no part of this test
    for part in prepared.rows.parts:
        runner.run(part)
    monkeypatch.setattr(PartRunner, "run", run)
    monkeypatch.setattr(estimate, "time", Clock)
    found = estimate.estimate_sweep(runner, prepared.rows)
    assert measured
    assert found.seconds == found.rows == prepared.rows.total
    assert found.sample_seconds == found.sample_rows
