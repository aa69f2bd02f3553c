"""What explanations are worth: three Patchscopes end to end, one number of each by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from patched_texts import written_after

import lenscope as ls
from lenscope.experiments.patchscopes_paper import worth as module
from lenscope.experiments.setting import Setting
from lenscope.patchscopes.control_runs import TEXT, VECTOR
from lenscope.tasks.relations import Entity, Fact, Relation
from lenscope.tasks.text_match import compared_words, mentions
from lenscope.text.packing import find_marks

SUBJECTS = ["cat", "mat", "Paris", "France", "test", "capital", "sat", "tokenizer"]


def said_after(lm, text, patch=None):
    return lm.tokenizer.decode([i for i in written_after(lm.model, lm.tokenizer(text).input_ids, patch) if i != 2])


def test_the_experiment_end_to_end(roomy, tmp_path, monkeypatch):
    # every second subject has an answer that its name as text makes the model say
    lines = []
    for n, subject in enumerate(SUBJECTS):
        said = compared_words(said_after(roomy, f"The place of {subject}"))
        answer = said[0] if said and n % 2 else f"nothing{n}"
        lines.append({"relation": "place", "subject": subject, "object": answer, "template": "The place of {} is"})
    lines += [
        {"relation": "small", "subject": s, "object": "it", "template": "The size of {} is"} for s in SUBJECTS[:2]
    ]
    data = tmp_path / "facts.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(module, "known_facts", lambda lm, relation, *_: np.ones(len(relation.facts), dtype=bool))
    monkeypatch.setattr(module, "builtin_entities", lambda: [Entity(s, f"a kind of {s[:1]}") for s in SUBJECTS])
    monkeypatch.setattr(module, "entity_description", lambda lm: ls.Patchscope(lm, ls.Target("a: b, x"), layers="same"))
    monkeypatch.setattr(module, "TOKENS", {"quick": 3, "full": 3})
    monkeypatch.setattr(module, "DESCRIBED", {"quick": 3, "full": 3})
    monkeypatch.setattr(module, "STEP", {"quick": 2, "full": 2})
    monkeypatch.setattr(module, "COARSE", {"quick": 2, "full": 2})
    setting = Setting(roomy, data=(str(data),), quick=True, folder=tmp_path)
    report = module.EXPERIMENT.run(setting)
    rows = {r["Patchscope"]: r for r in report.tables["worth"]}
    assert list(rows) == [module.IDENTITY, module.FEATURES, module.ENTITY]
    (relation,), left_out = module._facts(setting)
    assert left_out == report.settings["left_out"] == {"small": "has 2 facts"}
    expected = [mentions(said_after(roomy, f"The place of {f.subject}"), f.answers) for f in relation.facts]
    assert rows[module.FEATURES][TEXT].value == pytest.approx(np.mean(expected))
    assert np.mean(expected) > 0
    # the vector of one cell, by hooks
    case = module._feature_case(setting, relation)
    made = module._score_case(setting, case)
    mark = find_marks(roomy).document
    ids = roomy.tokenizer("The place of x").input_ids
    at = made.cells.index((4, 2))
    for n, fact in enumerate(relation.facts):
        prompt = [*mark, *roomy.tokenizer(fact.subject, add_special_tokens=False).input_ids]
        state = roomy.runner.read_plain(prompt)[-1]
        text = roomy.tokenizer.decode([i for i in written_after(roomy.model, ids, (2, len(ids) - 1, state)) if i != 2])
        assert made.scores[VECTOR][n, at] == mentions(text, fact.answers)
    # the text's next token after the list of words, beside the one after the text alone
    identity = module._identity_case(setting, [relation])
    assert len(identity.texts) == rows[module.IDENTITY]["items"]
    prompt = "cat -> cat\n1135 -> 1135\nhello -> hello\n"
    same = [
        written_after(roomy.model, roomy.tokenizer(prompt + t).input_ids)[0]
        == written_after(roomy.model, roomy.tokenizer(t).input_ids)[0]
        for t in identity.texts
    ]
    assert rows[module.IDENTITY][TEXT].value == pytest.approx(np.mean(same))
    assert {r["layer"] for r in report.tables["feature extraction by layer"]} == {0, 2, 4}
    assert len(report.tables["differences"]) == 12
    report.save(tmp_path)
    assert (tmp_path / "worth.png").exists()


def test_the_last_layer_says_the_own_next_token_of_what_was_read(roomy, monkeypatch):
    monkeypatch.setattr(
        module, "after_document_mark", lambda lm, texts: [lm.prompt([7, 9, *lm.encoder.ids(t)]) for t in texts]
    )
    monkeypatch.setattr(module, "STEP", {"quick": 2, "full": 2})
    relation = Relation("place", "The place of {} is", "The place of x", tuple(Fact(s, (s,)) for s in SUBJECTS))
    setting = Setting(roomy, quick=True)
    case = module._identity_case(setting, [relation])
    last = roomy.n_layers, roomy.n_layers
    assert last not in case.layers
    assert (module._score_case(setting, replace(case, layers=[last])).scores[VECTOR] == 1).all()
    alone = {t: written_after(roomy.model, roomy.encoder.ids(t))[0] for t in case.texts}
    behind = {t: written_after(roomy.model, [7, 9, *roomy.encoder.ids(t)])[0] for t in case.texts}
    assert alone != behind


def test_relations_of_which_too_little_is_known_are_told(lm64, monkeypatch):
    monkeypatch.setattr(module, "known_facts", lambda lm, relation, *_: np.zeros(len(relation.facts), dtype=bool))
    with pytest.raises(ls.LenscopeError, match="knows fewer than 4 facts"):
        module.EXPERIMENT.run(Setting(lm64, quick=True))
