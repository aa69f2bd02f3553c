"""Time is that of the slowest of what overlaps, and of what does not."""

import pytest

from lenscope.planning.costs import Work, timed_work, what_limits


def test_the_slowest_decides(slow):
    assert timed_work(Work("w", 4e9, 32, 1e9), slow).seconds == pytest.approx(2.0)
    bound = timed_work(Work("w", 4e9, 32, 5e9), slow)
    assert (bound.seconds, bound.limit) == (pytest.approx(5.0), "bandwidth")
    assert timed_work(Work("w", 4e9, 16, 0), slow).seconds == pytest.approx(4.0)


def test_links_and_disks_come_on_top(slow):
    near = timed_work(Work("w", 2e9, 32, 0, sent=1e8), slow)
    far = timed_work(Work("w", 2e9, 32, 0, sent=1e8, far=True), slow)
    assert (near.seconds, far.seconds, far.limit) == (pytest.approx(2.0), pytest.approx(11.0), "network")
    read = timed_work(Work("w", 2e9, 32, 0, read=5e6), slow)
    assert (read.seconds, read.limit) == (pytest.approx(6.0), "disk")
    assert what_limits([near, near, far]) == "network"
