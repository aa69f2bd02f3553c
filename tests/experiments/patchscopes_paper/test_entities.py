"""Entity description: what counts as the description, scores against references, the tables by hand."""

import json

import numpy as np
import pytest
import tiny
import torch
from patched_texts import written_after

import lenscope as ls
from lenscope.experiments.patchscopes_paper import entities as module
from lenscope.experiments.patchscopes_paper.entities import copied, description_in, pick
from lenscope.experiments.setting import Setting
from lenscope.patchscopes.control_runs import RANDOM, SHUFFLED, TEXT, VECTOR
from lenscope.tasks.relations import Entity
from lenscope.tasks.text_match import rouge
from lenscope.text.packing import after_document_mark, find_marks


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (": British singer, Samsung: company", "British singer"),
        (": British singer, writer, Samsung: company, x", "British singer, writer"),
        (": British singer, writer", "British singer, writer"),
        (" City: club in England, Leeds: city", "club in England"),
        (": Albert Einstein: German physicist, Einstein: x", "German physicist"),
        (", 12, 12", "12, 12"),
        (", x, y: food, z: drink", "x"),
        (" said nothing\n: of note", "said nothing"),
        (": country\nFrance: another", "country"),
        ("", ""),
        (":", ""),
    ],
)
def test_a_description_ends_where_the_next_entry_begins(text, expected):
    assert description_in(text) == expected


def test_copied_words_are_those_of_the_demonstrations_alone():
    shown = "Syria: Country in the Middle East, Samsung: South Korean company"
    assert copied("a Korean film", "a film", shown)
    assert not copied("a Korean film", "Korean film director", shown)
    assert not copied("the best of the", "a film", shown)
    assert copied("SAMSUNG", "a film", shown)


def test_the_most_and_the_least_popular_are_picked():
    some = [Entity(f"e{n}", f"a thing {n}", float(n)) for n in range(20)]
    assert [e.popular for e in pick(some, 8)] == [19, 18, 17, 16, 3, 2, 1, 0]
    # a description that says the name alone gives nothing away
    named = [*some, Entity("thing", "thing", 99.0)]
    assert [e.name for e in pick(named, 8)] == [e.name for e in pick(some, 8)]
    unknown = [Entity(f"e{n}", "a thing") for n in range(20)]
    assert pick(unknown, 9) == unknown[:9]
    with pytest.raises(ls.LenscopeError, match="6 with a description of their own; give at least 8"):
        pick(some[:6], 8)


def test_names_do_not_stand_at_the_first_position(lm64):
    mark = find_marks(lm64).document
    (prompt,) = after_document_mark(lm64, ["The cat"])
    assert len(mark) == 1
    assert prompt.ids == (*mark, *tiny.tokenizer()("The cat", add_special_tokens=False).input_ids)


def test_texts_are_kept(lm64, tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"é": [["ü", 1, None]]}

    setting = Setting(lm64, folder=tmp_path)
    assert setting.cached("x", make, size=1) == setting.cached("x", make, size=1) == {"é": [["ü", 1, None]]}
    assert len(calls) == 1
    setting.cached("x", make, size=2)
    assert len(calls) == 2


def test_the_experiment_end_to_end(roomy, tmp_path, monkeypatch):
    names = ["cat", "The mat", "France", "Paris", "a test", "capital", "sat on", "tokenizer"]
    lines = [
        {"name": n, "description": f"kind {i} of thing {n[:2]}", "popularity_percentile": 10.0 * i}
        for i, n in enumerate(names)
    ]
    data = tmp_path / "e.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(module, "TOKENS", {"quick": 3, "full": 3})
    monkeypatch.setattr(module, "EXAMPLES", ("The cat", "Paris"))
    monkeypatch.setattr(module, "named_target", lambda name: ls.Target("Syria: Country in Asia, x"))
    monkeypatch.setattr(
        module, "entity_description", lambda lm: ls.Patchscope(lm, module.named_target("entity"), layers="same")
    )
    setting = Setting(roomy, data=(str(data),), quick=True, folder=tmp_path)
    report = module.EXPERIMENT.run(setting)
    layers = [0, 2, 4]
    assert [r["layer"] for r in report.tables["RougeL by layer"]] == layers
    assert [(r["score"], r["entities"]) for r in report.tables["selected layer"]] == [
        (s, g) for s in module.SCORES for g in ("all", "popular", "rare")
    ]
    # RougeL of the vectors at layer 2 and of the texts, from the transformers model
    ids = roomy.tokenizer("Syria: Country in Asia, x").input_ids
    own, told = [], []
    mark = find_marks(roomy).document
    for line in sorted(lines, key=lambda line: -line["popularity_percentile"]):
        source = [*mark, *roomy.tokenizer(line["name"], add_special_tokens=False).input_ids]
        kept = []
        hook = roomy.model.model.layers[1].register_forward_hook(lambda m, a, out, kept=kept: kept.append(out[0, -1]))
        with torch.no_grad():
            roomy.model(input_ids=torch.tensor([source]))
        hook.remove()
        for found, prompt, patch in (
            (own, ids, (2, len(ids) - 1, kept[0])),
            (told, roomy.tokenizer("Syria: Country in Asia, " + line["name"]).input_ids, None),
        ):
            text = roomy.tokenizer.decode([i for i in written_after(roomy.model, prompt, patch) if i != 2])
            found.append(rouge(description_in(text), line["description"]).rougeL)
    row = report.tables["RougeL by layer"][1]
    assert row[VECTOR].value == pytest.approx(np.mean(own))
    assert row[TEXT].value == pytest.approx(np.mean(told))
    assert row[f"vector - {TEXT}"].value == pytest.approx(np.mean(own) - np.mean(told))
    assert {SHUFFLED, RANDOM} < set(row)
    contaminated = report.tables["contamination"]
    assert contaminated[0]["RougeL, none - target"].value == contaminated[0]["RougeL, source - target"].value == 0
    assert [r["layer"] for r in report.tables["examples"]] == ["0", "2", "4", TEXT]
    report.save(tmp_path)
    assert (tmp_path / "entities.png").exists()
