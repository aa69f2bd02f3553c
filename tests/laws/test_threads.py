"""Threads: whatever two of them do with a model at once, each result is what it is alone, or refused in one line."""

import pytest
import threads


@pytest.fixture(scope="module")
def expected():
    return threads.alone(threads.model())


@pytest.mark.parametrize("case", ["one", "first calls", "one model, two objects", "two models"])
def test_two_threads_get_what_one_gets(expected, case):
    lms = threads.cases()[case]
    counts = threads.together(lms, expected, 60)
    assert {*counts} <= {"equal", "refused"}, counts
    assert sum(counts.values()) == 60
    assert counts["equal"] > 40
    for lm in lms:
        assert threads.unlike(lm, expected) == []
