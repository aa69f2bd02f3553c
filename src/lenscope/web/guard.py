"""What reaches the application at all: this page's own requests, of a size and type that it takes, and nobody else's.

Knows: hosts, origins, the token, sizes and types of bodies, the headers that every answer carries.
Does not know: what is asked.
"""

import asyncio
import hmac
import json
import logging
from collections.abc import Collection
from typing import Any

from lenscope.web.unread_bodies import AnswerAfterRequest, Message, Receive, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::", "")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
# a body that takes longer is that of a client that never meant to finish
BODY_SECONDS = 30.0
# of a body that is refused or not asked for, this many times what a body may have is read and dropped
DROPPED_BODIES = 64


class _Refused(Exception):
    """A request that is answered here: its status, the line that says why, and headers."""

    def __init__(self, status: int, line: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(line)
        self.status, self.line, self.headers = status, line, headers


class Guard:
    """An ASGI application around another, which sees only what may come.

    Args:
        application: what is guarded.
        hosts: names under which the server may be called, beside the loopback's.
        token: what every call of /api must carry; None: nothing.
        posts: the paths that take a JSON body.
        most: how many bytes a body may have.
    """

    def __init__(
        self, application: Any, hosts: Collection[str], token: str | None, posts: Collection[str], most: int
    ) -> None:
        self.application = application
        self.anywhere = token is not None and any(host in EVERYWHERE for host in hosts)
        self.hosts = {*LOOPBACK, *(host.lower() for host in hosts if host not in EVERYWHERE)}
        self.token = None if token is None else token.encode()
        self.posts = frozenset(posts)
        self.most = most

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return

        both = AnswerAfterRequest(receive, send, BODY_SECONDS, DROPPED_BODIES * self.most)
        receive = both.receive
        finished = False

        async def with_headers(message: Message) -> None:
            nonlocal finished
            finished = message["type"] == "http.response.body" and not message.get("more_body", False)
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message["headers"]}
                not_stored = () if b"cache-control" in own else ((b"cache-control", b"no-store"),)
                message["headers"] = [*message["headers"], *HEADERS, *not_stored]
            await both.send(message)

        try:
            self._check(scope)
            if scope["method"] == "POST" and scope["path"] in self.posts:
                receive = await self._with_body(scope, receive)
        except _Refused as refused:
            body = json.dumps({"error": refused.line}).encode()
            size = (b"content-length", str(len(body)).encode())
            headers = [(b"content-type", b"application/json"), size, *refused.headers]
            await with_headers({"type": "http.response.start", "status": refused.status, "headers": headers})
            await with_headers({"type": "http.response.body", "body": body})
            return
        try:
            await self.application(scope, receive, with_headers)
        except Exception:
            logging.getLogger("lenscope").exception("a request of the web view failed: %s", scope["path"])
            # who asked has the whole answer, which says so, and the connection serves its next request
            if not finished:
                raise

    def _check(self, scope: Message) -> None:
        hosts = _values(scope, b"host")
        name = _host_name(hosts[0]) if len(hosts) == 1 else None
        if name is None or not (self.anywhere or name in self.hosts):
            given = ", ".join(hosts) or "none"
            raise _Refused(421, f"host {given[:100]}: this server is called {', '.join(sorted(self.hosts))}")
        for origin in _values(scope, b"origin"):
            scheme, _, rest = origin.partition("://")
            if scheme.lower() not in ("http", "https") or rest.lower() != hosts[0].lower():
                raise _Refused(403, f"origin {origin[:100]}: only this server's own page may ask")
        # a link elsewhere may open the page, and may do nothing more
        opens = scope["method"] == "GET" and scope["path"] == "/" and _values(scope, b"sec-fetch-dest") == ["document"]
        if not opens and any(site not in ("same-origin", "none") for site in _values(scope, b"sec-fetch-site")):
            raise _Refused(403, "a request from another site: only this server's own page may ask")
        if self.token is not None and (scope["path"] + "/").startswith("/api/"):
            scheme, _, given = (_values(scope, b"authorization") or [""])[0].partition(" ")
            same = hmac.compare_digest(given.strip().encode("latin-1"), self.token)
            if scheme.lower() != "bearer" or not same:
                line = "the token is missing or wrong: open the address that the server printed when it was started"
                raise _Refused(401, line, (b"www-authenticate", b"Bearer"))

    async def _with_body(self, scope: Message, receive: Receive) -> Receive:
        kinds = _values(scope, b"content-type")
        kind, _, rest = (kinds[0] if len(kinds) == 1 else "").lower().partition(";")
        charset = rest.strip().removeprefix("charset=").strip('"') if rest.strip().startswith("charset=") else ""
        if kind.strip() != "application/json" or charset not in ("", "utf-8", "utf8"):
            raise _Refused(415, "the body: send JSON in UTF-8, with content-type application/json")
        if _values(scope, b"content-encoding"):
            raise _Refused(415, "the body: send it as it is, without content-encoding")
        too_large = _Refused(413, f"the body: this server takes at most {self.most} bytes", (b"connection", b"close"))
        for length in _values(scope, b"content-length"):
            if not length.isdigit() or len(length) > 12 or int(length) > self.most:
                raise too_large
        parts: list[bytes] = []
        size = 0
        while True:
            try:
                message = await asyncio.wait_for(receive(), BODY_SECONDS)
            except TimeoutError:
                raise _Refused(408, "the body: did not come in time", (b"connection", b"close")) from None
            if message["type"] != "http.request":
                raise _Refused(400, "the body: ended early")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.most:
                raise too_large
            if not message.get("more_body", False):
                break
        whole: list[Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        return replay


def _values(scope: Message, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key.lower() == name]


def _host_name(host: str) -> str | None:
    """The name in a Host header, without its port; None for what is none."""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        port = port.removeprefix(":") if port.startswith(":") or not port else "x"
        if not bracket:
            return None
    else:
        name, _, port = host.partition(":")
    if port and not (port.isascii() and port.isdigit()):
        return None
    return name.lower() or None
