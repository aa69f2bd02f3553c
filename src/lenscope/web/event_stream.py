"""Answers as they come: jobs whose readers are watched, server-sent events with heartbeats.

Knows: how events are written, how a reader that leaves is noticed. Does not know: what events say, models.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from lenscope.web.worker import END, QUEUE, Event, Job, Worker

HEARTBEAT_SECONDS = 5.0
STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
Message = MutableMapping[str, Any]
Beside = Callable[[Awaitable[Any]], Awaitable[Any]]


class ReaderLeft(Exception):
    """Nobody reads the answer any more."""


def json_bytes(value: Any) -> bytes:
    """A value as JSON; what is not finite is null."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        return json.dumps(_without_infinity(value), allow_nan=False, separators=(",", ":")).encode()


def event_bytes(name: str, data: bytes) -> bytes:
    """One server-sent event; JSON of `json_bytes` is one line."""
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


@asynccontextmanager
async def watched(worker: Worker, job: Job, receive: Callable[[], Awaitable[Message]]) -> AsyncIterator[Beside]:
    """Within the block a job waits or runs; it is taken back when the block ends, or its reader leaves.

    Gives a function that awaits something beside the reader: it raises ReaderLeft once that has left.
    """
    leaving = asyncio.create_task(_left(receive))

    async def beside(awaited: Awaitable[Any]) -> Any:
        task = asyncio.ensure_future(awaited)
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise ReaderLeft
        return task.result()

    try:
        yield beside
    finally:
        worker.cancel(job)
        leaving.cancel()


async def _left(receive: Callable[[], Awaitable[Message]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events of a job that was submitted; it ends where the reader leaves.

    Args:
        worker: whose job it is.
        job: gives events; those whose data are bytes are sent.
        failed: gives the line that says what went wrong.
        finished: called with all events at the end.
    """

    media_type = "text/event-stream"

    def __init__(
        self, worker: Worker, job: Job, failed: Callable[[BaseException], str], finished: Callable[[list[Event]], None]
    ) -> None:
        super().__init__(headers=STREAM_HEADERS)
        del self.headers["content-length"]
        self.worker, self.job, self.failed, self.finished = worker, job, failed, finished

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Send all events."""

        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            async with watched(self.worker, self.job, receive) as beside:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await write(b": events follow\n\n")
                try:
                    await self._send_job(beside, write)
                except ReaderLeft:
                    raise
                except Exception as error:
                    await write(event_bytes("error", json_bytes({"error": self.failed(error)})))
                await write(b"", more=False)
        except (ReaderLeft, OSError):
            pass

    async def _send_job(self, beside: Beside, write: Callable[[bytes], Awaitable[None]]) -> None:
        every: list[Event] = []
        while (event := await beside(self.job.next(HEARTBEAT_SECONDS))) is not END:
            if event is None:
                await write(b": still at it\n\n")
                continue
            name, data = event
            if name == QUEUE:
                await write(event_bytes(name, json_bytes(data)))
                continue
            every.append(event)
            if isinstance(data, bytes):
                await beside(write(event_bytes(name, data)))
        self.finished(every)


def replayed(events: Iterable[Event]) -> Response:
    """Server-sent events that were sent before."""
    body = b"".join(event_bytes(*event) for event in events if isinstance(event[1], bytes))
    return Response(body, media_type="text/event-stream", headers=STREAM_HEADERS)


async def whole_answer(request: Request, worker: Worker, job: Job) -> list[Event]:
    """All events of a job that was submitted; ReaderLeft where its reader leaves before."""
    async with watched(worker, job, request.receive) as beside:
        events: list[Event] = await beside(job.events())
        return [event for event in events if event[0] != QUEUE]


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinity(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
