"""What a sweep is said to cost is what it costs."""

import pytest
from counted_flops import CountedFlops

import lenscope as ls
from lenscope.planning.plan import Task, plan
from lenscope.planning.sweep_costs import grid_rows, rows_at_once


@pytest.mark.parametrize(("new", "tolerance"), [(0, 0.05), (8, 0.1)])
def test_products_are_those_that_are_made(llama, shape, documents, slow, new, tolerance):
    rows = grid_rows(shape)
    works = plan(shape, Task("sweep", rows=rows, length=20, new_tokens=new), slow).placements[0].works
    scope = ls.Patchscope(llama, ls.Target(documents[0][:20], at=-1))

    def grid():
        states = llama.read(documents[1][:20], positions=-1)
        return scope.generate(states, max_new_tokens=new) if new else scope.predict(states)

    grid()
    with CountedFlops() as counted:
        assert len(grid().ids) == rows
    # how many rows write alike depends on what they write
    assert sum(part.work.flops for part in works) == pytest.approx(counted.total, rel=tolerance)


def test_rows_run_together_within_the_engine_s_budget(shape):
    assert rows_at_once(shape, 20, 0) == grid_rows(shape) == 36
