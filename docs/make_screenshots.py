"""Draws the pictures of the view that the README shows: the real page, the real server, the real model.

Run it from the repository's root as `python docs/make_screenshots.py LENS`, where LENS is the folder of a tuned lens of
SmolLM2-135M, such as `demo/lens` after `make demo`. It needs Chromium, and takes about a minute.
"""

import json
import sys
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import expect

import lenscope as ls
from lenscope.web.served import Served, ServedLens, ServedModel

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from browser import launched, opened
from view_server import serving

ROOT = Path(__file__).parents[1]
# name → the state of the page that the picture shows, as it stands in the address
PICTURES = {
    "view-trajectory": {
        "text": "The Eiffel Tower is in the city of",
        "ran": "trajectory",
        "pins": json.dumps([{"id": 7042, "text": " Paris"}, {"id": 260, "text": " the"}]),
        "cell": json.dumps([24, 8]),
    },
    "view-meaning": {
        "text": "The founder of Microsoft, Bill Gates",
        "ran": "trajectory",
        "cell": json.dumps([4, 6]),
        "asked": "meaning",
    },
}


def draw(folder: Path, lens: str) -> None:
    """Write every picture into `folder` as NAME.png."""
    lm = ls.load("smollm2-135m")
    tuned = ServedLens(ls.Lens(lm, ls.load_lens(lens, lm), name="tuned lens"), lens)
    served = Served([ServedModel(lm, "smollm2-135m")], [tuned])
    with serving(served) as server, launched() as browser:
        for name, state in PICTURES.items():
            address = f"{server.address}/#" + urlencode({"v": "1", "lens": "tuned lens", **state})
            with opened(browser, address, width=1360, height=900, device_scale_factor=1.5) as page:
                expect(page.get_by_role("grid").first).to_be_visible(timeout=60_000)
                if "asked" in state:
                    stop = page.get_by_role("button", name="Stop").last
                    expect(stop).to_be_visible(timeout=60_000)
                    expect(stop).to_be_hidden(timeout=120_000)
                page.wait_for_timeout(1000)
                page.screenshot(path=folder / f"{name}.png")


if __name__ == "__main__":
    draw(ROOT / "docs" / "figures", *sys.argv[1:])
