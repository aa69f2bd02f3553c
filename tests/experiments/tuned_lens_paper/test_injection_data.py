"""What the injection experiment leaves out is counted, with the reason."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from detecting import roomy_model, tuned_lens

import lenscope as ls
from lenscope.experiments.setting import Setting
from lenscope.experiments.tuned_lens_paper import injection_data as injected
from lenscope.tasks.questions import BUILTIN


@pytest.fixture(scope="module")
def lm():
    return roomy_model()


@pytest.fixture(scope="module")
def tuned(lm):
    return tuned_lens(lm)


def test_what_an_experiment_leaves_out_is_counted_with_the_reason(lm, tuned, tmp_path):
    some = [{"query": q.query, "choices": q.choices, "gold": q.gold, "task": "t"} for q in BUILTIN["capitals"][:20]]
    odd = [{**q, "query": q["query"].removesuffix("Answer:") + "A:"} for q in some[:3]]
    fewer = [{**q, "choices": [*q["choices"], "none"]} for q in some[3:5]]
    same = [{**some[5], "choices": [some[5]["choices"][0]] * len(some[5]["choices"])}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, [*odd, *fewer, *same, *some[6:]])))
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": t, "label": 0}) for t in ("a", " ", "a")))
    setting = Setting(lm, lens=tuned.f, data=(str(tmp_path / "q.jsonl"), str(tmp_path / "t.jsonl")))
    left_out = Counter()
    questions, texts = injected.questions_and_texts(setting, (), 10, left_out)
    assert [len(mine) for mine in questions.values()] == [10]
    assert len(texts) == 2
    assert left_out == {
        ("t", "does not end in 'Answer:', before which an injection is put"): 3,
        ("t", f"has not {len(some[0]['choices'])} choices, as most of the task's"): 2,
        ("t", "has no choice that is wrong"): 1,
        ("t", "more than the 10 that a run takes, drawn at random"): 4,
        ("texts", "is empty"): 1,
    }
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, odd)))
    with pytest.raises(ls.LenscopeError, match="none of 3 questions ends in 'Answer:'"):
        injected.questions_and_texts(replace(setting, data=(str(tmp_path / "q.jsonl"),)), (), 10, Counter())
