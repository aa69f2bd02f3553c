"""What a person waits for in the browser: a first trajectory, a first explanation, a page that opens and scrolls.

With `lenscope serve` and the real model in a process of its own, in a Chromium without a window: seconds from Enter to
the whole trajectory of a 20-token prompt on screen, and from a click to the first words of an explanation. Then pages
from disk: bytes, seconds until the table is drawn, and frames a second while it scrolls sideways, down and both ways;
of 512 tokens of real text through all layers, and of a made-up model with 80 layers and 1,000 tokens. A display shows
60 frames a second at most.

    python benchmarks/page.py --repeats 9
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timing
import view
from playwright.sync_api import expect

import lenscope as ls
from lenscope.display.page import page as page_of
from lenscope.display.payload import packed, vocabulary_payload
from lenscope.text.installed import installed_texts

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from browser import launched, opened

COLUMNS: timing.Columns = {
    "what": ("", 64, ""),
    "seconds": ("seconds [quartiles]", 26, ".2f"),
    "frames": ("frames/s", 10, ".0f"),
    "slow": ("slowest 5 %, ms", 17, ".0f"),
    "bytes": ("bytes", 12, ",d"),
}
# pixels to the right and down in each frame
WAYS = {"sideways": (37, 0), "down": (0, 23), "both ways": (60, 20)}
SCROLL = """async ([right, down]) => {
  const table = document.querySelector("[role=grid]"), gaps = [];
  table.scrollTo(0, 0);
  let last = await new Promise(requestAnimationFrame);
  for (let n = 0; n < 240; n++) {
    table.scrollLeft += right;
    table.scrollTop += n % 60 < 30 ? down : -down;
    const now = await new Promise(requestAnimationFrame);
    gaps.push(now - last);
    last = now;
  }
  return gaps;
}"""


def shown(rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
    """Print a row and keep it."""
    timing.print_row(COLUMNS, row)
    rows.append(row)


def waited(browser: Any, address: str, repeats: int, rows: list[dict[str, Any]]) -> None:
    """How long the page of a server lets a person wait."""
    first, words = [], []
    with opened(browser, address + "/") as page:
        prompt = page.get_by_role("textbox", name="Prompt", exact=True)
        result = page.get_by_role("region", name="Result")
        for n in range(-2, repeats):  # the first two pay for what a server does once
            text = view.prompt_of(95, n + 2)
            prompt.fill(text)
            start = time.perf_counter()
            prompt.press("Enter")
            expect(result.get_by_role("heading", name=text, exact=True)).to_be_visible(timeout=120_000)
            expect(result.get_by_role("gridcell").first).to_be_visible()
            seconds = time.perf_counter() - start
            first += [seconds] if n >= 0 else []
            result.get_by_role("gridcell").nth(20).click()
            start = time.perf_counter()
            result.get_by_role("button", name="What does this state mean?").click()
            table = page.get_by_role("table", name="What the model says")
            page.wait_for_function(
                "table => [...table.querySelectorAll('tbody td')].some((cell) => cell.textContent.trim().length > 1)",
                arg=table.element_handle(timeout=120_000), timeout=120_000,
            )  # fmt: skip
            words += [time.perf_counter() - start] if n >= 0 else []
            stop = page.get_by_role("button", name="Stop")
            if stop.count():
                stop.first.click()
            page.wait_for_timeout(300)
    shown(rows, {"what": "trajectory of a 20-token prompt on screen", "seconds": timing.spread(first)})
    shown(rows, {"what": "first words of an explanation", "seconds": timing.spread(words)})


def scrolled(browser: Any, name: str, file: Path, rows: list[dict[str, Any]]) -> None:
    """How a page from disk opens and scrolls."""
    start = time.perf_counter()
    with opened(browser, file.as_uri()) as page:
        expect(page.get_by_role("gridcell").first).to_be_visible()
        seconds = timing.spread([time.perf_counter() - start])
        shown(rows, {"what": f"{name}: opened", "seconds": seconds, "bytes": file.stat().st_size})
        page.wait_for_timeout(500)
        for way, (right, down) in WAYS.items():
            gaps = page.evaluate(SCROLL, [right, down])
            frames = 1000 * len(gaps) / sum(gaps)
            slow = float(np.percentile(gaps, 95))
            shown(rows, {"what": f"{name}: scrolled {way}", "frames": frames, "slow": slow})


def made_up(layers: int, tokens: int) -> dict[str, Any]:
    """A page's data of a trajectory that no model gave."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 8000, (layers, tokens, 5))
    words = {n: f" word{n}" for n in range(8000)}
    log_probs = -np.sort(rng.gamma(2.0, 2.0, (layers, tokens, 5)))
    head = {
        "kind": "trajectory", "text": "a made-up text", "model": "made up", "lens": "logit lens",
        "n_layers": layers - 1, "layers": list(range(layers)), "positions": list(range(tokens)),
        "ids": ids[0, :, 0].tolist(), "target": None, "vocabulary": vocabulary_payload(words), "held_out_kl": None,
        "depth": [layers // 2] * tokens, "final": None, "measures": dict(ls.lenses.trajectory.MEASURES),
        "provenance": {},
    }  # fmt: skip
    numbers = {n: rng.gamma(1.0, 2.0, (layers, tokens)) for n in ("entropy", "kl", "cross_entropy")}
    arrays = {
        **numbers, "max_probability": np.exp(log_probs[..., 0]), "rank": rng.zipf(1.5, (layers, tokens)) % 49_152,
        "top_ids": ids, "top_log_probs": log_probs,
    }  # fmt: skip
    return packed(head, arrays)


def main() -> None:
    chosen = timing.options(__doc__, repeats=9).parse_args()
    timing.print_machine()
    timing.print_heading(COLUMNS)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, launched() as browser:
        with view.server(chosen.model) as address:
            waited(browser, address, chosen.repeats, rows)
        lm = ls.load(chosen.model)
        ids = lm.prompt(max(installed_texts(), key=len)[:8000]).ids[:512]
        real, large = Path(folder) / "real.html", Path(folder) / "large.html"
        ls.Lens(lm).trajectory(list(ids)).to_html(real)
        large.write_text(page_of([made_up(80, 1000)], title="a made-up text"))
        scrolled(browser, f"{len(ids)} tokens × {lm.n_layers + 1} layers", real, rows)
        scrolled(browser, "1,000 tokens × 80 layers", large, rows)
    timing.print_closing("page", rows, model=chosen.model, repeats=chosen.repeats)


if __name__ == "__main__":
    main()
