"""What edits do to the next token: the numbers of plain runs, one prompt as many, with controls of equal size."""

import affine_lens
import numpy as np
import pytest
import torch

import lenscope as ls
from lenscope.interventions import (
    ablate_tokens,
    control_edit,
    edit_effects,
    steer_token,
    swap_effects,
    swap_tokens,
)

PROMPTS = ["The capital of France is", "A cat", "This is a test of the tokenizer, a longer one."]
A, B = 77, 105


@pytest.fixture(scope="module")
def lens(lm64):
    return ls.Lens(lm64, affine_lens.affine(lm64))


def last_log_probs(lm, prompt):
    return lm.unembed(lm.read(prompt, lm.n_layers, -1)[lm.n_layers, -1]).log_softmax(-1)


@pytest.mark.parametrize("control", ["random", "random token"])
def test_effects_are_those_of_runs_by_hand(lens, control):
    lm, edit = lens.lm, swap_tokens(lens, A, B, [1, 2])
    effects = edit_effects(PROMPTS[0], edit, [A, B], controls=2, control=control, seed=3, top_k=4)
    expected = [last_log_probs(lm, PROMPTS[0])]
    for one in (edit, *(control_edit(edit, control, seed=3 * 1_000_003 + n) for n in range(2))):
        with lm.edit(*one):
            expected.append(last_log_probs(lm, PROMPTS[0]))
    for r, log_p in enumerate(expected):
        assert np.allclose(effects.log_prob[0, r], log_p[[A, B]], atol=1e-5)
        assert effects.rank[0, r].tolist() == [int((log_p > log_p[i]).sum()) for i in (A, B)]
        assert effects.top_ids[0, r].tolist() == log_p.topk(4).indices.tolist()
        assert np.allclose(effects.top_log_probs[0, r], log_p.topk(4).values, atol=1e-5)
    assert effects.runs == ("before", "after", "control 1", "control 2")
    assert len({*effects.log_prob[0, :, 0].tolist()}) == 4
    added, lengths = edit.sizes(lm.prompt(PROMPTS[0]))
    assert np.allclose(effects.relative_size[0], (added / lengths).mean(-1))
    assert effects.prompts[0].answer_ids == (A, B)
    assert effects.prompts[0].places == (0, 1, 2, 3, 4)


def test_many_prompts_are_each_what_it_is_alone(lens):
    pairs = [(A, B), (B, A), (A, 200)]
    sources, others = zip(*pairs, strict=True)
    many = swap_effects(lens, PROMPTS, sources, others, [[A, B], [B, A], [A, 200]], controls=2)
    for n, (prompt, (a, b)) in enumerate(zip(PROMPTS, pairs, strict=True)):
        alone = swap_effects(lens, prompt, a, b, [a, b], controls=2)
        assert np.allclose(many.log_prob[n], alone.log_prob[0], atol=1e-6)
        assert np.array_equal(many.top_ids[n], alone.top_ids[0])
        assert many.prompts[n] == alone.prompts[0]
    one = swap_effects(lens, PROMPTS, A, B, controls=1)
    assert one.log_prob.shape == (3, 3, 1)
    assert [p.answer_ids[0] for p in one.prompts] == one.top_ids[:, 0, 0].tolist()
    for edit in (steer_token(lens, A, 2.0, [2]), ablate_tokens(lens, 2, [2])):
        assert edit_effects(PROMPTS, edit, "a", controls=0).log_prob.shape == (3, 2, 1)


def test_a_strong_push_raises_its_token_and_its_controls_do_not(lens):
    """A positive control: along a token's own direction its probability goes up, along others it does not so."""
    effects = edit_effects(PROMPTS, steer_token(ls.Lens(lens.lm), A, 4.0, [4], -1), A, controls=8)
    assert effects.change().value > 1
    assert effects.excess().low > 0
    assert effects.hits(run=1).value > effects.hits(run=0).value


def test_mistakes_are_said_in_one_line(lens):
    edit = swap_tokens(lens, A, B)
    other = swap_tokens(lens, A, B, [1])
    for call, message in (
        (lambda: edit_effects(PROMPTS[0], edit, " tokenizer of all"), "it is .* tokens .*; give one of them"),
        (lambda: edit_effects(PROMPTS, edit, [A, B]), "answers: 2 given for 3 prompts"),
        (lambda: edit_effects(PROMPTS, edit, [[A], [A, B], [A]]), "give as many for every prompt"),
        (lambda: edit_effects(PROMPTS, [edit, edit]), "edit: 2 given for 3 prompts"),
        (lambda: edit_effects(PROMPTS[:2], [edit, other]), "of one lens and the same layers"),
        (lambda: edit_effects(PROMPTS[0], "swap"), "edit: give what swap_tokens"),
        (lambda: edit_effects(PROMPTS[0], []), "edit: give what swap_tokens"),
        (lambda: edit_effects(PROMPTS[0], edit, controls=-1), "controls -1"),
        (lambda: edit_effects(PROMPTS[0], edit, control="no"), "control 'no'"),
        (lambda: edit_effects(PROMPTS[0], edit, top_k=0), "top_k 0"),
        (lambda: swap_effects(lens, PROMPTS, [A, B], B), "source tokens: 2 given for 3 prompts"),
        (lambda: swap_effects(lens, PROMPTS[0], [A], B), "source tokens: 1 given for 1 prompts"),
        (lambda: edit_effects([], edit), "the prompt is empty"),
    ):
        with pytest.raises(ls.LenscopeError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)
    assert not lens.lm.runner.editing
    assert torch.equal(lens.lm.read("A cat").tensor, lens.lm.read("A cat").tensor)
