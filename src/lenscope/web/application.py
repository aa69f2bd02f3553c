"""The server: every path, and how what goes wrong is said.

Knows: which path answers what, how a request becomes a job, a job an answer, and an error a status with one line.
Does not know: what endpoints compute, who may ask (guard.py), the command line.
"""

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Annotated, Any

import torch
from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lenscope._version import __version__
from lenscope.errors import LenscopeError
from lenscope.web.endpoint_table import ENDPOINTS
from lenscope.web.endpoints import RESULT, ServedEndpoint
from lenscope.web.event_stream import EventStream, ReaderLeft, json_bytes, replayed, whole_answer
from lenscope.web.exports import KINDS, ExportedFile, content_of, exported
from lenscope.web.guard import Guard
from lenscope.web.limits import Refusal
from lenscope.web.page_files import ServedFile, page_files
from lenscope.web.python_snippets import python_of
from lenscope.web.requests import ErrorOut, ExportIn, TokenizeIn
from lenscope.web.results_cache import Answered, ResultsCache, request_key
from lenscope.web.served import Served
from lenscope.web.warm_up import steps_before
from lenscope.web.worker import Event, Job, Work, Worker

# statuses of refused requests, for the description of the API
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorOut, "description": "The body is no JSON"},
    401: {"model": ErrorOut, "description": "The token is missing or wrong"},
    403: {"model": ErrorOut, "description": "Another site asks"},
    408: {"model": ErrorOut, "description": "The body did not come in time"},
    413: {"model": ErrorOut, "description": "The prompt or the body is too large"},
    415: {"model": ErrorOut, "description": "The body is of another type"},
    421: {"model": ErrorOut, "description": "The server has another name"},
    422: {"model": ErrorOut, "description": "Something that is asked for does not exist or is not granted"},
    429: {"model": ErrorOut, "description": "The queue is full"},
}

# what the web framework refuses, in words that say more than its own
LINES = {
    400: "the body is no JSON (it is no UTF-8, is nested too deeply, or has a number with too many digits)",
    404: "there is nothing at this path",
    405: "this path takes another method",
}


class Answers:
    """Runs endpoints on the models' threads, and remembers what they gave."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.cache = ResultsCache()
        self.workers = [
            Worker(model.lm.name, served.limits.queue, steps_before(served, number))
            for number, model in enumerate(served.models)
        ]

    async def submitted(self, endpoint: ServedEndpoint, asked: Any) -> tuple[Worker, Job]:
        """A request as a job in the queue of its model; LenscopeError for what can be seen to be wrong before."""
        work = await run_in_threadpool(endpoint.prepare, self.served, asked)
        worker, job = self.workers[endpoint.model(asked)], Job(_encoded(work))
        worker.submit(job)
        return worker, job

    async def whole(self, endpoint: ServedEndpoint, asked: Any, request: Request) -> Answered:
        """The whole answer to a request, remembered or computed while its reader waits."""
        key = request_key(endpoint.name, asked)
        answer = self.cache.get(key)
        if answer is None:
            answer = _answered(await whole_answer(request, *await self.submitted(endpoint, asked)))
            self.cache.put(key, answer)
        return answer

    async def exported(self, asked: ExportIn, request: Request) -> ExportedFile:
        """The result of a request as a file; it runs unless it is remembered, and the Python of it never runs."""
        endpoint = ENDPOINTS[asked.endpoint]
        try:
            inner = endpoint.request.model_validate(asked.request)
        except ValidationError as error:
            raise RequestValidationError(
                [{**e, "loc": ("body", "request", *e["loc"])} for e in error.errors()]
            ) from None
        key = request_key(endpoint.name, inner)
        if asked.format == "python":
            await run_in_threadpool(endpoint.prepare, self.served, inner)
            return exported("python", endpoint.name, key, python_of(self.served, endpoint.name, inner).encode())
        answer = await self.whole(endpoint, inner, request)
        content = await run_in_threadpool(content_of, asked.format, endpoint.name, answer)
        return exported(asked.format, endpoint.name, key, content)

    async def streamed(self, endpoint: ServedEndpoint, asked: Any) -> Response:
        """The events of an answer as they come, or all at once where they are remembered."""
        key = request_key(endpoint.name, asked)
        answer = self.cache.get(key)
        if answer is not None:
            return replayed(answer.events)
        worker, job = await self.submitted(endpoint, asked)
        return EventStream(worker, job, error_line, lambda events: self.cache.put(key, _answered(events)))

    def start(self) -> None:
        """Start all threads, which make the models ready before anyone asks."""
        for worker in self.workers:
            worker.start()

    def close(self) -> None:
        """End all threads."""
        for worker in self.workers:
            worker.close()


def application_of(served: Served, token: str | None, hosts: Collection[str]) -> Any:
    """The web view of some models as an ASGI application; see `view_application`."""
    answers = Answers(served)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        answers.start()
        yield
        answers.close()

    app = FastAPI(
        title="lenscope",
        version=__version__,
        description="What the hidden states of language models say.",
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.answers = answers
    _add_errors(app)
    _add_lookups(app, served)
    for endpoint in ENDPOINTS.values():
        handler = _streaming(answers, endpoint) if endpoint.streams else _answering(answers, endpoint)
        kind, form = ("text/event-stream", "string") if endpoint.streams else ("application/json", "object")
        ok = {"description": "The answer", "content": {kind: {"schema": {"type": form}}}}
        app.add_api_route(
            f"/api/{endpoint.name}",
            handler,
            methods=["POST"],
            summary=endpoint.summary,
            response_class=Response,
            responses={200: ok, **REFUSALS},
            name=endpoint.name,
        )
    app.add_api_route(
        "/api/export",
        _exporting(answers),
        methods=["POST"],
        summary="A result as a file",
        response_class=Response,
        responses={200: {"description": "The file", "content": {kind: {} for kind in KINDS.values()}}, **REFUSALS},
        name="export",
    )
    for path, file in page_files().items():
        app.router.routes.append(Route(path, _sending(file), methods=["GET"]))
    posts = {getattr(route, "path", "") for route in app.routes if "POST" in (getattr(route, "methods", None) or ())}
    return Guard(app, hosts, token, posts, served.limits.body)


def _answering(answers: Answers, endpoint: ServedEndpoint) -> Callable[..., Any]:
    asked_type: Any = endpoint.request

    async def answer(request: Request, asked: asked_type) -> Response:
        whole = await answers.whole(endpoint, asked, request)
        return Response(whole.events[-1][1], media_type="application/json")

    return answer


def _streaming(answers: Answers, endpoint: ServedEndpoint) -> Callable[..., Any]:
    asked_type: Any = endpoint.request

    async def stream(asked: asked_type) -> Response:
        return await answers.streamed(endpoint, asked)

    return stream


def _exporting(answers: Answers) -> Callable[..., Any]:
    async def export(request: Request, asked: ExportIn) -> Response:
        file = await answers.exported(asked, request)
        headers = {"content-disposition": f'attachment; filename="{file.name}"', "content-type": file.kind}
        return Response(file.content, headers=headers)

    return export


def _add_lookups(app: FastAPI, served: Served) -> None:
    """What is answered at once, beside the models' threads."""

    def info() -> dict[str, Any]:
        return served.info()

    def tokens(
        query: Annotated[str, Query(max_length=200)], model: Annotated[int, Query(ge=0, lt=64)] = 0
    ) -> list[dict[str, Any]]:
        return served.search(query, model)

    def tokenize(asked: TokenizeIn) -> dict[str, Any]:
        prompt = served.prompt(asked.prompt)
        return {"text": prompt.text, "ids": list(prompt.ids), "tokens": list(prompt.tokens)}

    for path, method, answer, summary in (
        ("info", "GET", info, "Models, lenses, target prompts and limits"),
        ("tokens", "GET", tokens, "Tokens that a text is, begins or is in"),
        ("tokenize", "POST", tokenize, "The tokens of a prompt"),
    ):
        app.add_api_route(f"/api/{path}", answer, methods=[method], summary=summary, responses=REFUSALS, name=path)


def _sending(file: ServedFile) -> Callable[[Request], Any]:
    async def send(request: Request) -> Response:
        headers = {"etag": file.tag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers={**headers, "content-type": file.kind})

    return send


def _add_errors(app: FastAPI) -> None:
    async def refuse(_: Request, error: Exception) -> Response:
        return _error_answer(error)

    for kind in (LenscopeError, HTTPException, RequestValidationError, MemoryError, ReaderLeft):
        app.add_exception_handler(kind, refuse)

    async def fail(_: Request, error: Exception) -> Response:
        return _error_answer(error)

    app.add_exception_handler(Exception, fail)


def _error_answer(error: Exception) -> Response:
    headers = dict(getattr(error, "headers", None) or {})
    status = 500
    if isinstance(error, HTTPException):
        status = error.status_code
    elif isinstance(error, LenscopeError | RequestValidationError):
        status = 400 if _no_json(error) else getattr(error, "status", 422)
    elif isinstance(error, ReaderLeft):
        status = 499
    elif _lacks_memory(error):
        status = 413
    if isinstance(error, Refusal) and error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    body = json_bytes({"error": error_line(error)})
    return Response(body, status, headers, "application/json")


def error_line(error: BaseException) -> str:
    """What went wrong, in one line that a person can act on."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return f"the body is no JSON ({first.get('ctx', {}).get('error', 'it cannot be read')})"
        # a field of several types has the type that was tried last in its place
        named = [str(part) for part in first["loc"][1:] if not str(part).startswith("constrained-")]
        place = ".".join(named) or "the request"
        line = f"{place}: {first['msg'].removeprefix('Value error, ')}"
    elif isinstance(error, HTTPException):
        line = LINES.get(error.status_code, str(error.detail))
    elif isinstance(error, LenscopeError):
        line = str(error)
    elif _lacks_memory(error):
        line = "out of memory: ask for less at once"
    elif isinstance(error, ReaderLeft):
        line = "the reader left"
    else:
        line = f"the server failed ({type(error).__name__}: {error})"
    line = " ".join(line.split())
    return line if len(line) <= 600 else line[:599] + "…"


def _no_json(error: Exception) -> bool:
    return isinstance(error, RequestValidationError) and error.errors()[0]["type"] == "json_invalid"


def _lacks_memory(error: BaseException) -> bool:
    message = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("not enough memory" in message or "out of memory" in message)
    )


def _encoded(work: Work) -> Work:
    """Some work whose events have their data as JSON, made in the model's thread; results stay as they are."""
    return lambda emit: work(lambda name, data: emit(name, data if name == RESULT else json_bytes(data)))


def _answered(events: list[Event]) -> Answered:
    result = next((data for name, data in events if name == RESULT), None)
    return Answered([event for event in events if event[0] != RESULT], result)
