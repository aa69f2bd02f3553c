"""Files as data sets: what is put into what, by a field or by a published source; what is left out is counted."""

import json

import pytest

import lenscope as ls
from lenscope.detection.prompt_sets import QUESTIONS, draw_some, prompts_of_sets, read_prompt_sets


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture
def files(tmp_path):
    mails = [{"text": f"Mail {n}. It is long. It ends.", "label": 0, "source": "my mails"} for n in range(6)]
    put = [{"text": f"Do {n}.", "label": 1, "source": "mine", "category": "c", "insert_into": "my mails"} for n in "ab"]
    plain = [{"text": t, "label": n % 2, "source": "plain"} for n, t in enumerate("abcda")]
    emails = [{"text": f"Mail {n}!", "label": 0, "source": "BIPIA email task (benign host prompt)"} for n in range(3)]
    bipia = [{"text": "Say so.", "label": 1, "source": "BIPIA text attacks", "category": "d"}]
    templates = [{"text": "Print it", "label": 1, "source": "promptinject 0.1.1.1"}]
    return [
        write(tmp_path / "1.jsonl", [*mails, *put, *plain]),
        write(tmp_path / "2.jsonl", [*emails, *bipia, *templates]),
    ]


def test_texts_are_put_where_rows_or_published_sources_say(files):
    sets = read_prompt_sets(files)
    assert [p.text for p in sets.plain] == [*"abcda"]
    assert {into: len(texts) for into, texts in sets.inserted.items()} == {
        "my mails": 2, "BIPIA email task (benign host prompt)": 1, QUESTIONS: 1,
    }  # fmt: skip
    prompts, left = prompts_of_sets(sets)
    assert left == {"text occurs twice": 1, "text that is put into questions, of which there are 0": 1}
    assert [(p.text, p.attack) for p in prompts if p.data_set == "plain"] == [
        ("a", False), ("b", True), ("c", False), ("d", True),
    ]  # fmt: skip
    own = [p for p in prompts if p.data_set == "mine"]
    assert (sum(p.normal for p in own), sum(p.attack for p in own), len(own)) == (6, 6, 18)
    assert {p.family for p in own if p.attack} == {"c"}
    bipia = [p for p in prompts if p.data_set == "BIPIA text attacks"]
    assert (sum(p.normal for p in bipia), sum(p.attack for p in bipia), len(bipia)) == (3, 3, 9)


def test_at_most_so_many_of_a_set(files):
    prompts, left = prompts_of_sets(read_prompt_sets(files[:1]), most=3)
    assert sum(p.normal for p in prompts if p.data_set == "mine") == 3
    assert left["prompt of my mails, more than the 3 that a run takes, drawn at random"] == 3
    some = draw_some(prompts, 4, left, "x", 0)
    assert some == [p for p in prompts if p in some]
    assert draw_some(prompts, None, left, "x", 0) == prompts


def test_a_text_with_two_labels_is_refused(tmp_path):
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}, {"text": "a", "label": 1}]
    with pytest.raises(ls.LenscopeError, match="prompt 'a': is an attack and a harmless prompt"):
        prompts_of_sets(read_prompt_sets([write(tmp_path / "p.jsonl", rows)]))


def test_rows_that_cannot_be_put_in_are_refused(tmp_path):
    for row in ({"text": "a", "label": 1, "insert_into": 3}, {"text": "a", "label": 0, "insert_into": "b"}):
        with pytest.raises(ls.LenscopeError, match="line 1: insert_into"):
            read_prompt_sets([write(tmp_path / "p.jsonl", [row])])


def test_attacks_that_were_put_into_hosts_before_are_taken_as_they_are(tmp_path):
    """Rows as `prompts_of_sets` gives them, written to a file and read again."""
    rows = [
        {"text": "Mail. Say so.", "label": 1, "source": "BIPIA text attacks", "host": "mail 1"},
        {"text": "Mail. Say so!", "label": 1, "source": "BIPIA text attacks", "span": [6, 13]},
        {"text": "Mail.", "label": 0, "source": "BIPIA text attacks", "host": "mail 1"},
    ]
    sets = read_prompt_sets([write(tmp_path / "p.jsonl", rows)])
    assert ([p.text for p in sets.plain], sets.inserted) == ([row["text"] for row in rows], {})
