"""Where a prompt is odd: saved equals loaded, damaged files are refused, every view shows the span and nothing acts."""

import dataclasses
import json

import numpy as np
import pytest
from browser import accessibility_faults, opened
from drawing import NASTY, drawn

import lenscope as ls
from lenscope.detection.position_results import OddPositions

TOKENS = ("The", " cat", "\n", " <b>", " sat", " on")


def odd(**changes):
    text = "".join(TOKENS)
    ends = np.cumsum([len(t) for t in TOKENS]).tolist()
    places = tuple(zip([0, *ends[:-1]], ends, strict=True))
    scores = np.array([np.nan, 0.5, -1.0, 3.25, 2.0, 0.1], dtype=np.float32)
    whole = OddPositions(
        "tiny",
        "forest of trajectory",
        "how odd it is",
        text,
        TOKENS,
        places,
        scores,
        scores,
        (3, 5),
        1.5,
        2.5,
        {"a": 1},
    )
    return dataclasses.replace(whole, **changes)


def test_saved_equals_loaded(tmp_path):
    for result in (odd(), odd(threshold=float("nan"))):
        result.save(tmp_path / "odd.json")
        back = ls.load_results(tmp_path / "odd.json")
        assert back == result
        assert np.isnan(back.threshold) == np.isnan(result.threshold)
        assert OddPositions.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert odd() != odd(span=(2, 5))
    assert odd().oddest == " <b> sat"
    assert odd().characters == (8, 16)
    assert odd().to_dataframe()["oddest"].tolist() == [False, False, False, True, True, False]
    with pytest.raises(ls.LenscopeError, match=r"saved as \.json"):
        odd().save(tmp_path / "odd.parquet")


@pytest.mark.parametrize(
    "damage",
    [
        {"span": [3, 3]},
        {"span": [3, 99]},
        {"span": [0, 2]},
        {"places": [[0, 3]]},
        {"places": [[3, 0]] * 6},
        {"scores": [1.0]},
        {"score": None},
        {"threshold": "x"},
        {"tokens": 3},
        {"text": None},
    ],
)
def test_damaged_documents_are_refused(damage):
    data = {k: v for k, v in odd().to_json().items() if k != "sha256"} | damage
    with pytest.raises(ls.LenscopeError, match="table of odd positions"):
        OddPositions.from_json(data)


def test_the_terminal_marks_the_span_without_colours_too():
    for width in (30, 100):
        text = drawn(odd().table(width=width), width)
        assert "[[" in text
        whole = " ".join(text.split())
        assert "positions 3–4 of 6" in whole
        assert "its threshold 2.50" in whole
    assert "The cat↵[[ <b> sat]] on" in drawn(odd().table(), 100)
    assert "threshold" not in drawn(odd(threshold=float("nan")).table(), 100)
    acting = odd(tokens=(*TOKENS[:5], "\x1b[31m" + NASTY))
    assert "\x1b" not in drawn(acting.table(), 200)
    with pytest.raises(ls.LenscopeError, match="there are scores, smoothed"):
        odd().table("kl")


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_shows_the_span_and_nothing_acts(width, browser, tmp_path):
    acting = "</script><script>document.title='gone'</script>"
    result = odd(tokens=(*TOKENS[:5], acting), text="".join(TOKENS) + acting, detector=acting)
    result.to_html(tmp_path / "odd.html")
    with opened(browser, (tmp_path / "odd.html").as_uri(), width=width, dark=width == 400) as tab:
        tab.wait_for_selector("section.positions")
        assert tab.evaluate("document.title") != "gone"
        assert tab.locator("mark.odd-span .odd-token").count() == 2
        assert tab.locator(".odd-token").count() == 6
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert "NaN" not in tab.locator("#page").inner_html()
        assert not accessibility_faults(tab)
        before = tab.locator(".odd-token").nth(3).get_attribute("class")
        tab.get_by_text("moving mean", exact=True).first.click()
        assert tab.locator(".odd-token").nth(3).get_attribute("class").startswith("odd-token q")
        assert before.startswith("odd-token q15")
