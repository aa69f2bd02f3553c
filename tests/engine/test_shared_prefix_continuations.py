"""Continuations from shared prefixes equal those of the transformers model reading every prompt anew."""

import pytest
import torch

from lenscope import LenscopeError
from lenscope.engine import shared_prefix_continuations as continuing
from lenscope.engine.shared_prefix_continuations import continue_prompts

DEMONSTRATIONS = "The capital of France is Paris.\nThe cat sat on the mat.\n"
PROMPTS = [
    *(f"{DEMONSTRATIONS}The capital of {s} is" for s in ("b", "c", "d", "g", "j", "the cat", "a mat", "test")),
    "The cat sat on",
    *(f"Another\n{w} is a" for w in ("cat", "mat")),
]


def anew(lm, prompt, count):
    ids = list(lm.tokenizer(prompt)["input_ids"])
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + count and (len(ids) == start or ids[-1] != lm.tokenizer.eos_token_id):
            ids.append(int(lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[start:])


def test_continuations_are_those_of_each_prompt_alone(lm64):
    done = []
    made = continue_prompts(lm64, PROMPTS, 5, lambda *n: done.append(n))
    assert [one.ids for one in made] == [anew(lm64, p, 5) for p in PROMPTS]
    assert [one.prompt.text for one in made] == PROMPTS
    assert all(one.text == lm64.encoder.decode(one.ids) for one in made)
    assert done[-1] == (len(PROMPTS), len(PROMPTS))
    assert len(done) > 1, "no group shared its prefix"


def test_rows_that_end_leave_the_others_alone(lm64, monkeypatch):
    """Ends are taken to be tokens that some prompts write early."""
    plain = [anew(lm64, p, 6) for p in PROMPTS]
    end = plain[0][2]
    monkeypatch.setattr(lm64.model.generation_config, "eos_token_id", end)
    expected = [ids[: ids.index(end) + 1] if end in ids else ids for ids in plain]
    assert len({len(ids) for ids in expected}) > 1
    assert [one.ids for one in continue_prompts(lm64, PROMPTS, 6)] == expected


def test_a_model_whose_cache_is_not_exact_reads_every_prompt(lm64, monkeypatch):
    expected = [one.ids for one in continue_prompts(lm64, PROMPTS, 3)]
    monkeypatch.setattr(continuing.exact_modes, "fastest_exact_mode", lambda *_: "plain")
    monkeypatch.setattr(continuing, "_continue_together", lambda *_: pytest.fail("shared a prefix"))
    assert [one.ids for one in continue_prompts(lm64, PROMPTS, 3)] == expected


def test_what_generate_refuses_is_refused(lm64):
    long = [f"{DEMONSTRATIONS}{'a ' * (lm64.context - len(lm64.prompt(DEMONSTRATIONS)) - 8)}{c}" for c in "abcd"]
    for prompts, new in ((PROMPTS, 0), (long, 20)):
        with pytest.raises(LenscopeError) as theirs:
            lm64.generate(prompts, new)
        with pytest.raises(LenscopeError) as ours:
            continue_prompts(lm64, prompts, new)
        assert str(ours.value) == str(theirs.value)
    assert continue_prompts(lm64, [], 3) == []


def test_prompts_are_grouped_by_all_but_their_last_line(lm64):
    many = [lm64.prompt(p) for p in PROMPTS]
    groups = list(continuing._groups_of_prompts(many))
    assert sorted(i for g in groups for i in g) == list(range(len(PROMPTS)))
    for group in groups:
        assert len({len(many[i]) for i in group}) == 1
        assert len({PROMPTS[i].rpartition("\n")[0] for i in group}) == 1
        common = continuing._common_prefix(many, group)
        assert len({many[i].ids[:common] for i in group}) == 1
        assert common == len(many[group[0]]) - 1 or len({many[i].ids[: common + 1] for i in group}) > 1
