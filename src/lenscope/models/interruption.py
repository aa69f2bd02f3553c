"""A cooperative way to end a long computation: whoever waits for it says when, whoever computes asks now and then.

Knows: which question is asked in this thread or task, how a forward pass asks it before every block.
Does not know: who stops waiting, or why; what is computed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from torch import nn

ShouldStop = Callable[[], bool]
_question: ContextVar[ShouldStop | None] = ContextVar("should_stop", default=None)


class Interrupted(BaseException):
    """Nobody waits for the computation any more.

    It is no Exception: what counts failures of a model, or mends them, must not take it for one.
    """


@contextmanager
def interruptible(should_stop: ShouldStop) -> Iterator[None]:
    """Within the block, what this thread or task computes raises Interrupted soon after `should_stop()` is true.

    It is asked before each block of a forward pass, between the pieces of a reduction over the vocabulary, and between
    the chunks and steps of the engine; where a model's lock is waited for, too. Blocks within one another all count.
    The model is sound afterwards: hooks are gone and locks are free.
    """
    outer = _question.get()
    token = _question.set(should_stop if outer is None else lambda: should_stop() or outer())
    try:
        yield
    finally:
        # a generator that is closed in another task leaves nothing there to put back
        with suppress(ValueError):
            _question.reset(token)


def may_stop() -> bool:
    """Whether anything in this thread or task may be interrupted."""
    return _question.get() is not None


def check_interruption() -> None:
    """Raise Interrupted where this thread's or task's computation is not waited for any more."""
    should_stop = _question.get()
    if should_stop is not None and should_stop():
        raise Interrupted


@contextmanager
def stoppable(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block each of `blocks` asks before it runs."""

    def ask(*_: Any) -> None:
        check_interruption()

    with ExitStack() as undo:
        for block in blocks:
            undo.callback(block.register_forward_pre_hook(ask).remove)
        yield


@contextmanager
def held(lock: Any, seconds: float = 0.05) -> Iterator[None]:
    """Hold a lock within the block; a computation that may be interrupted asks while it waits for it."""
    if may_stop():
        while not lock.acquire(timeout=seconds):
            check_interruption()
    else:
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
