"""The page: it holds the data, nothing in them can leave its place, and nothing runs but the page's own script."""

import base64
import dataclasses
import hashlib
import html
import json
import re

import numpy as np
import pytest
from drawing import NASTY

import lenscope as ls
from lenscope.display.page import page
from lenscope.display.payload import packed, unpacked_arrays
from lenscope.errors import LenscopeError


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1))


def test_the_page_holds_the_data_and_nothing_escapes(lm, tmp_path):
    nasty = "</script><script>alert(1)</script> & \u2028"
    t = ls.Lens(lm).trajectory(nasty)
    t.to_html(tmp_path / "t.html")
    text = (tmp_path / "t.html").read_text()
    assert text.count("</script>") == 2
    assert "alert(1)</script>" not in text
    assert "{{" not in text
    result = data_of(text)["results"][0]
    assert result["text"] == nasty
    np.testing.assert_allclose(unpacked_arrays(result)["cross_entropy"], t.cross_entropy, rtol=1e-4)
    assert not re.search(r'(?:src|href)="?https?:', text), "the page must not load anything"


@pytest.fixture
def trajectory(lm):
    t = ls.Lens(lm, name=NASTY).trajectory("The cat sat")
    words = {i: NASTY + text for i, text in t.vocabulary.items()}
    return dataclasses.replace(t, vocabulary=words, text=NASTY, model=NASTY)


def test_the_page_cannot_be_left(trajectory):
    """Names are text within the page's data, where nothing is an element and every half of a pair is an escape."""
    text = page([dataclasses.replace(trajectory, text="</script><b>")], title=NASTY)
    assert text.count("</script>") == 2
    text.encode("utf-8")


def test_only_the_pages_own_script_and_style_run(trajectory):
    """The policy allows nothing but what has these digests, and no page has another script or style."""
    text = page([trajectory], title="{{script}}{{style}}")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1)
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none';")
    for tag, attributes in (("script", ' type="module"'), ("style", "")):
        (inside,) = re.findall(rf"<{tag}{attributes}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert data_of(text)["title"] == "{{script}}{{style}}"


def test_a_notebook_gets_the_page_in_a_frame_that_cannot_reach_it(trajectory):
    text = trajectory._repr_html_()
    form = r'<iframe sandbox="([^"]*)" width="100%" height="\d+" title="lenscope" srcdoc="([^"]*)"></iframe>'
    match = re.fullmatch(form, text)
    assert match, text[:300]
    assert match[1] == "allow-scripts allow-downloads"
    assert html.unescape(match[2]) == page([trajectory], title=NASTY)
    text.encode("utf-8")


def test_a_comparison_is_a_page_too(lm, tmp_path):
    both = ls.Lens(lm).compare("The cat", "A dog ran")
    both.to_html(tmp_path / "c.html")
    (result,) = data_of((tmp_path / "c.html").read_text())["results"]
    assert result["kind"] == "comparison"
    assert [result[side]["text"] for side in ("first", "second")] == ["The cat", "A dog ran"]
    np.testing.assert_allclose(unpacked_arrays(result)["js"], both.js, rtol=1e-4, atol=1e-30)
    assert "<iframe" in both._repr_html_()


def test_a_page_takes_results_and_not_files(trajectory):
    with pytest.raises(LenscopeError, match="page_data"):
        page([trajectory.to_json()], title="")


def test_a_page_of_a_long_prompt_is_small():
    """512 tokens × 31 layers with the five most probable tokens, as unlike as the tokens of real text: below 1 MB."""
    rng = np.random.default_rng(0)
    L, P, k = 31, 512, 5
    ids = (rng.zipf(1.3, (L, P, k)) * 7919 + rng.integers(0, 50, (L, P, k))) % 49_152
    words = {int(i): " token"[: 2 + i % 5] + str(i) for i in np.unique(ids)}
    measures = {n: rng.gamma(1.0, 2.0, (L, P)) for n in ("entropy", "kl", "max_probability", "cross_entropy")}
    log_probs = -np.sort(rng.gamma(2.0, 2.0, (L, P, k)))
    data = packed(
        {"kind": "trajectory", "vocabulary": {"ids": [*words], "texts": [*words.values()]}},
        {**measures, "rank": rng.zipf(1.5, (L, P)) % 49_152, "top_ids": ids, "top_log_probs": log_probs},
    )
    assert len(page([data], title="").encode()) < 1_000_000
