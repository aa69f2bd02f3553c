"""Batches of what comes: in order, none waits to be full, failures come behind what was before them."""

import threading

import pytest

from lenscope.errors import LenscopeError
from lenscope.files import arriving
from lenscope.files.arriving import batches_as_they_come


def test_all_items_come_in_order_and_no_batch_is_too_large():
    batches = list(batches_as_they_come(range(100), 7))
    assert [i for batch in batches for i in batch] == list(range(100))
    assert max(map(len, batches)) == 7
    assert list(batches_as_they_come([], 7)) == []


def test_an_item_that_comes_alone_is_a_batch_at_once():
    answered = threading.Event()

    def items():
        for n in range(3):
            if n:
                assert answered.wait(10), "the item before was not answered while this one was waited for"
            answered.clear()
            yield n

    batches = []
    for batch in batches_as_they_come(items(), 32):
        batches.append(batch)
        answered.set()
    assert batches == [[0], [1], [2]]


def test_what_comes_while_a_batch_is_worked_on_is_the_next_batch():
    there = threading.Event()

    def items():
        yield 0
        assert there.wait(10)
        yield from range(1, 5)

    batches = batches_as_they_come(items(), 32)
    assert next(batches) == [0]
    there.set()
    assert list(batches) == [[1, 2, 3, 4]]


@pytest.mark.parametrize("error", [LenscopeError("line 4: is no JSON"), KeyboardInterrupt()])
def test_failures_come_behind_what_was_before_them(error):
    def items():
        yield from range(3)
        raise error

    batches = batches_as_they_come(items(), 32)
    assert next(batches) == [0, 1, 2]
    with pytest.raises(type(error)):
        next(batches)


def test_reading_ahead_ends_where_nobody_wants_more(monkeypatch):
    monkeypatch.setattr(arriving, "LOOK", 0.01)
    ended = threading.Event()
    read = []

    def items():
        try:
            for n in range(10**6):
                read.append(n)
                yield n
        finally:
            ended.set()

    stream = items()
    batches = batches_as_they_come(stream, 2)
    assert next(batches) == [0, 1]
    batches.close()
    for thread in threading.enumerate():
        if thread.name == "lenscope-arriving":
            thread.join(10)
    stream.close()
    assert ended.is_set()
    assert len(read) < 12
