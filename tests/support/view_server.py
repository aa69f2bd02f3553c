"""The web view on a free port of this machine, in a thread, and a reader of its streams.

Knows: how a server is started and ended, how events are read. Does not know: what is asked.
"""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import torch
import uvicorn
from affine_lens import affine

import lenscope as ls
from lenscope.mappings.mapping import Affine
from lenscope.models.same_model import model_identity
from lenscope.web.limits import Limits
from lenscope.web.served import Served, ServedLens, ServedMapping, ServedModel
from lenscope.web.view import view_application


class ViewServer:
    """A server that runs: its address, a client of it, and what it does inside."""

    def __init__(self, served: Served, token: str | None = None, hosts: tuple[str, ...] = ()) -> None:
        self.application = view_application(served, token, hosts)
        self.answers = self.application.application.state.answers
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(self.application, log_config=None, access_log=False, timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True)
        self.client = httpx.Client(base_url=self.address, timeout=120)

    def post(self, endpoint: str, request: Any, **how: Any) -> httpx.Response:
        return self.client.post(f"/api/{endpoint}", json=request, **how)

    def events(self, endpoint: str, request: Any, **how: Any) -> list[tuple[str, Any]]:
        """All events of a stream."""
        return list(self.stream(endpoint, request, **how))

    def stream(self, endpoint: str, request: Any, **how: Any) -> Iterator[tuple[str, Any]]:
        """Events as they come; closing the iterator closes the connection."""
        with (
            httpx.Client(base_url=self.address, timeout=120) as client,
            client.stream("POST", f"/api/{endpoint}", json=request, **how) as answer,
        ):
            if answer.status_code != 200:
                answer.read()
                raise AssertionError(f"{answer.status_code}: {answer.text}")
            assert answer.headers["content-type"].startswith("text/event-stream")
            name = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield name, json.loads(line.removeprefix("data: "))

    def ready(self, within: float = 60.0) -> bool:
        """Whether what the server does before anyone asks is done, within some seconds."""
        end = time.monotonic() + within
        while time.monotonic() < end and any(worker.before for worker in self.answers.workers):
            time.sleep(0.01)
        return not any(worker.before for worker in self.answers.workers)

    def idle(self, within: float = 1.0) -> bool:
        """Whether nothing runs or waits any more, within some seconds."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            if all(worker.running is None and not len(worker) for worker in self.answers.workers):
                return True
            time.sleep(0.01)
        return False


@contextmanager
def serving(served: Served, token: str | None = None, hosts: tuple[str, ...] = ()) -> Iterator[ViewServer]:
    """Within the block a server runs."""
    one = ViewServer(served, token, hosts)
    one.thread.start()
    end = time.monotonic() + 30
    while not one.server.started and time.monotonic() < end:
        time.sleep(0.01)
    try:
        yield one
    finally:
        one.client.close()
        one.server.should_exit = True
        one.thread.join(30)
        one.listener.close()


def serve_both(lm: ls.LM, other: ls.LM, **limits: int) -> Served:
    """Two models of one size, a lens of the first and a mapping between the two, which is the identity."""
    eye = torch.eye(lm.hidden_size)
    lens = replace(affine(lm), report={"lens": "random lens"})
    across = Affine({None: (eye, torch.zeros(lm.hidden_size))}, model_identity(lm), model_identity(other))
    return Served(
        [ServedModel(lm, "tiny"), ServedModel(other, "other", {}, "across")],
        [ServedLens(ls.Lens(lm, lens), "lens-folder")],
        {"across": ServedMapping(across, "mapping-folder")},
        Limits(**{"prompt_tokens": 40, "new_tokens": 12, "queue": 4, **limits}),
    )
