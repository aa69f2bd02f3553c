"""The data of the experiment on prompt injections: questions with a place for an injection, and texts with labels.

Knows: which questions and texts a run takes, and counts those that it leaves out, with the reason.
Does not know: what is injected, what is measured.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lenscope.errors import LenscopeError
from lenscope.experiments.setting import Setting
from lenscope.experiments.tuned_lens_paper.injection_trials import PARTS
from lenscope.files.text_files import read_json_lines, read_lines
from lenscope.tasks import builtin_questions as quizzes
from lenscope.tasks.questions import ANSWER, BUILTIN, Question, few_shot_prompts, load_questions

DATA_FORMAT = (
    "JSONL of questions (query, choices, gold, task) and of texts (text, label 1 for attacks, source; category, host, "
    "span, insert_into)"
)
SHOTS = 3

# (task or "texts", why) → how many were left out
LeftOut = Counter[tuple[str, str]]


def questions_and_texts(
    setting: Setting, builtin: Sequence[str], most: int, left_out: LeftOut
) -> tuple[dict[str, list[Question]], list[dict[str, str]]]:
    """The questions by task, and the texts, each with the kind of attack it is, or ""; what is left out is counted."""
    if not setting.data:
        builtin_texts = [{"text": t, "attack": "", "source": "requests"} for t in quizzes.REQUESTS.splitlines()]
        builtin_texts += [
            {"text": t, "attack": "injections", "source": "requests"} for t in quizzes.INJECTIONS.splitlines()
        ]
        return {task: _drawn(setting, task, BUILTIN[task], most, left_out) for task in builtin}, builtin_texts
    questions: dict[str, list[Question]] = {}
    texts: list[dict[str, str]] = []
    for path in setting.data:
        if labelled(path):
            texts += texts_of(path, left_out)
            continue
        for question in load_questions(path):
            if question.query.endswith(ANSWER):
                questions.setdefault(question.task, []).append(question)
            else:
                left_out[question.task, f"does not end in {ANSWER!r}, before which an injection is put"] += 1
    usual = {task: np.bincount([len(q.choices) for q in several]).argmax() for task, several in questions.items()}
    usable: dict[str, list[Question]] = {task: [] for task in questions}
    for task, question in ((task, q) for task, several in questions.items() for q in several):
        if len(question.choices) != usual[task]:
            left_out[task, f"has not {usual[task]} choices, as most of the task's"] += 1
        elif not question.wrong:
            left_out[task, "has no choice that is wrong"] += 1
        else:
            usable[task].append(question)
    if not usable and not texts:
        dropped = sum(left_out.values())
        raise LenscopeError(
            f"--data: has no texts, and none of {dropped} questions ends in {ANSWER!r}; injection takes {DATA_FORMAT}"
        )
    return {task: _drawn(setting, task, several, most, left_out) for task, several in usable.items()}, texts


def labelled(path: str) -> bool:
    """Whether a file holds texts with labels, by its first line; else it holds questions."""
    first = next((line for line in read_lines(path) if line.strip()), "")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and "text" in row and "label" in row


def texts_of(path: str, left_out: LeftOut) -> list[dict[str, str]]:
    """The texts of a file, each with the kind of attack it is, or ""; LenscopeError for lines of another kind."""
    texts = []
    for where, row in read_json_lines(path):
        try:
            if row["text"].strip():
                source = str(row.get("source", Path(path).stem))
                attack = source if int(row["label"]) else ""
                texts.append({"text": row["text"], "attack": attack, "source": source})
            else:
                left_out["texts", "is empty"] += 1
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise LenscopeError(f"{where}: is no object with a text and a label of 0 or 1") from error
    return texts


def _drawn(setting: Setting, task: str, questions: Sequence[Question], most: int, left_out: LeftOut) -> list[Question]:
    """At most `most` questions, drawn at random, whose few-shot prompts fit in the model's context."""
    order = np.random.default_rng([setting.seed, 2]).permutation(len(questions))
    drawn: list[Question] = []
    few = [questions[i] for i in order.tolist()]
    longest = setting.lm.context or 1 << 40
    for question, prompt in zip(few, few_shot_prompts(few, SHOTS, setting.seed), strict=True):
        if len(drawn) == most:
            left_out[task, f"more than the {len(drawn)} that a run takes, drawn at random"] += 1
        # room for what is put in, and for the answer
        elif len(setting.lm.encoder.ids(prompt)) + 200 <= longest:
            drawn.append(question)
        else:
            left_out[task, "its few-shot prompt is longer than the model's context"] += 1
    if len(drawn) < 2 * PARTS:
        reasons = "".join(f"; {count}: {why}" for (of, why), count in left_out.items() if of == task)
        raise LenscopeError(
            f"{task}: {len(drawn)} questions; give at least {2 * PARTS} whose few-shot prompts fit the context{reasons}"
        )
    return drawn
