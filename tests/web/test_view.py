"""Without the packages of the server: the room can be looked at, and the view is refused in one line."""

import subprocess
import sys

WITHOUT = """
import inspect, sys
sys.modules |= {"fastapi": None, "starlette": None, "uvicorn": None}
import lenscope as ls
print("web" in dict(inspect.getmembers(ls)), "view_application" in dict(inspect.getmembers(ls.web)))
try:
    ls.web.view_application(None)
except ls.LenscopeError as error:
    print(error)
"""


def test_without_fastapi_the_rooms_names_are_there_and_the_view_says_what_to_install():
    done = subprocess.run([sys.executable, "-c", WITHOUT], check=False, capture_output=True, text=True)
    assert done.stdout == "True True\nview_application: needs fastapi; run: pip install 'lenscope[serve]'\n", (
        done.stderr
    )
