"""Overthinking: after incorrect demonstrations early layers answer better than the model does in the end.

Knows: which demonstrations are shown, calibrated accuracy, how layers to exit at are chosen and tested, the reading.
Does not know: how prompts are built and answers scored (tasks/questions.py, tasks/answer_likelihoods.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lenscope.display.figures import Figure
from lenscope.display.panels import Panel
from lenscope.errors import LenscopeError
from lenscope.experiments.definition import Experiment
from lenscope.experiments.estimates_shown import mean_curve
from lenscope.experiments.report import Report
from lenscope.experiments.setting import Setting
from lenscope.lenses.lens import Lens
from lenscope.statistics.estimates import difference, mean
from lenscope.statistics.intervals import interval
from lenscope.statistics.significance import holm, sign_flips
from lenscope.tasks.answer_likelihoods import answer_log_likelihoods
from lenscope.tasks.builtin_questions import KINDS
from lenscope.tasks.questions import ANSWER, BUILTIN, Question, few_shot_prompts, likeliest_is_right, load_questions

CLAIM = (
    "After demonstrations (examples in the prompt) with wrong labels, middle layers answer better than the last one "
    "(Belrose et al. 2023, Fig. 11, after Halawi et al. 2023): on the task SICK with BLOOM-560M and GPT-Neo 1.3B and "
    "2.7B the best layer has a calibrated accuracy of .40–.45, the last is at chance (.33). Calibrated: a question "
    "counts as right where the right label is more probable than it usually is for other questions."
)
# questions of a task
QUESTIONS = {"quick": 48, "full": 96}
# numbers of demonstrations
SHOTS = {"quick": (8,), "full": (2, 8)}
LENSES = "tuned lens", "logit lens"
NOT_SHOWN = ("chance", "final, correct", "final, incorrect", "gap")
# which of the kinds of things in builtin_questions.py are which
SORTS = {
    "animal": "fish bird insect mammal",
    "food": "fruit vegetable drink",
    "object": "tool instrument vehicle garment",
}
# what takes the place of labels where they shall say nothing
UNRELATED = "table river seven window cotton garden yellow engine paper music stone coffee winter market silver bridge"


def calibrated(log_probs: np.ndarray, gold: Sequence[int]) -> np.ndarray:
    """Whether each question's right label is more probable than it usually is: log_probs (N, …, C) → (N, …).

    With p the probabilities of the C labels, normalised over them, a question counts where p(right label) is above the
    (C - 1)/C quantile of that label's p over all questions, and 1/C where it is equal (Halawi et al. 2023, calibrated
    accuracy): a bias for a label does not count against it. Of balanced labels chance is 1/C.
    """
    shifted = log_probs - log_probs.max(-1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    count = p.shape[-1]
    usual = np.quantile(p, (count - 1) / count, axis=0)
    at = np.asarray(gold).reshape(-1, *[1] * (p.ndim - 1))
    mine = np.take_along_axis(p, at, -1)[..., 0]
    threshold = np.take_along_axis(np.broadcast_to(usual, p.shape), at, -1)[..., 0]
    return np.asarray((mine > threshold) + (mine == threshold) / count)


@dataclass(frozen=True, eq=False)
class _TaskScores:
    """One task with one number of demonstrations: ln p (N, L, C) by (demonstrations, lens); L is 0…n_layers."""

    task: str
    shots: int
    questions: Sequence[Question]
    log_probs: Mapping[tuple[str, str], np.ndarray]

    @property
    def labelled(self) -> bool:
        """Whether all questions have the same choices, which are then calibrated."""
        return len({q.choices for q in self.questions}) == 1

    @property
    def chance(self) -> float:
        return float(np.mean([1 / len(q.choices) for q in self.questions]))

    def right(self, demonstrations: str, lens: str, rows: Sequence[int] | None = None) -> np.ndarray:
        """(n, L) whether each of some questions (default: all) is answered right, calibrated among them."""
        numbers = list(range(len(self.questions)) if rows is None else rows)
        scores = self.log_probs[demonstrations, lens][numbers]
        gold = [self.questions[i].gold for i in numbers]
        return calibrated(scores, gold) if self.labelled else likeliest_is_right(scores, gold).astype(float)


def _run_overthinking(setting: Setting) -> Report:
    """Accuracy by layer after correct, incorrect and unrelated demonstrations; exits chosen on half of them."""
    tasks = _tasks(setting)
    scored = [
        _score_task(setting, name, pool, questions, shots)
        for shots in setting.choose(**SHOTS)
        for name, (pool, questions) in tasks.items()
    ]
    exits = [_exit(s, lens) for s in scored for lens in LENSES]
    flips = [sign_flips(e["differences"], seed=setting.seed) for e in exits]
    rows = [
        {**{k: v for k, v in e.items() if k != "differences"}, "p (Holm)": p}
        for e, p in zip(exits, holm(flips), strict=True)
    ]
    most = max(s.shots for s in scored)
    shown = [s for s in scored if s.shots == most]
    return Report(
        experiment="overthinking",
        model=setting.lm.name,
        claim=CLAIM,
        reading=_overthinking_reading(rows, scored),
        tables={
            "final accuracy": [_final(s) for s in scored],
            "early exit": [{k: v for k, v in row.items() if k not in NOT_SHOWN} for row in rows],
            **{f"{s.task} by layer": _accuracy_by_layer(s) for s in shown},
        },
        figures=(Figure("overthinking", [_overthinking_panel(s, lens) for s in shown for lens in LENSES]),),
        settings=setting.settings(
            questions={name: len(q) for name, (_, q) in tasks.items()},
            shots=list(setting.choose(**SHOTS)),
            accuracy={s.task: "calibrated" if s.labelled else "likeliest choice" for s in shown},
        ),
        provenance=setting.provenance(),
    )


def _tasks(setting: Setting) -> dict[str, tuple[list[Question], list[Question]]]:
    """By task: all its questions, for demonstrations, and those that are asked, labels in turn."""
    if setting.data:
        known = [q for path in setting.data for q in load_questions(path)]
    else:
        known = [*BUILTIN["praise"], *sort_questions()]
    tasks: dict[str, tuple[list[Question], list[Question]]] = {}
    for name in dict.fromkeys(q.task for q in known):
        pool = [q for q in known if q.task == name and q.wrong]
        by_gold = [[q for q in pool if q.gold == gold] for gold in sorted({q.gold for q in pool})]
        turns = [q for n in range(len(pool)) for group in by_gold for q in group[n : n + 1]]
        balanced = len(by_gold) * min(map(len, by_gold)) if len({q.choices for q in pool}) == 1 else len(pool)
        asked = turns[: min(setting.choose(**QUESTIONS), balanced) if by_gold else 0]
        if len(asked) < 8:
            raise LenscopeError(f"task {name}: has {len(asked)} questions to ask; give at least 8")
        tasks[name] = pool, asked
    return tasks


def sort_questions() -> list[Question]:
    """Is it an animal, a food or an object? Three labels in one order, as SICK has three."""
    kinds = (line.split(":") for line in KINDS.splitlines())
    words = {kind: listed.split() for kind, listed in kinds}
    labels = [(w, n) for n, of in enumerate(SORTS.values()) for kind in of.split() for w in words[kind]]
    order = np.random.default_rng(7).permutation(len(labels)).tolist()
    asked = (labels[i] for i in order)
    return [
        Question(
            f"sorts/{word}", "sorts", f"Question: Is {word} an animal, a food or an object?\n{ANSWER}", (*SORTS,), n
        )
        for word, n in asked
    ]


def next_choice(question: Question) -> int:
    """The label that stands for the right one in incorrect demonstrations: the next choice, after the last the first.

    Of fixed labels this permutes them, the same way in every demonstration.
    """
    after = [(question.gold + n) % len(question.choices) for n in range(1, len(question.choices))]
    return next(n for n in after if n in question.wrong)


def unrelated_words(questions: Sequence[Question], seed: int = 0) -> list[Question]:
    """The same questions with two unrelated words as choices, either being right: what demonstrations can show."""
    random = np.random.default_rng([seed, 1])
    words = UNRELATED.split()
    asked = []
    for question in questions:
        a, b = random.choice(len(words), 2, replace=False)
        asked.append(replace(question, choices=(words[a], words[b]), gold=int(random.integers(2))))
    return asked


def _score_task(
    setting: Setting, name: str, pool: Sequence[Question], questions: Sequence[Question], shots: int
) -> _TaskScores:
    lm, seed = setting.lm, setting.seed
    choices = [q.choices for q in questions]
    prompts: dict[str, Callable[[], list[str]]] = {
        "correct": lambda: few_shot_prompts(questions, shots, seed, pool=pool),
        "incorrect": lambda: few_shot_prompts(questions, shots, seed, pool=pool, answer=next_choice),
        "unrelated": lambda: few_shot_prompts(questions, shots, seed, pool=unrelated_words(pool, seed)),
    }
    log_probs: dict[tuple[str, str], np.ndarray] = {}
    for demonstrations, build in prompts.items():

        def compute(build: Callable[[], list[str]] = build, what: str = demonstrations) -> list[np.ndarray]:
            lenses = [Lens(lm, setting.translators), Lens(lm)]
            with setting.progress(f"questions: {name}, {shots} {what} demonstrations") as advance:
                scores = answer_log_likelihoods(lenses, build(), choices, range(lm.n_layers), progress=advance)
            return [np.concatenate([s.log_probs, s.own[:, None]], 1) for s in scores]

        both = setting.cached(f"{name}-{shots}-{demonstrations}", compute, questions=[q.id for q in questions])
        log_probs |= {(demonstrations, lens): scores for lens, scores in zip(LENSES, both, strict=True)}
    return _TaskScores(name, shots, questions, log_probs)


def _exit(s: _TaskScores, lens: str) -> dict[str, Any]:
    """Every question answered at the layer that is best on the other half of the questions, and at the last."""
    halves = _halves(s.questions)
    final = s.right("correct", lens)[:, -1], s.right("incorrect", lens)[:, -1]
    row: dict[str, Any] = {"task": s.task, "shots": s.shots, "lens": lens, "chance": s.chance}
    row |= {"final, correct": mean(final[0]), "final, incorrect": mean(final[1]), "gap": difference(*final)}
    for demonstrations in ("incorrect", "correct", "unrelated"):
        layers, early, last = [], [], []
        for chosen_on, tested_on in (halves, halves[::-1]):
            layer = int(s.right(demonstrations, lens, chosen_on).mean(0).argmax())
            right = s.right(demonstrations, lens, tested_on)
            layers.append(layer)
            early.append(right[:, layer])
            last.append(right[:, -1])
        before, after = np.concatenate(early), np.concatenate(last)
        if demonstrations == "incorrect":
            row |= {"exit at": " or ".join(map(str, dict.fromkeys(layers))), "exit, incorrect": mean(before)}
            row["differences"] = before - after
        row[f"exit - final, {demonstrations}"] = difference(before, after)
    return row


def _final(s: _TaskScores) -> dict[str, Any]:
    right = {d: s.right(d, LENSES[0])[:, -1] for d in ("correct", "incorrect", "unrelated")}
    row: dict[str, Any] = {"task": s.task, "shots": s.shots, "questions": len(s.questions), "chance": s.chance}
    row |= {d: mean(r) for d, r in right.items()}
    row["correct - incorrect"] = difference(right["correct"], right["incorrect"])
    return row | {f"critical layer, {lens}": _critical(s, lens) for lens in LENSES}


def _halves(questions: Sequence[Question]) -> tuple[list[int], list[int]]:
    """Two halves with as many questions of every label each, but for one."""
    seen: dict[int, int] = {}
    parts: tuple[list[int], list[int]] = [], []
    for n, q in enumerate(questions):
        # odd ones out go to either half in turn
        parts[(seen.setdefault(q.gold, q.gold)) % 2].append(n)
        seen[q.gold] += 1
    return parts


def _critical(s: _TaskScores, lens: str) -> str:
    """The first layer from which the gap between correct and incorrect demonstrations stays above half the last one."""
    gap = (s.right("correct", lens) - s.right("incorrect", lens)).mean(0)
    if gap[-1] <= 0:
        return "none"
    below = np.flatnonzero(gap < gap[-1] / 2)
    return str(int(below[-1]) + 1 if len(below) else 0)


def _accuracy_by_layer(s: _TaskScores) -> list[dict[str, Any]]:
    right = {(d, lens): s.right(d, lens) for d, lens in s.log_probs}
    names = {key: f"{key[0]}, {key[1]}" for key in right}
    return [
        {"layer": n, **{names[key]: mean(r[:, n]) for key, r in right.items()}}
        for n in range(next(iter(right.values())).shape[1])
    ]


def _overthinking_panel(s: _TaskScores, lens: str) -> Panel:
    curves = []
    for demonstrations in ("correct", "incorrect", "unrelated"):
        right = s.right(demonstrations, lens)
        label = f"{demonstrations} demonstrations"
        curves.append(mean_curve(label, range(right.shape[1]), right, demonstrations == "unrelated"))
    kind = "calibrated accuracy" if s.labelled else "accuracy"
    return Panel(f"{s.task}, {s.shots} shots, {lens}", "layer", kind, curves, level=s.chance)


def _overthinking_reading(rows: Sequence[dict[str, Any]], scored: Sequence[_TaskScores]) -> str:
    tuned = [r for r in rows if r["lens"] == "tuned lens"]
    over = [r for r in tuned if r["exit - final, incorrect"].low > 0]
    sure = [r for r in over if r["p (Holm)"] < 0.05]
    where = "; ".join(
        f"{r['task']}, {r['shots']} demonstrations: {r['exit, incorrect'].value:.2f} at layer {r['exit at']}, "
        f"{r['final, incorrect'].value:.2f} at the end, difference {interval(r['exit - final, incorrect'])}"
        for r in over
    )
    verdict = "Replicates" if len(over) > len(tuned) / 2 else "Replicates in part" if over else "Does not replicate"
    parts = [
        f"{verdict}: after demonstrations with incorrect labels, the tuned lens at a middle layer (chosen on the other "
        f"half of the questions) answers better than the last layer in {_share_of(over, tuned)} settings"
        + (f" ({where})" if over else "")
        + f", in {len(sure)} of them with p < .05 after Holm's correction. A setting is a task with a number of "
        "demonstrations (shots)."
    ]
    other = [r for r in rows if r["lens"] == "logit lens" and r["exit - final, incorrect"].low > 0]
    parts.append(f"The same with the logit lens: in {_share_of(other, tuned)} settings.")
    fooled = [r for r in tuned if r["gap"].low > 0]
    parts.append(
        f"Incorrect labels lower the accuracy of the last layer in {_share_of(fooled, tuned)} settings"
        f"{_range(r['gap'] for r in fooled)}."
    )
    fallen = [r for r in tuned if r["final, incorrect"].high < r["chance"]]
    at_chance = [r for r in tuned if r["final, incorrect"].low <= r["chance"] <= r["final, incorrect"].high]
    parts.append(
        f"With incorrect labels the last layer cannot be told from chance in {_share_of(at_chance, tuned)} settings, "
        f"and is below chance in {_share_of(fallen, tuned)}."
    )
    gained = {w: [r for r in tuned if r[f"exit - final, {w}"].low > 0] for w in ("correct", "unrelated")}
    parts.append(
        "Control: a middle layer also answers better than the last one with correct labels in "
        f"{_share_of(gained['correct'], tuned)} settings, and with unrelated words as labels in "
        f"{_share_of(gained['unrelated'], tuned)}."
        + (" What is gained there too is not due to incorrect labels." if any(gained.values()) else "")
    )
    weak = {s.task for s in scored} - {r["task"] for r in tuned if r["final, correct"].low > r["chance"]}
    if weak:
        parts.append(
            f"On {', '.join(sorted(weak))} the model is not above chance even with correct labels, so that nothing can "
            "be lost there."
        )
    parts.append(
        "In the tables, “final” is the answer of the last layer, “exit” that of the layer that was chosen on the other "
        "half, and “incorrect” or “unrelated” says what the labels of the demonstrations are. From the critical layer "
        "on, correct and incorrect labels stay at least half as far apart as at the end."
    )
    return "\n".join(parts)


def _share_of(part: Sequence[Any], whole: Sequence[Any]) -> str:
    return f"{len(part)} of {len(whole)}"


def _range(gaps: Any) -> str:
    values = [g.value for g in gaps]
    return f", by {min(values):.2f} to {max(values):.2f}" if values else ""


EXPERIMENT = Experiment(data="JSONL with query, choices, gold, task", run=_run_overthinking)
