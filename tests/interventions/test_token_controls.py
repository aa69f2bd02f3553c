"""Controls of edits: as long at every layer and position as the edit was, along directions that have nothing to do."""

import affine_lens
import pytest
import torch

import lenscope as ls
from lenscope.interventions import ablate_tokens, control_edit, steer_token, swap_tokens
from lenscope.interventions.token_controls import CONTROLS, neighbours

PROMPTS = ["The capital of France is", "A cat", "This is a test of the tokenizer, a longer one."]
A, B = 77, 105
EDITS = {
    "swap": lambda lens: swap_tokens(lens, A, B),
    "steer": lambda lens: steer_token(lens, A, -0.5),
    "ablate": lambda lens: ablate_tokens(lens, 3),
}


@pytest.fixture(scope="module")
def lens(lm64):
    return ls.Lens(lm64, affine_lens.affine(lm64))


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("kind", EDITS)
def test_a_control_is_as_long_as_the_edit_everywhere_and_goes_elsewhere(lens, kind, control):
    lm, edit = lens.lm, EDITS[kind](lens)
    with lm.edit(*edit):
        edited = lm.read(PROMPTS)
    controls = [control_edit(edit, control, seed=seed) for seed in (0, 1, 0)]
    runs = []
    for one in controls:
        with lm.edit(*one):
            runs.append(lm.read(PROMPTS))
        for prompt in map(lm.prompt, PROMPTS):
            assert torch.allclose(one.sizes(prompt)[0], edit.sizes(prompt)[0], atol=1e-9)
            assert (edit.sizes(prompt)[0] > 1e-3).any()
    # at the first layer of the band all start from the same states, so what was added is seen there
    plain = lm.read(PROMPTS)
    for states, others in ((edited, runs[0]), (runs[0], runs[1])):
        one, other = ((s.split()[0].tensor - plain.split()[0].tensor)[0, 1] for s in (states, others))
        assert torch.allclose(one.norm(dim=-1), other.norm(dim=-1), atol=1e-9)
        assert (torch.cosine_similarity(one, other, dim=-1).abs() < 0.999).all()
    assert torch.equal(runs[0].tensor, runs[2].tensor)


def test_controls_of_a_batch_are_what_they_are_alone(lens):
    lm, edit = lens.lm, ablate_tokens(lens, 2)
    with lm.edit(*edit):
        lm.read(PROMPTS)
    for control in CONTROLS:
        one = control_edit(edit, control)
        with lm.edit(*one):
            together = lm.read(PROMPTS).split()
            for prompt, states in zip(PROMPTS, together, strict=True):
                assert torch.allclose(lm.read(prompt).tensor, states.tensor, atol=1e-10)


def test_neighbours_are_other_tokens_of_the_kind_near_in_id(lm64):
    table = neighbours(lm64, 3, 0)
    texts = lm64.encoder.tokens(range(lm64.vocab_size))
    assert table.shape == (3, lm64.vocab_size)
    assert torch.equal(table, neighbours(lm64, 3, 0))
    assert not torch.equal(table, neighbours(lm64, 3, 1))
    every, special = torch.arange(lm64.vocab_size), sorted(lm64.encoder.spelling.special)
    assert special
    plain = [i for i in every.tolist() if i not in special]
    assert (table[:, plain] != every[plain]).all()
    assert not {*table.flatten().tolist()} & {*special}
    spaced = [i for i in plain if texts[i][:1].isspace() and texts[i].strip().isalpha()]
    if len(spaced) >= 32:
        assert all(texts[j][:1].isspace() for j in table[0, spaced].tolist())


def test_a_model_without_texts_has_neighbours_too(lm64):
    lm = ls.LM(lm64.model, None, "bare")
    assert neighbours(lm, 2, 0).shape == (2, lm.vocab_size)


def test_mistakes_are_said_in_one_line(lens):
    edit = swap_tokens(lens, A, B)
    with pytest.raises(ls.LenscopeError, match="control 'other': there are 'random' and 'random token'"):
        control_edit(edit, "other")
    fresh = control_edit(edit)
    with pytest.raises(ls.LenscopeError, match="run the prompt with the edit first") as raised, lens.lm.edit(*fresh):
        lens.lm.read("A cat")
    assert "\n" not in str(raised.value)
