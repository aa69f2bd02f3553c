"""Plans of trials: groups are whole, nothing stands on both sides, what is left out is left out everywhere."""

from collections import Counter

import numpy as np
import pytest

import lenscope as ls
from lenscope.detection.labelled_prompts import LabelledPrompt
from lenscope.detection.trial_designs import (
    DESIGNS,
    TrialPlan,
    check_apart,
    data_set_kinds,
    family_groups,
    plan_trials,
    prompt_groups,
    trials_without_training,
)


def prompts():
    """Three sets: plain ones, ones with hosts and eleven families, normal ones alone."""
    made = [LabelledPrompt(f"plain {n}", n % 2 == 0, "plain", "p" if n % 2 == 0 else "") for n in range(40)]
    for n in range(33):
        host = f"host {n % 22}"
        if n < 22:
            made.append(LabelledPrompt(f"mail {n}", False, "mails", host=host))
        made.append(LabelledPrompt(f"mail {n} attack", True, "mails", f"family {n % 11}", host, (6, 8)))
        made.append(LabelledPrompt(f"mail {n} harmless", False, "mails", "", host, (6, 8)))
    made += [LabelledPrompt(f"only {n}", False, "only") for n in range(12)]
    # shares its text with a prompt that is tested always
    made.append(LabelledPrompt("only 3", False, "plain"))
    made.append(LabelledPrompt("mail 0", False, "plain"))
    return made


def test_groups_are_hosts_and_texts_also_by_way_of_others():
    def one(text, host=""):
        return LabelledPrompt(text, False, host=host)

    made = [one("a"), one("b", "x"), one("c", "x"), one(" A "), one("c", "y"), one("d", "y"), one("e")]
    assert prompt_groups(made).tolist() == [0, 1, 1, 0, 1, 1, 2]


def test_what_can_be_tested():
    tested, only, refused = data_set_kinds([*prompts(), LabelledPrompt("z", True, "few")])
    assert (tested, only) == (["plain", "mails"], ["only"])
    assert refused == {"few": "1 attacks, 0 normal prompts; a test takes at least 5 of each"}


def test_trials_that_leave_too_little_to_train_on_are_left_out():
    large = [LabelledPrompt(f"one {n}", n % 2 == 0, "one") for n in range(40)]
    small = [LabelledPrompt(f"two {n}", n < 6, "two") for n in range(9)]
    plans, short = plan_trials(large + small), trials_without_training(large + small)
    # the set with three normal prompts is not tested, and too small to train on alone
    assert [p.design for p in plans] == [DESIGNS[0]] * 4
    assert short == {f"{DESIGNS[1]}, one": "leaves 3 normal prompts to train on; it takes at least 4"}
    for plan in plans:
        assert sum(not (large + small)[n].attack for n in plan.train) >= 4
    # attacks that all share a host are one group, of which no folds can be made
    hosted = [LabelledPrompt(f"two {n}", n < 6, "two", host="h" if n < 6 else "") for n in range(12)]
    (why,) = trials_without_training(large + hosted).values()
    assert why == (
        "leaves 6 attacks in 1 groups, 6 harmless prompts in 6: give both kinds, each in at least 2 groups, to train on"
    )
    alone = [LabelledPrompt(f"x {n}", n < 5, "x", host="h" if n < 5 else "") for n in range(10)]
    with pytest.raises(ls.LenscopeError, match="10 prompts: no detector can be trained on a part of them: in dist"):
        plan_trials(alone)


@pytest.mark.parametrize("seed", [0, 1])
def test_plans_leave_out_what_they_say_and_share_nothing(seed):
    made = prompts()
    groups = prompt_groups(made)
    plans = plan_trials(made, seed=seed)
    assert Counter(p.design for p in plans) == {DESIGNS[0]: 4, DESIGNS[1]: 2, DESIGNS[2]: 8}
    only = {n for n, p in enumerate(made) if p.data_set == "only"}
    tested = {design: Counter() for design in DESIGNS}
    for plan in plans:
        train, test = {*plan.train.tolist()}, {*plan.test.tolist()}
        assert not {groups[n] for n in train} & {groups[n] for n in test}
        assert only <= test
        tested[plan.design].update(test - only)
        if plan.design == DESIGNS[1]:
            assert {made[n].data_set for n in test - only} == {plan.name}
            assert plan.name not in {made[n].data_set for n in train}
        if plan.design == DESIGNS[2]:
            left_out = {made[n].family for n in test if made[n].attack}
            assert plan.name == ", ".join(sorted(left_out))
            assert not left_out & {made[n].family for n in train}
            # all attacks of these families are tested
            assert {n for n, p in enumerate(made) if p.family in left_out} == {n for n in test if made[n].attack}
            assert any(made[n].normal and made[n].data_set == "mails" for n in test)
            assert {"p"} <= {made[n].family for n in train}
    shared = len(made) - 2
    assert {*tested[DESIGNS[0]]} == {n for n in range(len(made)) if n not in only} - {shared}
    assert {*tested[DESIGNS[0]].values()} == {1}
    assert all(shared not in plan.train for plan in plans)
    # the mail that is in two sets is not trained on where either is left out
    left = next(p for p in plans if p.design == DESIGNS[1] and p.name == "mails")
    assert len(made) - 1 not in left.train


def test_folds_have_their_share_of_each_data_set():
    made = prompts()
    for plan in plan_trials(made)[:4]:
        sorts = Counter((made[n].data_set, made[n].attack) for n in plan.test.tolist())
        assert sorts["plain", True] == 5
        assert sorts["mails", True] in range(5, 12)


def test_families_are_whole_and_in_at_most_eight_groups():
    made = prompts()
    groups = family_groups(made)
    assert {g for (of, _), g in groups.items() if of == "mails"} == set(range(8))
    assert groups["plain", "p"] == 0
    assert len(groups) == 12


def test_what_stands_on_both_sides_raises():
    made = prompts()
    groups = prompt_groups(made)
    mail = next(n for n, p in enumerate(made) if p.host == "host 1")
    other = next(n for n, p in enumerate(made) if p.host == "host 1" and p.attack)
    with pytest.raises(ls.LenscopeError, match="shares its host"):
        check_apart(TrialPlan(DESIGNS[0], "fold", np.array([0, mail]), np.array([1, other])), made, groups)
    check_apart(TrialPlan(DESIGNS[0], "fold", np.array([0, mail]), np.array([1])), made, groups)
    with pytest.raises(ls.LenscopeError, match="no data set has attacks and normal prompts"):
        plan_trials([p for p in made if p.data_set == "only"])
    with pytest.raises(ls.LenscopeError, match="at least 2"):
        plan_trials(made, folds=1)
