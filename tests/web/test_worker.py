"""Jobs, one after the other; those that nobody waits for end, those that are too many are refused."""

import asyncio
import threading

import pytest

from lenscope.models.interruption import check_interruption
from lenscope.web.limits import Refusal
from lenscope.web.worker import END, QUEUE, Job, Worker


@pytest.fixture
def worker():
    one = Worker("a model", 2)
    yield one
    one.close()


def busy(gate):
    def work(emit):
        emit("started", None)
        while not gate.wait(0.01):
            check_interruption()

    return work


def counted(n):
    return lambda emit: [emit("number", i) for i in range(n)]


async def started(worker, gate):
    job = Job(busy(gate))
    worker.submit(job)
    assert (await job.next(10))[0] == "started"
    return job


def test_events_come_in_order_and_end(worker):
    async def go():
        job = Job(counted(3))
        worker.submit(job)
        assert await job.events() == [("number", 0), ("number", 1), ("number", 2)]

    asyncio.run(go())


def test_what_a_job_raises_reaches_its_reader_and_the_next_job_runs(worker):
    async def go():
        job, following = Job(lambda emit: 1 / 0), Job(counted(1))
        worker.submit(job)
        worker.submit(following)
        with pytest.raises(ZeroDivisionError):
            await job.events()
        assert [e for e in await following.events() if e[0] != QUEUE] == [("number", 0)]

    asyncio.run(go())


def test_jobs_wait_their_turn_and_are_told_how_many_are_before_them(worker):
    async def go():
        gate = threading.Event()
        first = await started(worker, gate)
        second, third = Job(counted(0)), Job(counted(0))
        worker.submit(second)
        worker.submit(third)
        assert await second.next(1) == (QUEUE, {"position": 1})
        assert await third.next(1) == (QUEUE, {"position": 2})
        with pytest.raises(Refusal) as refused:
            worker.submit(Job(counted(0)))
        assert (refused.value.status, refused.value.retry_after > 0) == (429, True)
        worker.cancel(second)
        assert await third.next(1) == (QUEUE, {"position": 1})
        gate.set()
        assert await first.next(10) is END
        assert await third.next(10) is END

    asyncio.run(go())


def test_a_job_that_is_taken_back_ends_and_gives_nothing_more(worker):
    async def go():
        job = await started(worker, threading.Event())
        worker.cancel(job)
        assert await asyncio.to_thread(job.finished.wait, 1)
        assert await job.next(0.05) is None
        following = Job(counted(1))
        worker.submit(following)
        assert len([e for e in await following.events() if e[0] != QUEUE]) == 1

    asyncio.run(go())


def test_an_end_of_the_server_ends_all_jobs():
    async def go():
        worker = Worker("a model", 2)
        running, waiting = await started(worker, threading.Event()), Job(counted(1))
        worker.submit(waiting)
        await asyncio.to_thread(worker.close)
        for job in (running, waiting):
            with pytest.raises(Refusal, match="ending"):
                await job.events()
        with pytest.raises(Refusal, match="ending"):
            worker.submit(Job(counted(1)))

    asyncio.run(go())


def test_a_reader_whose_loop_is_gone_stops_its_job(worker):
    gate = threading.Event()
    job = asyncio.run(started(worker, gate))
    job.give(("late", None))
    assert job.left.is_set()
    assert job.finished.wait(2)


def test_what_is_done_before_gives_way_to_jobs_and_begins_anew():
    gate, steps = threading.Event(), []

    def long_step():
        steps.append("begun")
        while not gate.wait(0.01):
            check_interruption()

    async def go():
        worker = Worker("a model", 2, [long_step, lambda: 1 / 0, lambda: steps.append("the last")])
        worker.start()
        while not steps:
            await asyncio.sleep(0.01)
        job = Job(counted(1))
        worker.submit(job)
        assert await asyncio.wait_for(job.events(), 5) == [("number", 0)]
        gate.set()
        while "the last" not in steps:
            await asyncio.sleep(0.01)
        assert steps.count("begun") >= 2
        assert not worker.before
        worker.close()

    asyncio.run(go())
