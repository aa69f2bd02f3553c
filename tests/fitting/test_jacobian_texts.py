"""Texts have names by their content and by how their rows come about, not by where they lie."""

import pytest

from lenscope.errors import LenscopeError
from lenscope.fitting.jacobian_texts import (
    adopt_old_names,
    require_unread_rows,
    rows_in_common,
    text_name,
    text_name_with_paths,
)

TEXT = {
    "data": "t.jsonl", "field": "text", "documents": 3, "sources": [{"path": "t.jsonl", "bytes": 9, "sha256": "aa"}],
    "length": 32, "skip": 4, "seed": 0, "epochs": 1, "part": [0.1, 0.55],
    "row_begins_with": [], "document_begins_with": [1], "document_ends_with": [],
    "tokenizer": {"class": "T", "name": "/models/m", "sha256": "cc"},
}  # fmt: skip
MOVED = {
    "data": "/data/t.jsonl",
    "sources": [{"path": "/data/t.jsonl", "bytes": 9, "sha256": "aa"}],
    "tokenizer": {"class": "T", "name": "elsewhere", "sha256": "cc"},
}


def name(number=(0, 1), **changed):
    return text_name({**TEXT, **changed}, number)


def test_a_name_is_of_content():
    assert name(**MOVED) == name()
    assert not rows_in_common(name(), name(sources=[{"path": "t.jsonl", "bytes": 9, "sha256": "bb"}]))
    assert not rows_in_common(name(), name(field="title"))
    lists = [{"sources": [{"name": "list of texts", "documents": 1, "sha256_of_json_lines": d}]} for d in ("aa", "dd")]
    assert not rows_in_common(name(**lists[0]), name(**lists[1]))


@pytest.mark.parametrize(
    "changed",
    [
        {"epochs": 2}, {"part": [0.2, 0.6]}, {"tokenizer": {"sha256": "dd"}}, {"tokenizer": None},
        {"sources": [*TEXT["sources"], {"path": "u", "sha256": "bb"}]},
    ],
)  # fmt: skip
def test_one_text_read_in_two_ways_has_rows_in_common(changed):
    other = name((1, 2), **changed)
    assert rows_in_common(name((0, 2)), other)
    with pytest.raises(LenscopeError, match=r"^lens: has read .* folder$"):
        require_unread_rows({name((0, 2)): 3}, other, "lens")


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [((0, 2), (1, 2), False), ((0, 2), (0, 2), True), ((0, 2), (1, 3), True), ((0, 1), (1, 2), True)],
)
def test_parts_of_one_number_are_apart(one, other, common):
    assert rows_in_common(name(one), name(other, **MOVED)) == common
    assert rows_in_common(text_name_with_paths(TEXT, one), text_name_with_paths(TEXT, other)) == common


def test_the_order_of_files_is_of_the_reading():
    sources = [*TEXT["sources"], {"path": "u", "sha256": "bb"}]
    one, other = name((0, 2), sources=sources), name((1, 2), sources=sources[::-1])
    assert one.split()[0] == other.split()[0]
    assert rows_in_common(one, other)


def test_data_sets_of_the_hub_and_samples_are_known_by_what_they_are():
    hub = {"data": "o/n", "field": "text", "hub": {"path": "o/n", "split": "train"}, "epochs": 1, "datasets": "4.0"}
    samples = {"data": "samples of /m", "model_hash": "ab", "temperature": 1.0, "epochs": 1}
    assert text_name(hub, (0, 1)) == text_name({**hub, "data": "o/n::train", "datasets": "5.0"}, (0, 1))
    assert text_name(samples, (0, 1)) == text_name({**samples, "data": "samples of m"}, (0, 1))


def test_old_names_are_adopted_where_they_are_of_this_text():
    old, strange = text_name_with_paths(TEXT, (1, 2)), "0123456789abcdef 1/2"
    rows = {old: 5, strange: 2, "strange": 1}
    adopt_old_names(rows, {**TEXT, "data": "other"})
    assert rows == {old: 5, strange: 2, "strange": 1}
    adopt_old_names(rows, TEXT)
    assert rows == {old: 5, strange: 2, "strange": 1, name((1, 2)): 5}
    # a version of before may have gone on since
    rows[old] = 7
    adopt_old_names(rows, TEXT)
    assert rows[name((1, 2))] == 7
    require_unread_rows(rows, name((0, 2)), "lens")
    with pytest.raises(LenscopeError, match="lens: has read part 2/2 of this text, and part 1/1 would count prompts"):
        require_unread_rows(rows, name(), "lens")
