"""What a server does before anyone asks is all that it can do, and none of it fails."""

from lenscope.web.warm_up import steps_before


def test_every_step_runs(served):
    for model in (0, 1):
        steps = steps_before(served, model)
        assert len(steps) == (5 if model == 0 else 1)
        for step in steps:
            step()
