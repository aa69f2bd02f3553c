"""Labels of files and built-in ones by kind; parts that share no label."""

import json

import pytest

from lenscope.errors import LenscopeError
from lenscope.experiments.selfie_adapters_paper.labelled_kinds import TOPICS, divide, load_kinds


def test_built_in_kinds_share_no_label():
    kinds = load_kinds(())
    assert list(kinds) == [TOPICS, "landmark", "opposite", "entities"]
    every = [label.casefold() for labels in kinds.values() for label in labels]
    assert len(every) == len(set(every))
    assert "Lyon" in kinds[TOPICS]
    assert "the Eiffel Tower" in kinds["landmark"]
    assert len(kinds[TOPICS]) > 250


def test_files_by_what_is_in_them(tmp_path):
    titles, facts, entities = (tmp_path / name for name in ("t.txt", "f.jsonl", "e.jsonl"))
    titles.write_text("Lottery\n\n Absolute zero \nlottery\n")
    facts.write_text(json.dumps({"relation": "capital", "subject": "France", "object": "Paris"}))
    entities.write_text(json.dumps({"name": "Lottery", "description": "a game"}) + "\n"
                        + json.dumps({"name": "Ada Lovelace", "description": "a writer"}))  # fmt: skip
    kinds = load_kinds([str(titles), str(facts), str(entities)])
    assert kinds == {
        TOPICS: ("Lottery", "Absolute zero"), "capital": ("France",), "entities": ("Ada Lovelace",),
    }  # fmt: skip
    alone = load_kinds([str(titles)])
    assert alone[TOPICS] == ("Lottery", "Absolute zero")
    assert list(alone) == [TOPICS, "landmark", "opposite", "entities"]
    with pytest.raises(LenscopeError, match=r"f.jsonl: no topics; give a text file"):
        load_kinds([str(facts)])


def test_parts_share_no_label():
    kinds = {TOPICS: tuple(f"topic {n}" for n in range(120)), "kind": tuple("abcdefgh"), "small": ("x",)}
    parts = divide(kinds, train=50, chosen=10, reported=20, of_a_kind=5, seed=1)
    assert [len(p) for p in (parts.train, parts.chosen, parts.reported, parts.unused)] == [50, 10, 20, 40]
    whole = {*parts.train, *parts.chosen, *parts.reported, *parts.unused}
    assert whole == set(kinds[TOPICS])
    assert {kind: len(labels) for kind, labels in parts.kinds.items()} == {"kind": 5}
    searched = parts.searched(parts.kinds["kind"])
    assert len(searched) == 125
    assert searched[:5] == parts.kinds["kind"]
    assert searched[5:25] == parts.reported
    # labels that were trained on come last
    assert searched[-50:] == parts.train
    few = divide({TOPICS: kinds[TOPICS][:80]}, train=1000, chosen=100, reported=500, of_a_kind=5, seed=1)
    assert (len(few.reported), len(few.chosen), len(few.train)) == (20, 10, 50)
    with pytest.raises(LenscopeError, match="topics: 63 are too few; give at least 64"):
        divide({TOPICS: kinds[TOPICS][:63]}, train=10, chosen=10, reported=10, of_a_kind=5, seed=0)
