"""Answers that are complete before their request is: the rest of the body is read and dropped before the answer ends.

A server that closes a connection in which something unread lies resets it, and a client whose connection is reset loses
what it has not read yet, which may be the answer (RFC 9112, section 9.6).

Knows: the messages of one request and of its answer. Does not know: why a request is answered early, what is asked.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class AnswerAfterRequest:
    """Both sides of one request: `receive` for what comes, `send` for the answer, whose end waits for the request's.

    The whole answer is sent at once; only its end, at which the server may close the connection, is held back.

    Args:
        receive: what gives the request's messages.
        send: what takes the answer's.
        seconds: how long the end of an answer waits for the rest of the body.
        most: how many bytes of that are read and dropped.
    """

    def __init__(self, receive: Receive, send: Send, seconds: float, most: int) -> None:
        self._receive, self._send = receive, send
        self.seconds, self.most = seconds, most
        self.whole = False

    async def receive(self) -> Message:
        """The next message of the request."""
        message = await self._receive()
        self.whole = self.whole or message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the answer; the last one once the request is whole, or too long to wait for."""
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if last and not self.whole:
            if message.get("body"):
                await self._send({**message, "more_body": True})
            await self._drop_rest()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _drop_rest(self) -> None:
        dropped = 0
        try:
            async with asyncio.timeout(self.seconds):
                while not self.whole and dropped <= self.most:
                    dropped += len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass
