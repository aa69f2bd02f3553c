"""Multiple-choice questions: files of them, the built-in ones, and prompts with answered questions before each.

Knows: the file format, where demonstrations come from, when the right choice is the likeliest.
Does not know: the built-in questions' words (builtin_questions.py), models, how likely answers are
(answer_likelihoods.py).
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from lenscope.errors import LenscopeError
from lenscope.files.text_files import read_lines
from lenscope.tasks import builtin_questions as quizzes

# how a query ends; " " and the answer follow
ANSWER = "Answer:"


@final
@dataclass(frozen=True)
class Question:
    """A question with choices: `query` ends where " " and a choice follow; `gold` is the index of the right one.

    Raises LenscopeError for fewer than two choices, empty ones, or a gold that is none of them.
    """

    id: str
    task: str
    query: str
    choices: tuple[str, ...]
    gold: int

    def __post_init__(self) -> None:
        if not self.query.strip() or len(self.choices) < 2 or not all(c.strip() for c in self.choices):
            raise LenscopeError(f"question {self.id}: give a query and at least two choices, none of them empty")
        if isinstance(self.gold, bool) or not isinstance(self.gold, int) or not 0 <= self.gold < len(self.choices):
            raise LenscopeError(f"question {self.id}: gold {self.gold!r}; give one of 0–{len(self.choices) - 1}")

    @property
    def wrong(self) -> tuple[int, ...]:
        """The choices that do not read as the right one does."""
        return tuple(n for n, c in enumerate(self.choices) if c.strip() != self.choices[self.gold].strip())


def load_questions(path: str | os.PathLike[str]) -> list[Question]:
    """Questions of a JSONL file (.gz too): objects with query, choices (list of texts), gold (index); id, task if any.

    The task is otherwise the file's name. Raises LenscopeError, with the line, for whatever is none.
    """
    path = Path(path)
    task = path.name.split(".")[0]
    questions = [
        _question(line, f"{path}, line {n}", task, n) for n, line in enumerate(read_lines(path), 1) if line.strip()
    ]
    if not questions:
        raise LenscopeError(f"{path}: has no questions; give JSONL with query, choices and gold")
    return questions


def _question(line: str, where: str, task: str, number: int) -> Question:
    try:
        row = json.loads(line)
        choices = row["choices"]
        if not isinstance(row["query"], str) or not isinstance(choices, list) or {*map(type, choices)} - {str}:
            raise TypeError("query must be a text, choices a list of texts")
        name = str(row.get("id", f"{task}/{number}"))
        return Question(name, str(row.get("task", task)), row["query"], tuple(choices), row["gold"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, LenscopeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise LenscopeError(f"{where}: is no question with query, choices and gold ({reason})") from error


def _builtin(name: str) -> tuple[Question, ...]:
    return tuple(
        # a statement that is to be judged is no question
        Question(f"{name}/{n}", name, f"{'Question: ' if query[-1] == '?' else ''}{query}\n{ANSWER}", choices, gold)
        for n, (query, choices, gold) in enumerate(quizzes.builtin_set(name))
    )


# task → questions written for lenscope, in an order without meaning
BUILTIN: dict[str, tuple[Question, ...]] = {name: _builtin(name) for name in quizzes.SETS}


def few_shot_prompts(
    questions: Sequence[Question],
    shots: int,
    seed: int = 0,
    *,
    pool: Sequence[Question] | None = None,
    answer: Callable[[Question], int] | None = None,
) -> list[str]:
    """A prompt for every question: answered ones, then its query.

    Unlike prompts of facts (`model_knowledge.fact_prompt`), each has demonstrations of its own, which `seed` and the
    question's id fix, whatever else is asked; those of n shots are the last n of more. A question is never among its
    own demonstrations, nor is one with the same query. Raises LenscopeError where the pool is too small.

    Args:
        questions: what is asked.
        shots: how many answered questions stand before each.
        seed: fixes which.
        pool: what they are drawn from; none: the questions themselves.
        answer: the index of the choice that a demonstration shows; none: the right one.
    """
    if shots < 0:
        raise LenscopeError(f"shots {shots}: give 0 or more")
    known = list(questions if pool is None else pool)
    shown = [f"{q.query} {q.choices[q.gold if answer is None else answer(q)]}\n\n" for q in known]
    prompts = []
    for question in questions:
        random = np.random.default_rng([seed, *question.id.encode()])
        picked: list[int] = []
        for n in random.permutation(len(known)).tolist() if shots else ():
            other = known[n]
            if other.id != question.id and other.query != question.query:
                picked.append(n)
            if len(picked) == shots:
                break
        if len(picked) < shots:
            raise LenscopeError(
                f"shots {shots}: there are {len(picked)} other questions to take them from; give fewer shots"
            )
        prompts.append("".join(shown[n] for n in reversed(picked)) + question.query)
    return prompts


def likeliest_is_right(log_probs: np.ndarray, gold: Sequence[int]) -> np.ndarray:
    """Whether the right choice is the likeliest: log_probs (N, …, C) → (N, …) of bool. Choices that are NaN lose."""
    best = np.where(np.isnan(log_probs), -np.inf, log_probs).argmax(-1)
    return np.asarray(best == np.asarray(gold).reshape(-1, *[1] * (best.ndim - 1)))
