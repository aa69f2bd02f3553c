"""Answers' log-likelihoods equal what plain forward passes give, prompts never show the question they ask."""

import gzip
import json

import numpy as np
import pytest
import tiny
import torch

import lenscope as ls
from lenscope.engine import exact_modes
from lenscope.tasks import answer_likelihoods
from lenscope.tasks import builtin_questions as quizzes
from lenscope.tasks import questions as module
from lenscope.tasks.answer_likelihoods import AnswerScores, answer_log_likelihoods
from lenscope.tasks.questions import BUILTIN, Question, few_shot_prompts, likeliest_is_right

ASKED = [
    Question("a", "t", "Question: Where?\nAnswer:", ("the cat sat on it", "Paris", "a mat"), 1),
    Question("b", "t", "Question: Which one is it then?\nAnswer:", ("yes", "no"), 0),
    Question("c", "t", "Q: x\nAnswer:", ("the cat", "the cat sat", "the mat"), 2),
]


@pytest.fixture(scope="module")
def lm():
    """With room for few-shot prompts; as one letter is one token or more, answers have several."""
    model = tiny.model("llama", dtype=torch.float64)
    model.config.max_position_embeddings = 4096
    return ls.LM(model, tiny.tokenizer(), "tiny-llama")


def by_hand(lm, f, layers, prompt, choice):
    """ln p of an answer at each layer: one pass over prompt and answer, hooks on the blocks, norm and head applied."""
    before, after = lm.tokenizer(prompt)["input_ids"], lm.tokenizer(f"{prompt} {choice}")["input_ids"]
    kept, blocks = [], lm.model.model.layers
    hooks = [blocks[0].register_forward_pre_hook(lambda _, args: kept.append(args[0]))]
    hooks += [b.register_forward_hook(lambda _m, _a, out: kept.append(out)) for b in blocks]
    with torch.no_grad():
        logits = lm.model(torch.tensor([after])).logits[0].log_softmax(-1)
        for hook in hooks:
            hook.remove()
        found = []
        for layer in layers:
            z = lm.model.lm_head(lm.model.model.norm(f(kept[layer][0], layer))).log_softmax(-1)
            found.append(sum(float(z[i - 1, after[i]]) for i in range(len(before), len(after))))
    own = sum(float(logits[i - 1, after[i]]) for i in range(len(before), len(after)))
    return found, own, len(after) - len(before)


def shifted(h, layer):
    return h * 1.5 + layer


@pytest.mark.parametrize("forks", [True, False])
def test_log_likelihoods_equal_plain_passes(lm, monkeypatch, forks):
    read = []
    for name in ("_states_from_cache", "_states_read_again"):
        plain = getattr(answer_likelihoods, name)
        monkeypatch.setattr(answer_likelihoods, name, lambda *a, plain=plain, name=name: read.append(name) or plain(*a))
    if not forks:
        monkeypatch.setattr(exact_modes, "is_exact_mode", lambda *_: False)
    prompts = few_shot_prompts(ASKED, 2)
    lenses = [ls.Lens(lm), ls.Lens(lm, shifted)]
    found = answer_log_likelihoods(lenses, prompts, [q.choices for q in ASKED], [0, 2, -1])
    assert {*read} == {"_states_from_cache" if forks else "_states_read_again"}
    for scores, f in zip(found, (lambda h, _: h, shifted), strict=True):
        assert scores.layers == (0, 2, 4)
        assert scores.log_probs.shape == (3, 3, 3)
        for n, (prompt, question) in enumerate(zip(prompts, ASKED, strict=True)):
            for c, choice in enumerate(question.choices):
                layers, own, length = by_hand(lm, f, scores.layers, prompt, choice)
                np.testing.assert_allclose(scores.log_probs[n, :, c], layers, rtol=0, atol=1e-8)
                assert scores.own[n, c] == pytest.approx(own, abs=1e-8)
                assert scores.lengths[n, c] == length > 1 - bool(length)
        # the second question has a choice less
        assert np.isnan(scores.log_probs[1, :, 2]).all()
        assert scores.lengths[1, 2] == 0
    assert max(found[0].lengths.reshape(-1)) > 2


def test_shape_is_the_api(lm):
    prompts, choices = few_shot_prompts(ASKED, 1), [q.choices for q in ASKED]
    alone = answer_log_likelihoods(ls.Lens(lm), prompts[:1], choices[:1])
    assert isinstance(alone, AnswerScores)
    assert alone.layers == (0, 1, 2, 3, 4)
    both = answer_log_likelihoods([ls.Lens(lm)], prompts, choices)
    assert isinstance(both, list)
    np.testing.assert_allclose(both[0].log_probs[:1], alone.log_probs, atol=1e-9)
    steps = []
    answer_log_likelihoods(ls.Lens(lm), prompts, choices, [1], progress=lambda *at: steps.append(at))
    assert steps == [(3, 3)]


def test_edits_reach_the_answers(lm):
    """Under an edit the prompt's cache is not shared, and the numbers are those of the edited model."""
    prompt, choices = "The cat sat", [("on the mat", "in it")]
    plain = answer_log_likelihoods(ls.Lens(lm), [prompt], choices)
    with lm.edit(ls.Edit(2, -1, torch.ones(lm.hidden_size, dtype=torch.float64))):
        edited = answer_log_likelihoods(ls.Lens(lm), [prompt], choices)
    np.testing.assert_allclose(edited.log_probs[0, :2], plain.log_probs[0, :2], atol=1e-9)
    assert np.abs(edited.own - plain.own).min() > 1e-3


def test_single_token_answers_need_no_second_pass(lm, monkeypatch):
    monkeypatch.setattr(answer_likelihoods, "_states_from_cache", None)
    monkeypatch.setattr(answer_likelihoods, "_states_read_again", None)
    one = lm.encoder.tokens(lm.encoder.ids(" ab"))
    assert len(one) > 1
    letters = [t for t in (" a", " t", " s") if len(lm.encoder.ids(t)) == 1]
    assert len(letters) >= 2
    found = answer_log_likelihoods(ls.Lens(lm), ["The cat"], [[t.strip() for t in letters]])
    with torch.no_grad():
        z = lm.model(torch.tensor([lm.encoder.ids("The cat")])).logits[0, -1].log_softmax(-1)
    np.testing.assert_allclose(found.own[0], [float(z[lm.encoder.ids(t)[0]]) for t in letters], atol=1e-9)


def test_mistakes_are_one_line(lm):
    lens = ls.Lens(lm)
    for call, told in (
        (lambda: answer_log_likelihoods(lens, ["a"], []), "0 lists of choices for 1 prompts"),
        (lambda: answer_log_likelihoods([], ["a"], [["b"]]), "at least one"),
        (lambda: answer_log_likelihoods(lens, ["a"], [[]]), "no choices"),
        (lambda: answer_log_likelihoods(lens, ["a"], [["b", " "]]), "is empty"),
        (lambda: answer_log_likelihoods(lens, ["a" * 4095], [["b" * 10]]), "reads at most 4096"),
        (lambda: answer_log_likelihoods(lens, ["a"], [["b"]], [7]), "layer 7"),
        (lambda: few_shot_prompts(ASKED, 3), "shots 3: there are 2"),
        (lambda: few_shot_prompts(ASKED, -1), "0 or more"),
        (lambda: Question("a", "t", "q", ("b",), 0), "two choices"),
        (lambda: Question("a", "t", "q", ("b", "c"), 2), "0–1"),
        (lambda: Question("a", "t", "q", ("b", "c"), True), "gold True"),
    ):
        with pytest.raises(ls.LenscopeError, match=told):
            call()


def test_few_shot_prompts_never_show_the_question_they_ask():
    questions = BUILTIN["opposites"][:40]
    prompts = few_shot_prompts(questions, 3, seed=5)
    assert prompts == few_shot_prompts(questions, 3, seed=5) != few_shot_prompts(questions, 3, seed=6)
    answered = {f"{q.query} {q.choices[q.gold]}": q for q in questions}
    for question, prompt in zip(questions, prompts, strict=True):
        parts = prompt.split("\n\n")
        assert len(parts) == 4
        assert parts[-1] == question.query
        shown = [answered[p] for p in parts[:-1]]
        assert question not in shown
        assert len({q.id for q in shown}) == 3
    # the same question in the same company gets the same prompt, and fewer shots are the last of more
    assert few_shot_prompts(questions[3:9], 3, 5, pool=questions) == prompts[3:9]
    assert all(more.endswith(less) for more, less in zip(prompts, few_shot_prompts(questions, 2, 5), strict=True))
    # twins: another id, the same words
    twin = Question("twin", "t", ASKED[0].query, ("x", "y"), 0)
    assert few_shot_prompts([ASKED[0]], 1, pool=[twin, ASKED[1]])[0].startswith(ASKED[1].query)
    wrong = few_shot_prompts(ASKED, 2, answer=lambda q: q.wrong[0])
    assert "then?\nAnswer: no\n\n" in wrong[0]


def test_the_right_choice_counts():
    log_probs = np.array([[[-1.0, -2, np.nan], [-3, -2, np.nan]], [[-5.0, -4, -3], [-1, -2, -3]]])
    assert likeliest_is_right(log_probs, [0, 2]).tolist() == [[True, False], [True, False]]
    assert likeliest_is_right(log_probs[:, 1], [0, 0]).tolist() == [False, True]


def test_files_of_questions(tmp_path):
    line = {"query": "Q\nAnswer:", "choices": ["a", "b"], "gold": 1}
    path = tmp_path / "task.jsonl"
    path.write_text(json.dumps(line) + "\n\n" + json.dumps({**line, "id": "x", "task": "other"}) + "\n")
    first, second = ls_load(path)
    assert (first.id, first.task, first.choices, first.gold) == ("task/1", "task", ("a", "b"), 1)
    assert (second.id, second.task) == ("x", "other")
    zipped = tmp_path / "task.jsonl.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert ls_load(zipped) == [first, second]
    bad = [{**line, "gold": 2}, {**line, "gold": "1"}, {**line, "choices": "ab"}, {**line, "choices": ["a", 1]}]
    bad += [{**line, "query": 3}, {**line, "query": ""}, {"query": "x"}, [1], 3]
    for value in (*map(json.dumps, bad), "{", "[" * 100_000):
        path.write_text(json.dumps(line) + "\n" + value)
        with pytest.raises(ls.LenscopeError, match="line 2: is no question"):
            ls_load(path)
    path.write_text("\n")
    with pytest.raises(ls.LenscopeError, match="no questions"):
        ls_load(path)
    path.write_text(json.dumps(line), encoding="utf-8-sig")
    assert [q.choices for q in ls_load(path)] == [("a", "b")]
    path.write_text(json.dumps({**line, "query": "a\u2028b\x85c"}, ensure_ascii=False) + "\r", encoding="utf-16")
    assert [q.query for q in ls_load(path)] == ["a\u2028b\x85c"]
    path.write_bytes(b"\xff\xff")
    with pytest.raises(ls.LenscopeError, match="is not UTF-8"):
        ls_load(path)
    path.unlink()
    for where in (path, tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(ls.LenscopeError, match="cannot be read"):
            ls_load(where)


ls_load = module.load_questions


@pytest.mark.parametrize("name", list(BUILTIN))
def test_built_in_questions_are_sound(name):
    questions = BUILTIN[name]
    assert len(questions) >= 60
    assert len({q.query for q in questions}) == len(questions)
    assert len({len(q.choices) for q in questions}) == 1
    for q in questions:
        assert q.query.endswith("Answer:")
        assert len(set(q.choices)) == len(q.choices)
        assert len(q.wrong) == len(q.choices) - 1
    # the place of the right answer tells nothing
    share = np.bincount([q.gold for q in questions]) / len(questions)
    assert np.abs(share - 1 / len(questions[0].choices)).max() < 0.15
    assert quizzes.builtin_set(name) == quizzes.builtin_set(name)


def test_opposites_have_one_right_choice():
    """A rival that is right too would make the gold meaningless."""
    pairs = quizzes._pairs(quizzes.OPPOSITES)
    right = {frozenset(p) for p in pairs}
    for question in BUILTIN["opposites"]:
        asked = question.query.split(" of ")[1].split("?")[0]
        assert [frozenset((asked, c)) in right for c in question.choices].index(True) == question.gold
        assert sum(frozenset((asked, c)) in right for c in question.choices) == 1
