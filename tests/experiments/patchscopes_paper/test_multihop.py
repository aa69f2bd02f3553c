"""Two-hop questions: what is shown and asked, grids as hooks give them, the tables by hand."""

import json

import numpy as np
import pytest
from patched_texts import written_after

import lenscope as ls
from lenscope.experiments.patchscopes_paper import multihop
from lenscope.experiments.patchscopes_paper import multihop_patches as hopping
from lenscope.experiments.patchscopes_paper.multihop_patches import (
    PLAIN,
    kinds_of,
)
from lenscope.experiments.setting import Setting
from lenscope.patchscopes.control_runs import NONE, RANDOM, SHUFFLED, TEXT, VECTOR
from lenscope.tasks.relations import Chain
from lenscope.tasks.text_match import compared_words, mentions


def chain(n, bridge=None, answer=None, name="a → b"):
    bridge, answer = bridge or f"bridge{n}", answer or f"answer{n}"
    return Chain(name, f"subject{n}", bridge, answer, "{} is in", "the place of {}", "The test of {} is")


def planted(n=32):
    """Cells 0–3; the vector is right in cell 2 for three of four questions, other sources in no cell."""
    right = np.zeros((n, 4))
    right[np.arange(n) % 4 < 3, 2] = 1
    zero = np.zeros((n, 4))
    grid = multihop._Grid(
        ((0, 0), (0, 1)), {VECTOR: right, RANDOM: zero, SHUFFLED: zero, TEXT: zero[:, :2]}, {VECTOR: zero + 1}
    )
    asked = {PLAIN[0]: np.arange(n) % 2 == 0}
    return asked, {multihop.COT: grid}, [f"u{i}" for i in range(n)]


def test_tables_by_hand():
    asked, grids, units = planted()
    grids = {multihop.COT: grids[multihop.COT]}
    grids[multihop.COT].other.update({w: np.zeros_like(s) for w, s in grids[multihop.COT].right.items() if w != VECTOR})
    rows = {r["way"]: r for r in multihop._rows(asked, {PLAIN[0]: ~asked[PLAIN[0]]}, grids, units, 0)}
    own = rows["CoT Patchscope: vector"]
    assert (own["cells"], own["best in hindsight"].value, own["selected cell"].value) == (4, 0.75, 0.75)
    assert own["mean cell"].value == 0.75 / 4
    assert own["another's answer"].value == 1
    assert rows["CoT Patchscope: text"]["cells"] == 2
    assert rows[PLAIN[0]]["selected cell"].value == rows[PLAIN[0]]["another's answer"].value == 0.5
    tests = {r["comparison"]: r for r in multihop._tests(asked, grids, units, 0)}
    assert tests[f"CoT Patchscope - {PLAIN[0]}"]["difference"].value == 0.25
    assert tests["CoT Patchscope - random vector"]["difference"].value == 0.75
    assert tests["CoT Patchscope - random vector, mean cell"]["difference"].value == 0.75 / 4
    assert tests["CoT Patchscope - random vector"]["p (Holm)"] < 0.01


@pytest.fixture
def answerable(roomy, tmp_path):
    """Questions of which every second one has an answer that the model says, asked without demonstrations."""
    lines = []
    for n in range(14):
        subject = ["cat", "mat", "sat", "test", "Paris", "France", "capital", "tokenizer"][n % 8] + str(n)
        question = f"The test of the place of {subject} is"
        text = roomy.tokenizer.decode(
            [i for i in written_after(roomy.model, roomy.tokenizer(question).input_ids) if i != 2]
        )
        said = [w for w in compared_words(text) if mentions(text, w)]
        lines.append(
            {
                "subject": subject,
                "bridge": f"bridge{n}",
                "answer": said[0] if said and n % 2 else f"nothing{n}",
                "hop1_prompt": f"{subject} is in",
                "hop1_phrase": f"the place of {subject}",
                "hop2_template": "The test of {} is",
            }
        )
    data = tmp_path / "chains.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    return data


def test_the_experiment_end_to_end(roomy, tmp_path, answerable, monkeypatch):
    monkeypatch.setattr(
        hopping, "answers_correctly", lambda lm, prompts, answers, advance: np.ones(len(prompts), dtype=bool)
    )
    monkeypatch.setattr(hopping, "THOUGHT_TOKENS", 3)
    monkeypatch.setattr(multihop, "TOKENS", {"quick": 3, "full": 3})
    monkeypatch.setattr(multihop, "STEP", {"quick": 2, "full": 2})
    # a demonstration is as long as the whole prompt for a tokenizer of hardly more than letters
    monkeypatch.setattr(hopping, "SHOTS", 1)
    setting = Setting(roomy, data=(str(answerable),), quick=True, folder=tmp_path)
    report = multihop.EXPERIMENT.run(setting)
    rows = {r["way"]: r for r in report.tables["all"]}
    kinds, _ = hopping.known_kinds(setting, kinds_of(multihop._chains(setting), 112))
    asked = [c for k in kinds for c in k.chains]
    assert len(asked) == report.settings["questions"]
    expected = []
    for c in asked:
        written = written_after(roomy.model, roomy.tokenizer(c.questions[2]).input_ids)
        expected.append(mentions(roomy.tokenizer.decode(written).split("\n")[0], c.answer))
    assert rows["asked, zero-shot"]["selected cell"].value == pytest.approx(np.mean(expected))
    assert 0 < np.mean(expected) < 1
    # the first hop as text in the second hop's prompt is the question itself
    said = hopping.cot_texts(setting, kinds, [0, 2, 4], {"questions": [c.questions[2] for c in asked], "tokens": 3})
    assert [mentions(t, c.answer) for t, c in zip(said.texts[TEXT][:, 0], asked, strict=True)] == expected
    assert said.texts[VECTOR].shape == (len(asked), 2 * 9)
    assert rows["CoT Patchscope: vector"]["cells"] == 18
    assert rows["back-patching: vector"]["cells"] == 6
    assert f"CoT Patchscope: {NONE}" in rows
    again = multihop.EXPERIMENT.run(Setting(roomy, data=setting.data, quick=True, folder=tmp_path))
    assert repr(again.tables) == repr(report.tables)
    report.save(tmp_path)
    assert (tmp_path / "multihop.png").exists()


def test_a_model_that_knows_nothing_is_told(roomy, answerable, monkeypatch):
    monkeypatch.setattr(
        hopping, "answers_correctly", lambda lm, prompts, answers, advance: np.zeros(len(prompts), dtype=bool)
    )
    with pytest.raises(ls.LenscopeError, match="answers both hops of 0 of"):
        multihop.EXPERIMENT.run(Setting(roomy, data=(str(answerable),), quick=True))
