"""Overthinking: calibrated accuracy by its definition, demonstrations as said, exits tested on other questions."""

import json

import numpy as np
import pytest
import tiny
import torch
from affine_lens import affine

import lenscope as ls
from lenscope.experiments.setting import Setting
from lenscope.experiments.tuned_lens_paper import overthinking as module
from lenscope.experiments.tuned_lens_paper.overthinking import calibrated, next_choice, unrelated_words
from lenscope.statistics.intervals import Estimate
from lenscope.tasks.questions import BUILTIN, Question, few_shot_prompts

WORDS = ["cat", "mat", "sat", "Paris", "France", "test", "capital", "tokenizer"]


def asked(count, labels=("yes", "no")):
    return [
        Question(f"t/{n}", "t", f"Question: Is {WORDS[n % 8]} {n} odd?\nAnswer:", labels, n % len(labels))
        for n in range(count)
    ]


def scored(log_probs, questions, task="t"):
    return module._TaskScores(task, 2, questions, log_probs)


def test_calibrated_accuracy_by_hand():
    # two labels: the right one's share against the median of its share
    share = np.array([0.9, 0.8, 0.7, 0.6])  # of label 0, always favoured
    log_probs = np.log(np.stack([share, 1 - share], -1))
    # medians .75 and .25: the first two are above for label 0, the last two above .25 for label 1
    assert calibrated(log_probs, [0, 0, 1, 1]).tolist() == [1, 1, 1, 1]
    assert calibrated(log_probs, [1, 1, 0, 0]).tolist() == [0, 0, 0, 0]
    assert calibrated(log_probs, [0, 1, 0, 1]).tolist() == [1, 0, 0, 1]
    # ties count as chance, whatever is added to all labels of a question
    assert calibrated(np.full((6, 5, 3), -2.0), [0, 1, 2, 0, 1, 2]) == pytest.approx(np.full((6, 5), 1 / 3))
    shifted = log_probs + np.array([[3.0], [-50.0], [0.0], [7.0]])
    assert calibrated(shifted, [0, 0, 1, 1]).tolist() == [1, 1, 1, 1]


def test_of_three_labels_the_upper_third_counts():
    random = np.random.default_rng(0)
    p = random.dirichlet(np.ones(3), 31)
    gold = random.integers(0, 3, 31)
    expected = []
    for row, label in zip(p, gold, strict=True):
        others = np.sort(p[:, label])
        # the 2/3 quantile of 31 numbers is the one at index 20
        expected.append(float(row[label] > others[20]) + (row[label] == others[20]) / 3)
    assert calibrated(np.log(p), gold.tolist()) == pytest.approx(expected)


def test_incorrect_demonstrations_show_a_permuted_label_and_unrelated_ones_no_label():
    questions = asked(12)
    for correct_one, wrong_one in zip(
        few_shot_prompts(questions, 3), few_shot_prompts(questions, 3, answer=next_choice), strict=True
    ):
        swapped = wrong_one.replace("Answer: yes", "Answer: *").replace("Answer: no", "Answer: yes")
        assert swapped.replace("Answer: *", "Answer: no") == correct_one
    three = asked(6, ("a", "b", "c"))
    assert [next_choice(q) for q in three] == [1, 2, 0, 1, 2, 0]
    # a choice that reads as the right one is no wrong answer
    assert next_choice(Question("x", "x", "q", ("a", "a", "b"), 0)) == 2
    for prompt in few_shot_prompts(questions, 3, pool=unrelated_words(questions)):
        assert "Answer: yes" not in prompt
        assert "Answer: no" not in prompt
        assert prompt.count("Answer: ") == 3


def test_halves_share_no_question_and_have_the_same_labels():
    questions = asked(22, ("a", "b", "c"))
    first, second = module._halves(questions)
    assert sorted(first + second) == list(range(22))
    for label in range(3):
        counts = [sum(questions[i].gold == label for i in half) for half in (first, second)]
        assert abs(counts[0] - counts[1]) <= 1


def planted(questions, best, layers=5):
    """ln p by (demonstrations, lens): right, but after incorrect ones at layer `best` alone."""
    found = {}
    gold = np.array([q.gold for q in questions])
    for demonstrations in ("correct", "incorrect", "unrelated"):
        lp = np.full((len(questions), layers, 2), np.log(0.5))
        for layer in range(layers):
            wrong = demonstrations == "incorrect" and layer != best
            lp[np.arange(len(gold)), layer, gold] += -1 if wrong else 1
        for lens in module.LENSES:
            found[demonstrations, lens] = lp
    return found


def test_a_planted_exit_is_found_and_tested_on_other_questions():
    questions = asked(24)
    row = module._exit(scored(planted(questions, 2), questions), "tuned lens")
    assert row["exit at"] == "2"
    assert row["exit, incorrect"].value == 1
    assert row["final, incorrect"].value == 0
    assert row["gap"].value == 1
    assert row["exit - final, incorrect"].value == 1
    assert row["exit - final, correct"].value == 0
    final = module._final(scored(planted(questions, 2), questions))
    assert (final["correct"].value, final["incorrect"].value, final["correct - incorrect"].value) == (1, 0, 1)
    assert final["critical layer, tuned lens"] == "3"


def test_a_layer_that_is_best_by_chance_is_not_rewarded(monkeypatch):
    """With all layers guessing, the chosen one is no better than the last on questions it was not chosen on."""
    monkeypatch.setattr(module, "mean", lambda v: Estimate(float(np.mean(v)), 0, 0))
    monkeypatch.setattr(module, "difference", lambda a, b: Estimate(float(np.mean(a - b)), 0, 0))
    gains = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        questions = asked(40)
        lp = {
            (d, lens): random.normal(size=(40, 12, 2))
            for d in ("correct", "incorrect", "unrelated")
            for lens in module.LENSES
        }
        gains.append(module._exit(scored(lp, questions), "tuned lens")["exit - final, incorrect"].value)
    assert abs(np.mean(gains)) < 4 * np.std(gains) / 60**0.5
    assert np.std(gains) > 0.02


def test_built_in_label_tasks_are_asked_in_balance():
    setting = Setting(lm=None, quick=True)
    for pool, questions in module._tasks(setting).values():
        golds = [q.gold for q in questions]
        assert {golds.count(n) for n in range(len(questions[0].choices))} == {len(golds) // len(questions[0].choices)}
        assert len(pool) > len(questions) == 48
        assert {q.id for q in questions} <= {q.id for q in (*BUILTIN["praise"], *module.sort_questions())}


def test_words_are_sorted_as_they_are():
    found = {q.id.removeprefix("sorts/"): q.choices[q.gold] for q in module.sort_questions()}
    assert (found["eagle"], found["onion"], found["hammer"], found["lion"]) == ("animal", "food", "object", "animal")


def test_the_experiment_end_to_end(lm64, tmp_path, monkeypatch):
    data = tmp_path / "odd.jsonl"
    lines = [{"query": q.query, "choices": list(q.choices), "gold": q.gold, "task": "odd"} for q in asked(14)]
    data.write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(module, "SHOTS", {"quick": (1,), "full": (1,)})
    setting = Setting(lm64, data=(str(data),), lens=affine(lm64), quick=True, folder=tmp_path)
    report = module.EXPERIMENT.run(setting)
    rows, layers, (final,) = (report.tables[name] for name in ("early exit", "odd by layer", "final accuracy"))
    assert [(r["task"], r["shots"], r["lens"]) for r in rows] == [("odd", 1, "tuned lens"), ("odd", 1, "logit lens")]
    assert [r["layer"] for r in layers] == [*range(lm64.n_layers + 1)]
    # the final accuracy after correct demonstrations, from the transformers model
    questions = module._tasks(setting)["odd"][1]
    assert len(questions) == 14
    expected = []
    for question, prompt in zip(
        questions, few_shot_prompts(questions, 1, pool=module._tasks(setting)["odd"][0]), strict=True
    ):
        scores = []
        for choice in question.choices:
            before, ids = (tiny.tokenizer()(t, return_tensors="pt").input_ids for t in (prompt, f"{prompt} {choice}"))
            with torch.no_grad():
                lp = lm64.model(ids).logits[0].log_softmax(-1)
            start = before.shape[1]
            scores.append(float(lp[start - 1 : -1].gather(1, ids[0, start:, None]).sum()))
        expected.append(scores)
    p = np.exp(expected)
    share = p / p.sum(1, keepdims=True)
    right = [share[n, q.gold] > np.median(share[:, q.gold]) for n, q in enumerate(questions)]
    assert final["correct"].value == layers[-1]["correct, logit lens"].value == pytest.approx(np.mean(right))
    assert final["chance"] == 0.5
    again = module.EXPERIMENT.run(Setting(lm64, data=setting.data, lens=setting.lens, quick=True, folder=tmp_path))
    assert again.tables == report.tables
    assert again.reading == report.reading
    report.save(tmp_path)
    assert (tmp_path / "overthinking.png").exists()


def test_too_few_questions_are_told(lm64, tmp_path):
    data = tmp_path / "few.jsonl"
    data.write_text(json.dumps({"query": "Q", "choices": ["a", "b"], "gold": 0, "task": "few"}))
    with pytest.raises(ls.LenscopeError, match=r"task few: has \d questions to ask; give at least 8"):
        module.EXPERIMENT.run(Setting(lm64, data=(str(data),), quick=True))
