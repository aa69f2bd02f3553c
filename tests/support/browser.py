"""A real browser for tests of pages: Chromium without a window, where one is installed.

Knows: where Chromium is looked for, that a page's errors and its attempts to load anything are failures.
Does not know: which page is looked at.
"""

import os
import shutil
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# without a sandbox of its own, since tests also run as root and in containers
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


def chromium():
    """The path of a Chromium, or None: the one that LENSCOPE_CHROMIUM names, else the first that is installed."""
    return os.environ.get("LENSCOPE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def require_chromium():
    """Skip the test, and say why, where no Chromium is installed."""
    path = chromium()
    if path is None:
        pytest.skip("no Chromium is installed: `apt-get install chromium`, or name one in LENSCOPE_CHROMIUM")
    return path


@contextmanager
def launched():
    """A Chromium for the time of the block."""
    from playwright.sync_api import sync_playwright

    path = require_chromium()
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser, address, *, width=1280, height=800, dark=False, offline=False, allowed=(), **options):
    """A page at an address, in a context of its own; AssertionError for what went wrong in it by the end of the block.

    Wrong are: an exception, an error on the console (a breach of the content-security policy is one), and a request
    to any other origin than the address's own. `allowed` are texts of errors that the test expects.
    """
    scheme = "dark" if dark else "light"
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True, **options
    )
    context.set_default_timeout(60_000)
    context.set_offline(offline)
    page = context.new_page()
    wrong = []
    origin = "/".join(address.split("/")[:3])
    page.on("pageerror", lambda error: wrong.append(f"exception: {error}"))
    page.on("console", lambda line: wrong.append(f"console: {line.text}") if line.type == "error" else None)

    def look(request):
        if not request.url.startswith((origin, "data:", "blob:", "about:")):
            wrong.append(f"request: {request.url}")

    page.on("request", look)
    try:
        page.goto(address)
        yield page
        unexpected = [line for line in wrong if not any(text in line for text in allowed)]
        assert not unexpected, "\n".join(unexpected)
    finally:
        context.close()


def accessibility_faults(page):
    """What axe finds serious or critical on a page: a line for each rule, with the nodes that break it."""
    from axe_playwright_python.sync_playwright import Axe

    found_by_axe = Axe().run(page).response["violations"]
    return [
        f"{v['id']} ({v['impact']}): {v['help']}: {'; '.join(node['html'][:150] for node in v['nodes'][:3])}"
        for v in found_by_axe
        if v["impact"] in ("serious", "critical")
    ]
