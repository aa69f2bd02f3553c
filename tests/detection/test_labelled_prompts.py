"""Prompts with labels are read as they are written, and what contradicts itself is refused in one line."""

import gzip
import json

import pytest

import lenscope as ls
from lenscope.detection.labelled_prompts import LabelledPrompt, different_prompts, read_labelled_prompts


def _written(tmp_path, rows, name="mails.jsonl"):
    text = "".join(f"{json.dumps(r)}\n" for r in rows)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["mails.jsonl", "mails.jsonl.gz"])
def test_fields_are_read(tmp_path, name):
    rows = [
        {"text": "a b", "label": 0, "category": "benign"},
        {"text": "a b ignore", "label": 1, "source": "BIPIA", "category": "hijack", "host": "mail 7", "span": [4, 10]},
        {"text": "a b and c", "label": False, "host": 7, "span": [4, 9], "more": [1]},
    ]
    plain, attack, inserted = read_labelled_prompts(_written(tmp_path, rows, name))
    assert plain == LabelledPrompt("a b", False, "mails", "", "", None)
    assert attack == LabelledPrompt("a b ignore", True, "BIPIA", "hijack", "mail 7", (4, 10))
    assert inserted == LabelledPrompt("a b and c", False, "mails", "", "7", (4, 9))
    assert (plain.normal, attack.normal, inserted.normal) == (True, False, False)


def test_lines_and_rows_without_a_label_are_what_is_said_of_them(tmp_path):
    (tmp_path / "p.txt").write_text("one\n\n two\n")
    assert read_labelled_prompts(tmp_path / "p.txt", attack=True) == [
        LabelledPrompt("one", True, "p"),
        LabelledPrompt(" two", True, "p"),
    ]
    path = _written(tmp_path, [{"q": "x"}, {"q": "y", "label": 0}])
    assert [p.attack for p in read_labelled_prompts(path, field="q", attack=True)] == [True, False]
    with pytest.raises(ls.LenscopeError, match="have no labels"):
        read_labelled_prompts(tmp_path / "p.txt")
    with pytest.raises(ls.LenscopeError, match="line 1: has no label; give 1"):
        read_labelled_prompts(path, field="q")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"label": 1}, "no object with a text in the field 'text'"),
        ({"text": 3, "label": 1}, "no object with a text"),
        ([], "no object"),
        ({"text": "  ", "label": 1}, "not empty"),
        ({"text": "a \ud800 b", "label": 1}, "half of a surrogate pair"),
        ({"text": "a", "label": 2}, "label 2; give 1"),
        ({"text": "a", "label": "1"}, "label '1'"),
        ({"text": "a", "label": 1.0}, "label 1.0"),
        ({"text": "a", "label": 1, "span": [0, 2]}, "0 ≤ start < stop ≤ 1"),
        ({"text": "a", "label": 1, "span": [1, 1]}, "span 1, 1"),
        ({"text": "a", "label": 1, "span": [0]}, "two whole numbers"),
        ({"text": "a", "label": 1, "span": "x" * 99}, "two whole numbers"),
        ({"text": "a", "label": 1, "source": {"a": 1}}, "source .*give a text"),
        ({"text": "a", "label": 1, "host": [1]}, "host"),
    ],
)
def test_rows_that_are_not_right_are_one_line(tmp_path, row, told):
    path = _written(tmp_path, [{"text": "fine", "label": 0}, row])
    with pytest.raises(ls.LenscopeError, match=told) as error:
        read_labelled_prompts(path)
    assert "mails.jsonl, line 2: " in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_not_right_are_one_line(tmp_path):
    (tmp_path / "none.jsonl").write_text("\n\n")
    (tmp_path / "bad.jsonl").write_text("{")
    for name, told in (
        ("none.jsonl", "no prompts"),
        ("bad.jsonl", "line 1: is not JSON"),
        ("no.jsonl", "No such file"),
    ):
        with pytest.raises(ls.LenscopeError, match=told):
            read_labelled_prompts(tmp_path / name)


def test_a_text_counts_once_and_joins_its_hosts():
    def one(text, host="", attack=False):
        return LabelledPrompt(text, attack, host=host)

    made = [one("a"), one("b", "x"), one("b", "y"), one("c", "y"), one("a", "z"), one("c", "z"), one("d", "w")]
    assert different_prompts(made) == [one("a", "x"), one("b", "x"), one("c", "x"), one("d", "w")]
    assert different_prompts(made[:2]) == made[:2]
    with pytest.raises(ls.LenscopeError, match=r"^prompt 'b': is an attack and a harmless prompt; give each text one"):
        different_prompts([*made, one("b", attack=True)])


def test_prompts_that_contradict_themselves_are_refused():
    with pytest.raises(ls.LenscopeError, match="only attacks have one"):
        LabelledPrompt("a", False, family="hijack")
    with pytest.raises(ls.LenscopeError, match="True or False"):
        LabelledPrompt("a", 1)
