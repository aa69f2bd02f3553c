"""Two-hop questions: which are asked, after which demonstrations, and back-patching beside plain hooks."""

from dataclasses import replace

import pytest
import torch
from patched_texts import written_after

from lenscope.experiments.patchscopes_paper import multihop_patches as hopping
from lenscope.experiments.patchscopes_paper.multihop_patches import (
    LEAST_CHAINS,
    SHOTS,
    Kind,
    chains_with_other_answers,
    kinds_of,
)
from lenscope.experiments.setting import Setting
from lenscope.patchscopes.control_runs import RANDOM, SHUFFLED, VECTOR
from lenscope.statistics.derangements import derange
from lenscope.tasks.relations import Chain, builtin_chains
from lenscope.tasks.text_match import mentions


def chain(n, bridge=None, answer=None, name="a → b"):
    bridge, answer = bridge or f"bridge{n}", answer or f"answer{n}"
    return Chain(name, f"subject{n}", bridge, answer, "{} is in", "the place of {}", "The test of {} is")


def test_nothing_that_is_asked_for_has_been_shown():
    for kind in kinds_of(builtin_chains(), 1000):
        assert len(kind.shown) == SHOTS
        assert len(kind.chains) >= LEAST_CHAINS
        for one in kind.chains:
            for hop in range(3):
                assert not mentions(kind.before(hop), (one.subject, one.bridge, one.answer))
                assert kind.before(hop).count("\n") == SHOTS
    whole = sum(len(k.chains) for k in kinds_of(builtin_chains(), 1000))
    # what is asked after all is most of what there is
    assert whole > 0.7 * len(builtin_chains())


def test_kinds_share_what_is_tried():
    kinds = kinds_of(builtin_chains(), 60)
    assert 50 <= sum(len(k.chains) for k in kinds) <= 60
    assert max(len(k.chains) for k in kinds) - min(len(k.chains) for k in kinds) <= 1
    assert [k.chains for k in kinds_of(builtin_chains(), 60)] == [k.chains for k in kinds]


def test_prompts_as_they_are_shown():
    kind = Kind("a → b", (chain(1), chain(2)), (chain(3),))
    assert kind.before(0) == "subject1 is in bridge1.\nsubject2 is in bridge2.\n"
    assert kind.before(1) == "The test of bridge1 is answer1.\nThe test of bridge2 is answer2.\n"
    assert kind.before(2).startswith("The test of the place of subject1 is answer1.\n")
    assert kind.target("zero-shot").prompt == "The test of x is"
    assert kind.target("few-shot").prompt == kind.before(1) + "The test of x is"


@pytest.mark.parametrize("style", hopping.STYLES)
def test_the_placeholder_is_the_x(lm64, style):
    kind = Kind("a → b", (), (chain(3),))
    prompt, (at,) = kind.target(style).resolve(lm64)
    assert prompt.text[: prompt.spans[at][1]] == "The test of x"


def test_others_have_another_answer():
    kinds = [
        Kind("a", (), tuple(chain(n, answer="ab"[n % 2]) for n in range(4))),
        Kind("b", (), tuple(chain(n) for n in range(3))),
    ]
    every = [c for k in kinds for c in k.chains]
    found = chains_with_other_answers(kinds, 1)
    assert all(every[n].answer != every[m].answer for n, m in enumerate(found))
    assert all((n < 4) == (m < 4) for n, m in enumerate(found))


def test_back_patching_equals_hooks(lm64):
    # the first hop comes last, so that what is patched is what is read
    chains = tuple(replace(chain(n), second="The test of {}") for n in range(3))
    kind = Kind("a → b", (), chains)
    setting = Setting(lm64, seed=4)
    pairs = [(3, 1), (4, 0)]
    found = hopping._back_patched(setting, kind, "zero-shot", pairs, 3, lambda a, b: None)
    others = derange([c.answer for c in chains], 4)
    states, places, prompts = [], [], []
    for c in chains:
        whole, first = (lm64.tokenizer(t).input_ids for t in (c.questions[2], f"The test of {c.described}"))
        places.append(len(first) - 1)
        prompts.append(whole)
        kept = []
        hooks = [
            block.register_forward_hook(lambda m, a, out, kept=kept: kept.append(out[0]))
            for block in lm64.model.model.layers
        ]
        with torch.no_grad():
            lm64.model(input_ids=torch.tensor([whole]))
        for hook in hooks:
            hook.remove()
        states.append(kept)
    for n in range(3):
        for c, (a, b) in enumerate(sorted(pairs)):
            for way, m in ((VECTOR, n), (SHUFFLED, others[n])):
                vector = states[m][a - 1][places[m]]
                expected = written_after(lm64.model, prompts[n], (b, places[n], vector))
                assert found[way][n][c] == lm64.tokenizer.decode([i for i in expected if i != 2])
    assert found[RANDOM].tolist() != found[VECTOR].tolist()
