"""One thread for each model, which does one job after the other, and the bounded queue before it.

Knows: jobs as generators of events, how a job is taken back while it waits or runs, when a queue is full.
Does not know: what jobs compute, HTTP.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from lenscope.models.interruption import Interrupted, interruptible
from lenscope.web.limits import Refusal

# what a job gives: an event's name and its data
Event = tuple[str, Any]
# what it gives last
END: Event = ("", None)
RETRY_AFTER = 2


class Job:
    """One piece of work for a model's thread, and the events that it gave so far, for one reader in an event loop."""

    def __init__(self, work: Callable[[], Iterable[Event]]) -> None:
        self.work = work
        self.left = threading.Event()
        self.finished = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | BaseException] = asyncio.Queue()

    def give(self, event: Event | BaseException) -> None:
        """Hand an event, or what went wrong, to the reader; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the server is ending: nobody reads any more
            self.left.set()

    async def next(self, timeout: float) -> Event | None:
        """The next event, END behind the last, None where none came in time; raises what the job raised."""
        try:
            event = await asyncio.wait_for(self._events.get(), timeout)
        except TimeoutError:
            return None
        if isinstance(event, BaseException):
            raise event
        return event

    async def events(self) -> list[Event]:
        """All events until the end."""
        every: list[Event] = []
        while (event := await self.next(3600)) is not END:
            every += [] if event is None else [event]
        return every


class Worker:
    """Runs the jobs of one model in a thread of its own, at most `size` of them waiting."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.running: Job | None = None
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._run, name=f"lenscope {name}", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue; Refusal 429 where that is full."""
        with self._changed:
            if not self._open:
                raise Refusal(503, "the server is ending")
            if len(self._waiting) >= self.size:
                raise Refusal(
                    429, f"{self.name} is busy: {self.size} requests wait for it; ask again later", RETRY_AFTER
                )
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Take a job back: one that waits leaves the queue, one that runs ends at its next check."""
        job.left.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job.finished.set()

    def close(self, timeout: float = 5.0) -> None:
        """Take back all jobs and end the thread."""
        with self._changed:
            self._open = False
            for job in [*self._waiting, *([self.running] if self.running else [])]:
                job.left.set()
                job.give(Refusal(503, "the server is ending"))
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._open and not self._waiting:
                    self._changed.wait()
                if not self._open:
                    return
                job = self.running = self._waiting.popleft()
            try:
                self._do(job)
            finally:
                self.running = None
                job.finished.set()

    def _do(self, job: Job) -> None:
        try:
            with interruptible(job.left.is_set):
                for event in job.work():
                    if job.left.is_set():
                        return
                    job.give(event)
            job.give(END)
        except Interrupted:
            pass
        except BaseException as error:
            job.give(error)
