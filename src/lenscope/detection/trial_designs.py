"""Which prompts detectors are trained on and which they are tried on: folds, data sets left out, families left out.

Knows: what may never stand on both sides, which data sets can be tested, how many families are left out at once.
Does not know: detectors, features, measures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from lenscope.contents import Brief
from lenscope.detection.labelled_prompts import LabelledPrompt, without_case_and_blanks
from lenscope.detection.probes import dealt_folds
from lenscope.errors import LenscopeError
from lenscope.statistics.probes import deal

FOLDS = 4
# groups of whole families that a data set is cut into at most
FAMILY_GROUPS = 8
# attacks, and normal prompts, that a data set needs to be tested
FEWEST = 5
# normal prompts that a trial trains on, at least: fewer have no neighbours by which one is odd
FEWEST_TO_TRAIN = 4
DESIGNS = ("in distribution", "left-out data sets", "left-out families")


@final
@dataclass(frozen=True, eq=False, repr=False)
class TrialPlan(Brief):
    """One trial: the numbers of the prompts that are trained on, and of those that are tested.

    `design` is one of `DESIGNS`, `name` says what is left out. Prompts of data sets without attacks are tested in every
    trial and trained on in none.
    """

    design: str
    name: str
    train: np.ndarray
    test: np.ndarray


def prompt_groups(
    prompts: Sequence[LabelledPrompt], essence: Callable[[str], str] = without_case_and_blanks
) -> np.ndarray:
    """The group (N,) of each prompt: prompts with one host or one text are in one, directly or by way of others.

    Texts are one where `essence` is: without another, those that differ in letter case and blanks alone.
    """
    first: dict[tuple[str, str], int] = {}
    parent = list(range(len(prompts)))

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = parent[parent[n]]
            n = parent[n]
        return n

    for n, prompt in enumerate(prompts):
        for key in (("text", essence(prompt.text)), *([("host", prompt.host)] if prompt.host else [])):
            parent[root(n)] = root(first.setdefault(key, n))
    names: dict[int, int] = {}
    return np.array([names.setdefault(root(n), len(names)) for n in range(len(prompts))], dtype=np.int64)


def data_set_kinds(prompts: Sequence[LabelledPrompt]) -> tuple[list[str], list[str], dict[str, str]]:
    """The data sets that can be tested, those of normal prompts alone, and why others are not tested, by name."""
    tested, harmless, refused = [], [], {}
    for name in dict.fromkeys(p.data_set for p in prompts):
        own = [p for p in prompts if p.data_set == name]
        attacks, normal = sum(p.attack for p in own), sum(p.normal for p in own)
        if not attacks:
            harmless.append(name)
        elif attacks < FEWEST or normal < FEWEST:
            refused[name] = f"{attacks} attacks, {normal} normal prompts; a test takes at least {FEWEST} of each"
        else:
            tested.append(name)
    return tested, harmless, refused


def family_groups(prompts: Sequence[LabelledPrompt], seed: int = 0) -> dict[tuple[str, str], int]:
    """The number of the group of each (data set, family): up to eight a data set, whole families, of like size."""
    groups: dict[tuple[str, str], int] = {}
    for name in dict.fromkeys(p.data_set for p in prompts if p.attack):
        families = [p.family for p in prompts if p.attack and p.data_set == name]
        different = [*dict.fromkeys(families)]
        different = [different[i] for i in np.random.default_rng([seed, 4]).permutation(len(different)).tolist()]
        sizes = np.zeros(min(FAMILY_GROUPS, len(different)), dtype=np.int64)
        for family in sorted(different, key=families.count, reverse=True):
            groups[name, family] = int(sizes.argmin())
            sizes[groups[name, family]] += families.count(family)
    return groups


def plan_trials(prompts: Sequence[LabelledPrompt], *, folds: int = FOLDS, seed: int = 0) -> list[TrialPlan]:
    """All trials of prompts: folds over everything, each data set left out, each group of attack families left out.

    Folds are of whole groups (`prompt_groups`), each with its share of every data set. Where a data set is left out,
    prompts of others that share a group with it are not trained on. Where families are left out, all data sets leave
    out a group of theirs at once; tested are these attacks, the prompts that share their hosts, and a part of the other
    harmless ones. Trials that leave too little to train on are not among them (`trials_without_training`). Raises
    LenscopeError for prompts of which no data set can be tested, where no trial is left, and for fewer than 2 folds.
    """
    plans, short = _plans_and_shortages(prompts, folds, seed)
    if not plans:
        why = "; ".join(f"{name}: {reason}" for name, reason in short.items())
        raise LenscopeError(f"{len(prompts)} prompts: no detector can be trained on a part of them: {why}")
    return plans


def trials_without_training(
    prompts: Sequence[LabelledPrompt], *, folds: int = FOLDS, seed: int = 0
) -> dict[str, str]:  # fmt: skip
    """The trials that `plan_trials` leaves out, and why: what is left to train on has too few prompts of a kind.

    A trial trains on at least 4 normal prompts, and on attacks and harmless prompts that are in two groups each. Raises
    LenscopeError as `plan_trials`, but for prompts of which no trial is left.
    """
    return _plans_and_shortages(prompts, folds, seed)[1]


def _plans_and_shortages(
    prompts: Sequence[LabelledPrompt], folds: int, seed: int
) -> tuple[list[TrialPlan], dict[str, str]]:  # fmt: skip
    """The trials of prompts that can be trained, and why others cannot, by design and name."""
    if folds < 2:
        raise LenscopeError(f"folds {folds}: give at least 2")
    tested, harmless, refused = data_set_kinds(prompts)
    if not tested:
        why = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise LenscopeError(f"{len(prompts)} prompts: no data set has attacks and normal prompts to be tested; {why}")
    groups = prompt_groups(prompts)
    names = np.array([p.data_set for p in prompts], dtype=object)
    attack = np.array([p.attack for p in prompts])
    always = np.isin(names, harmless)
    # what shares a group with prompts that are tested in every trial is trained on in none
    usable = ~always & ~np.isin(groups, groups[always])
    in_test = np.isin(names, tested) & usable
    plans = []
    fold = _dealt(names, attack, groups, usable, folds, seed)
    for f in range(folds):
        plans.append(_plan(DESIGNS[0], f"fold {f + 1}", usable & (fold != f), in_test & (fold == f), always))
    if len({*names[usable]}) > 1:
        for name in tested:
            test = in_test & (names == name)
            plans.append(_plan(DESIGNS[1], name, usable & ~np.isin(groups, groups[test]), test, always))
    plans += _family_plans(prompts, names, groups, usable, in_test, always, seed)
    plans = [plan for plan in plans if _both(attack[plan.test])]
    normal = np.array([p.normal for p in prompts])
    short = {f"{p.design}, {p.name}": _shortage(p, attack, normal, groups, seed) for p in plans}
    trained = [plan for plan in plans if not short[f"{plan.design}, {plan.name}"]]
    return trained, {name: why for name, why in short.items() if why}


def _shortage(plan: TrialPlan, attack: np.ndarray, normal: np.ndarray, groups: np.ndarray, seed: int) -> str:
    """Why no detector can be trained on what a trial trains on; "" where one can."""
    count = int(normal[plan.train].sum())
    if count < FEWEST_TO_TRAIN:
        return f"leaves {count} normal prompts to train on; it takes at least {FEWEST_TO_TRAIN}"
    try:
        dealt_folds(attack[plan.train], groups[plan.train].tolist(), seed)
    except LenscopeError as error:
        return f"leaves {error}, to train on"
    return ""


def check_apart(plan: TrialPlan, prompts: Sequence[LabelledPrompt], groups: np.ndarray) -> None:
    """Raise LenscopeError if a trial tests what shares a host or a text with something that it trains on."""
    train = {*groups[plan.train].tolist()}
    shared = [n for n in plan.test.tolist() if groups[n] in train]
    if shared:
        raise LenscopeError(
            f"{plan.design}, {plan.name}: prompt {prompts[shared[0]].text[:40]!r} is tested, and shares its host or "
            "its text with one that is trained on"
        )


def _plan(design: str, name: str, train: np.ndarray, test: np.ndarray, always: np.ndarray) -> TrialPlan:
    return TrialPlan(design, name, np.flatnonzero(train), np.flatnonzero(test | always))


def _both(attack: np.ndarray) -> bool:
    return bool(attack.any() and not attack.all())


def _dealt(
    names: np.ndarray, attack: np.ndarray, groups: np.ndarray, usable: np.ndarray, folds: int, seed: int
) -> np.ndarray:
    """The fold (N,) of each prompt used, -1 of others: whole groups, by data set and whether an attack is in."""
    sorts = list(zip(names.tolist(), np.isin(groups, groups[attack]).tolist(), strict=True))
    codes = {sort: n for n, sort in enumerate(dict.fromkeys(sorts))}
    fold = np.full(len(names), -1)
    fold[usable] = deal(np.array([codes[s] for s in sorts])[usable], groups[usable], folds, seed)
    return fold


def _family_plans(
    prompts: Sequence[LabelledPrompt], names: np.ndarray, groups: np.ndarray, usable: np.ndarray, in_test: np.ndarray,
    always: np.ndarray, seed: int,
) -> list[TrialPlan]:  # fmt: skip
    """The trials that leave families out, of the data sets that have several."""
    group_of = family_groups(prompts, seed)
    count = {name: 1 + max(g for (of, _), g in group_of.items() if of == name) for name, _ in group_of}
    several = np.isin(names, [name for name, n in count.items() if n > 1])
    attack = np.array([p.attack for p in prompts])
    family = np.array([group_of[p.data_set, p.family] if p.attack else -1 for p in prompts])
    apart = ~np.isin(groups, groups[attack])
    # harmless prompts that share nothing with an attack, a part for each group of their data set's families
    part = np.full(len(prompts), -1)
    for name in dict.fromkeys(names[several & in_test].tolist()):
        own = np.flatnonzero((names == name) & in_test & apart)
        if len(own):
            part[own] = deal(np.zeros(len(own), dtype=np.int64), groups[own], count[name], seed)
    plans = []
    for n in range(max((count[name] for name in {*names[several & in_test].tolist()}), default=0)):
        left_out = several & attack & (family == n)
        odd = left_out & in_test
        test = odd | (several & in_test & ~attack & np.isin(groups, groups[odd])) | (part == n)
        train = usable & ~left_out & ~np.isin(groups, groups[test])
        named = sorted({f"{p.family}" for p, mine in zip(prompts, odd, strict=True) if mine})
        if odd.any():
            plans.append(_plan(DESIGNS[2], ", ".join(named), train, test, always))
    return plans
