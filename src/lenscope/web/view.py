"""The web view as an application, where the packages that serve it are installed.

Knows: which package is missing, and the command that installs it. Does not know: paths, answers (application.py).
"""

from collections.abc import Collection
from typing import Any

from lenscope.errors import LenscopeError
from lenscope.web.served import Served


def view_application(served: Served, token: str | None = None, hosts: Collection[str] = ()) -> Any:
    """The web view of some models as an ASGI application, which servers such as uvicorn run.

    `token` is what every call of /api must carry; `hosts` are names under which the server may be called, beside the
    loopback's. Raises LenscopeError where the package fastapi is not installed.
    """
    try:
        from lenscope.web.application import application_of
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "starlette"):
            raise
        raise LenscopeError(f"view_application: needs {error.name}; run: pip install 'lenscope[serve]'") from error
    return application_of(served, token, hosts)
