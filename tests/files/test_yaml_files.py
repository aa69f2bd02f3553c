"""Documents that people write: the words that are numbers, and what is no plain document."""

import pytest

import lenscope as ls
from lenscope.files.yaml_files import read_document


def test_ranges_words_and_dates_are_texts(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: [1:31:5, -1, 1e-3, yes, no, true, 010, 2020-01-01, null]\n")
    assert read_document(path) == {"a": ["1:31:5", -1, 0.001, "yes", "no", True, "010", "2020-01-01", None]}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: &x [1]\nb: *x\n", "line 2: names for parts"),
        ("a: 1\na: 2\n", "line 2: the key 'a' stands twice"),
        ("a: [1\n", "line 2: expected"),
        ("a: !!python/object:os.system b\n", "could not determine a constructor"),
        ("[" * 5000, "nested too deeply"),
        ("a: 1\n---\nb: 2\n", "found another document"),
    ],
)
def test_what_is_no_plain_document_is_one_line(tmp_path, text, line):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ls.LenscopeError, match="is no YAML") as raised:
        read_document(path)
    assert line in str(raised.value)
    path = tmp_path / "a.json"
    path.write_text('{"a": 1, "a": 2}')
    with pytest.raises(ls.LenscopeError, match="the key 'a' stands twice"):
        read_document(path)
