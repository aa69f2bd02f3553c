"""Schedules read all rows and step on all tokens."""

import pytest

from lenscope.fitting.schedule import Schedule


def test_schedules_read_all_rows_and_step_on_all_tokens(lm):
    for rows, room, per_step in [(1, 1, 10), (125, 300_000, 256), (125, 1, 4000), (63, 1 << 30, 1 << 18), (40, 1, 700)]:
        plan = Schedule.of(lm, rows * 32, 32, room=room, per_step=per_step, ridge=True, low=None)
        assert plan.rows == rows
        assert sum(map(plan.size, range(plan.blocks))) == rows
        assert all(plan.size(n) > 0 for n in range(plan.blocks))
        assert plan.steps >= 1
        assert plan.together * (plan.steps - 1) < plan.all_parts
    big = Schedule.of(lm, 4000, 32, room=300_000, per_step=250, ridge=False, low=None)
    assert big.steps == pytest.approx(4000 / 250, abs=2)
