"""One thread for each model, which does one job after the other, and the bounded queue before it.

Knows: jobs that emit events, how a job is taken back while it waits or runs, when a queue is full.
Does not know: what jobs compute, HTTP.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from lenscope.models.interruption import Interrupted, interruptible
from lenscope.web.limits import Refusal

# what a job gives: an event's name and its data
Event = tuple[str, Any]
Emit = Callable[[str, Any], None]
Work = Callable[[Emit], None]
# what it gives last, and what it gives while it waits: how many jobs are before it
END: Event = ("", None)
QUEUE = "queue"
RETRY_AFTER = 2


class Job:
    """One piece of work for a model's thread, and the events that it gave so far, for one reader in an event loop."""

    def __init__(self, work: Work) -> None:
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

    def emit(self, name: str, data: Any) -> None:
        """Hand an event to the reader; Interrupted where that has left."""
        if self.left.is_set():
            raise Interrupted
        self.give((name, data))

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
    """Runs the jobs of one model in a thread of its own, at most `size` of them waiting; `done` counts those it ran.

    `before` is what it does, step by step, while nothing else is asked: a step that a job interrupts begins anew.
    """

    def __init__(self, name: str, size: int, before: Iterable[Callable[[], None]] = ()) -> None:
        self.name = name
        self.size = size
        self.before = deque(before)
        self.running: Job | None = None
        self.done = 0
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._run, name=f"lenscope {name}", daemon=True)

    def __len__(self) -> int:
        return len(self._waiting)

    def start(self) -> None:
        """Start the thread, unless it runs; the first job does so, too."""
        with self._changed:
            if self._open and not self._thread.ident:
                self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue; Refusal 429 where that is full."""
        self.start()
        with self._changed:
            if not self._open:
                raise Refusal(503, "the server is ending")
            if len(self._waiting) >= self.size:
                raise Refusal(
                    429, f"{self.name} is busy: {self.size} requests wait for it; ask again later", RETRY_AFTER
                )
            self._waiting.append(job)
            if self.running or len(self._waiting) > 1:
                self._tell(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Take a job back: one that waits leaves the queue, one that runs ends at its next check."""
        job.left.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job.finished.set()
                self._tell(*self._waiting)

    def close(self, timeout: float = 5.0) -> None:
        """Take back all jobs and end the thread."""
        with self._changed:
            self._open = False
            for job in [*self._waiting, *([self.running] if self.running else [])]:
                job.left.set()
                job.give(Refusal(503, "the server is ending"))
            self._waiting.clear()
            self._changed.notify()
        if self._thread.ident:
            self._thread.join(timeout)

    def _tell(self, *jobs: Job) -> None:
        """Say to jobs that wait how many are before each."""
        for job in jobs:
            job.give((QUEUE, {"position": self._waiting.index(job) + (self.running is not None)}))

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._open and not self._waiting and not self.before:
                    self._changed.wait()
                if not self._open:
                    return
                job = self.running = self._waiting.popleft() if self._waiting else None
                self._tell(*self._waiting)
            if job is None:
                self._step_before()
                continue
            self._do(job)
            with self._changed:
                self.running = None
                self.done += 1
            job.finished.set()

    def _step_before(self) -> None:
        try:
            with interruptible(lambda: bool(self._waiting) or not self._open):
                self.before[0]()
        except Interrupted:
            return
        except Exception as error:
            logging.getLogger("lenscope").info("%s could not be made ready: %s", self.name, error)
        self.before.popleft()

    def _do(self, job: Job) -> None:
        try:
            with interruptible(job.left.is_set):
                job.work(job.emit)
            job.give(END)
        except Interrupted:
            pass
        except BaseException as error:
            job.give(error)
