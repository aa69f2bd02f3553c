"""Intervals: their tails are those of Student's t."""

from math import sqrt
from statistics import NormalDist

import pytest

from lenscope.statistics import intervals

# 97.5 percentiles of Student's t by degrees of freedom, from tables
STUDENT = {3: 3.1824, 7: 2.3646, 19: 2.0930, 59: 2.0010}


@pytest.mark.parametrize("degrees", STUDENT)
def test_tails_are_those_of_students_t(degrees):
    t = -NormalDist().inv_cdf(intervals.tail(degrees + 1)) / sqrt((degrees + 1) / degrees)
    assert t == pytest.approx(STUDENT[degrees], rel=0.01)
