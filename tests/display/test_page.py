"""The page: it holds the data, and nothing in them can leave its place."""

import dataclasses
import json
import re

import pytest
from drawing import NASTY

import lenscope as ls
from lenscope.display.page import page


def test_the_page_holds_the_data_and_nothing_escapes(lm, tmp_path):
    nasty = "</script><script>alert(1)</script> & \u2028"
    t = ls.Lens(lm).trajectory(nasty)
    t.to_html(tmp_path / "t.html")
    page = (tmp_path / "t.html").read_text()
    assert page.count("</script>") == 2
    assert "alert(1)</script>" not in page
    assert "{{" not in page.split('id="data"')[0]
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL).group(1)
    result = json.loads(data)["results"][0]
    assert result["prompt"]["text"] == nasty
    assert result["measures"]["cross_entropy"][0][-1] is None
    assert not re.search(r'(?:src|href)="?https?:', page), "the page must not load anything"


@pytest.fixture
def trajectory(lm):
    t = ls.Lens(lm, name=NASTY).trajectory("The cat sat")
    words = {i: NASTY + text for i, text in t.vocabulary.items()}
    return dataclasses.replace(t, vocabulary=words, text=NASTY, model=NASTY)


def test_the_page_cannot_be_left(trajectory):
    """Names are text within the page's data, where nothing is an element and every half of a pair is an escape."""
    text = page([dataclasses.replace(trajectory, text="</script><b>").to_json()], title=NASTY)
    assert text.count("</script>") == 2
    text.encode("utf-8")
