"""The command of the web view: a server for the browser of this machine.

Knows: options, the address that is printed, how the server starts and ends. Does not know: what it answers.
"""

import asyncio
import socket
import threading
import webbrowser
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lenscope.cli.options import DEFAULT_MODEL, CommonOptions, Model, common_options, open_lens
from lenscope.cli.streams import tell
from lenscope.cli.validation import require_lens, require_mapping, require_model
from lenscope.errors import LenscopeError
from lenscope.visible_text import printable

if TYPE_CHECKING:
    from lenscope.web.served import Served

NEEDED = ("fastapi", "uvicorn", "pydantic")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN_CHARACTERS = 8


@common_options("as_json")
def serve_command(
    model: Model = DEFAULT_MODEL,
    lenses: Annotated[
        list[str] | None,
        typer.Option(
            "--lens",
            help="A fitted lens to offer beside the logit lens: a folder, a file or a hub repository; may be repeated.",
        ),
    ] = None,
    target_models: Annotated[
        list[str] | None,
        typer.Option("--target-model", help="Another model that states may be patched into; may be repeated."),
    ] = None,
    mappings: Annotated[
        list[str] | None,
        typer.Option("--mapping", help="Folder of a fitted mapping of the model's states; may be repeated."),
    ] = None,
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes any free one.")] = 8765,
    host: Annotated[
        str, typer.Option(help="Address to listen at; one that other machines can reach needs --token.")
    ] = ("127.0.0.1"),
    token: Annotated[
        str | None,
        typer.Option(help=f"A secret of at least {TOKEN_CHARACTERS} characters that every request must carry."),
    ] = None,
    max_prompt_tokens: Annotated[
        int, typer.Option("--max-prompt-tokens", help="Longest prompt that is accepted, in tokens.")
    ] = 1024,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    *,
    common: CommonOptions,
) -> None:
    """Open the web view of a model on this machine.

    The page shows trajectories, explanations and patches, and nothing leaves the machine. Ctrl-C ends it. It needs
    pip install "lenscope[serve]".

    \b
    Examples:
      lenscope serve --open
      lenscope serve --lens demo/lens --open
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise LenscopeError(f'the web view needs {", ".join(missing)}: run pip install "lenscope[serve]"')
    if not 0 <= port <= 65535:
        raise LenscopeError(f"--port {port}: give 0–65535; 0 takes any free port")
    if max_prompt_tokens < 1:
        raise LenscopeError(f"--max-prompt-tokens {max_prompt_tokens}: give at least 1")
    if token is not None and (len(token) < TOKEN_CHARACTERS or not all("!" <= c <= "~" for c in token)):
        raise LenscopeError(f"--token: give at least {TOKEN_CHARACTERS} letters, digits or signs, without spaces")
    if host not in LOOPBACK and token is None:
        raise LenscopeError(
            f"--host {printable(host)}: others than this machine could then use the model; give a --token as well, or "
            "leave --host out"
        )
    for name in (model, *(target_models or ())):
        require_model(name)
    for where in lenses or ():
        require_lens(where)
    for folder in mappings or ():
        require_mapping(folder)
    with _listening(host, port) as listener:
        served = _served(model, lenses or [], target_models or [], mappings or [], max_prompt_tokens, common)
        _serve(served, listener, host, token, open_page)


def _served(
    model: str, lenses: list[str], target_models: list[str], mappings: list[str], prompt_tokens: int,
    common: CommonOptions,
) -> "Served":  # fmt: skip
    from lenscope.lenses.lens import Lens
    from lenscope.mappings.mapping import load_mapping
    from lenscope.web.limits import Limits
    from lenscope.web.served import Served, ServedLens, ServedMapping, ServedModel

    common.require_one_process("the server runs in one process")
    lm = common.load()
    how = {
        "dtype": common.dtype, "device_map": common.device, "attn_implementation": common.attention,
        "revision": common.revision, "adapter": common.adapter,
    }  # fmt: skip
    options = {name: value for name, value in how.items() if value is not None}
    opened = []
    for where in lenses:
        f = open_lens(where, lm)
        name = f"{f.report.get('lens', 'lens')} {Path(where).name or where}"
        opened.append(ServedLens(Lens(lm, f, name=name), where))
    maps = {Path(folder).name or folder: ServedMapping(load_mapping(folder), folder) for folder in mappings}
    models = [ServedModel(lm, model, options)]
    for name in target_models:
        other = replace(common, model=name, revision=None, adapter=None).load()
        options = {key: value for key, value in options.items() if key not in ("revision", "adapter")}
        models.append(ServedModel(other, name, options, _own_mapping(maps, lm, other)))
    for name, one in maps.items():
        if not any(_fits(one.mapping, lm, m.lm) for m in models):
            raise LenscopeError(f"--mapping {name}: maps between none of the models that are served")
    context = lm.context
    return Served(models, opened, maps, Limits(prompt_tokens=min(prompt_tokens, context or prompt_tokens)))


def _own_mapping(maps: dict[str, Any], lm: Any, other: Any) -> str | None:
    return next((name for name, one in maps.items() if _fits(one.mapping, lm, other)), None)


def _fits(mapping: Any, lm: Any, other: Any) -> bool:
    try:
        mapping.check(lm, other)
    except LenscopeError:
        return False
    return True


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens, before the model is loaded: a port that is taken is told at once."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise LenscopeError(f"--host {printable(host)}: is no address of this machine ({error})") from error
    listener = socket.socket(family, kind, number)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise LenscopeError(
            f"--port {port}: cannot listen at {printable(host)} ({error.strerror or error}); give another, or 0 for any"
        ) from error
    return listener


def _serve(served: "Served", listener: socket.socket, host: str, token: str | None, open_page: bool) -> None:
    import uvicorn

    from lenscope.web.view import view_application

    port = listener.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)
    address = f"http://{shown}:{port}/" + (f"#token={token}" if token else "")
    application = view_application(served, token, [host])
    config = uvicorn.Config(
        application,
        log_config=None,
        log_level="critical",  # what clients do wrong is answered; the guard tells failures of the application
        access_log=False,
        server_header=False,
        ws="none",
        proxy_headers=False,
        lifespan="on",
        timeout_graceful_shutdown=1,
        timeout_keep_alive=30,
    )

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            tell(f"{served.lm.name} is shown at {address} (Ctrl-C ends it)")
            if open_page:
                # beside the server, which a browser asks at once; and no browser is no reason to end
                threading.Thread(target=_show_page, args=(address,), daemon=True).start()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # those who wait are told, and nothing is left to be cut off
            await asyncio.to_thread(application.application.state.answers.close)
            await super().shutdown(sockets)

    server = Announcing(config)
    server.run(sockets=[listener])


def _show_page(address: str) -> None:
    with suppress(Exception):
        webbrowser.open(address)
