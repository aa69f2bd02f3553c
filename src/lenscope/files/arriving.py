"""Items that come one by one, such as the lines of a growing log, taken in batches without waiting for any to be full.

Knows: a thread that reads ahead, how many items a batch has at most, failures in the middle of what comes.
Does not know: what items are, what becomes of them.
"""

import io
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue
from typing import IO, Any, TypeVar

Arrived = TypeVar("Arrived")

# seconds that more items are waited for once there is one, and after which a thread looks whether it is still wanted
GATHER, LOOK = 0.02, 0.1


def batches_as_they_come(items: Iterable[Arrived], most: int) -> Iterator[list[Arrived]]:
    """Batches of 1 to `most` items in their order: what has come by the time that the batch before is done with.

    An item that comes alone is a batch at once. `items` are read ahead in another thread, at most two batches far.
    What reading raises is raised after all items before it were given.
    """
    arrived: Queue[tuple[str, Any]] = Queue(2 * most)
    unwanted = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not unwanted.is_set():
            try:
                arrived.put((kind, value), timeout=LOOK)
            except Full:
                continue
            return True
        return False

    def read() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
        except BaseException as error:
            put("failure", error)
        else:
            put("end", None)

    # of a process that ends nobody waits for a line any more
    threading.Thread(target=read, daemon=True, name="lenscope-arriving").start()
    batch: list[Arrived] = []
    try:
        while True:
            kind, value = _next_of(arrived)
            soon = time.monotonic() + GATHER
            while kind == "item":
                batch.append(value)
                if len(batch) == most:
                    break
                try:
                    kind, value = arrived.get(timeout=max(0.0, soon - time.monotonic()))
                except Empty:
                    break
            if batch:
                yield batch
                batch = []
            if kind == "failure":
                raise value
            if kind == "end":
                return
    finally:
        unwanted.set()


def standard_input() -> IO[Any]:
    """Standard input for a thread that may still wait for it when the process ends: by a descriptor of its own.

    Python's own object is locked while a thread waits for it, and Python needs it at its end.
    """
    try:
        raw = io.FileIO(os.dup(sys.stdin.fileno()))
    except (OSError, ValueError, AttributeError):  # none of the system's, such as a test's, or closed
        return sys.stdin
    raw.name = "standard input"
    return io.BufferedReader(raw)


def _next_of(arrived: "Queue[tuple[str, Any]]") -> tuple[str, Any]:
    while True:
        try:
            # a wait without an end cannot be interrupted everywhere
            return arrived.get(timeout=LOOK)
        except Empty:
            continue
