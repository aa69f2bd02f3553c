"""Several batches of one model that go through it block by block: all through one block before any through the next.

Knows: whose turn it is, at which block each batch waits.
Does not know: where a block's weights come from (weight_stream.py), what is read of a batch (runner.py).

Each batch runs the model's own forward in a thread of its own, which waits before every block; one thread runs at a
time. So whatever a model does between its blocks (masks by layer, shared keys, parallel streams) is its own doing.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import copy_context

import torch

from lenscope.models.weight_stream import WeightStream, waiting

Job = Callable[[], None]


class _Ended(BaseException):
    """Raised in a batch that is waiting when all of them are to end."""


class _Turn:
    """One job in a thread of its own: it runs from `go` until it waits before a block (`at`), or ends (`at` None)."""

    def __init__(self, job: Job) -> None:
        self.at: int | None = -1
        self.error: BaseException | None = None
        self._job, self._ending = job, False
        self._mine, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        context, precision = copy_context(), _precision()
        self._thread = threading.Thread(target=context.run, args=(self._run, precision), daemon=True)
        self._thread.start()

    def go(self) -> None:
        """Let the job run up to where it waits next, or to its end; raises what it raised."""
        self._mine.release()
        self._theirs.acquire()
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        """Let the job end wherever it waits."""
        self._ending = True
        self._mine.release()
        self._thread.join()

    def _run(self, precision: list[tuple[str, torch.dtype]]) -> None:
        self._mine.acquire()
        waiting.set(self._wait)
        try:
            if not self._ending:
                with torch.no_grad(), ExitStack() as undo:
                    for device, dtype in precision:
                        undo.enter_context(torch.autocast(device, dtype))
                    self._job()
        except _Ended:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.at = None
            self._theirs.release()

    def _wait(self, number: int) -> None:
        self.at = number
        self._theirs.release()
        self._mine.acquire()
        if self._ending:
            raise _Ended


def _precision() -> list[tuple[str, torch.dtype]]:
    """The dtypes that products are made in by autocast in this thread: a new thread knows nothing of it."""
    return [(d, torch.get_autocast_dtype(d)) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)]


def take_turns(stream: WeightStream, jobs: Sequence[Job]) -> None:
    """Run jobs that run a model whose weights are streamed, all of them up to a block before any beyond it.

    What one raises ends all of them, and is raised.
    """
    turns = [_Turn(job) for job in jobs]
    try:
        at = -1
        while blocks := {turn.at for turn in turns if turn.at is not None}:
            at = min((n for n in blocks if n >= at), default=min(blocks))
            if at >= 0:
                stream.need(at)
            for turn in turns:
                if turn.at == at:
                    turn.go()
    finally:
        for turn in turns:
            turn.end()
