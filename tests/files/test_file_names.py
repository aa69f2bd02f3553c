"""Names of files made of any text: they stay in their folder, are short, and are different for different texts."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lenscope.files.file_names import safe_name

ODD = [
    "../../x", "..", ".", "", "a/b", "a\\b", "/etc/passwd", "C:\\x", "c:x", "con", "NUL.txt", "com1", "LPT9.a.b",
    "aux ", ".hidden", "end.", "end ", " start", "a\0b", "a\nb", "東京", "é", "e\u0301", "x" * 5000, "a:b", "a*b",
    "a?b", 'a"b', "a<b", "a|b", "\ud800", "a..b", "~", "-", "--",
]  # fmt: skip
PLAIN = ["loss by block", "Table 1", "arc_challenge", "fine-tune, KL in bits", "step 3.5", "answers sst2", "a-b"]


@pytest.mark.parametrize("text", PLAIN)
def test_a_plain_name_stays(text):
    assert safe_name(text) == text


@pytest.mark.parametrize("text", ODD)
def test_an_odd_name_stays_in_its_folder(text, tmp_path):
    name = safe_name(text)
    path = tmp_path / name
    path.write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_odd_names_are_different():
    assert len({safe_name(text).lower() for text in [*ODD, *PLAIN]}) == len(ODD) + len(PLAIN)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(), st.text())
def test_different_texts_have_different_names_that_are_plain(a, b):
    names = [safe_name(t) for t in (a, b)]
    assert (names[0] == names[1]) == (a == b)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9 ._,()+=-]{1,120}", name)
        assert name[0] not in ". "
        assert name[-1] not in ". "
        assert Path("folder", name).parts == ("folder", name)
        # a name of a changed name is another one
        assert safe_name(name) == name or name != a
    changed = safe_name(f"{a}/")
    assert safe_name(changed) != changed
