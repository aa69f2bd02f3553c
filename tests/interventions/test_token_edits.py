"""Edits along tokens' directions: what plain hooks with the same formulas give, alone as in a batch, then undone."""

import affine_lens
import pytest
import tiny
import torch
from plain_hooks import run_with_hooks

import lenscope as ls
from lenscope.interventions import ablate_tokens, middle_band, steer_token, swap_tokens
from lenscope.interventions.token_edits import projected, strongest_tokens
from lenscope.lenses.token_directions import TokenDirections
from lenscope.mappings.mapping import Affine
from lenscope.models.same_model import model_identity

PROMPTS = ["The capital of France is", "A cat", "This is a test of the tokenizer, a longer one."]
A, B = 77, 105


@pytest.fixture(scope="module")
def lens(lm64):
    return ls.Lens(lm64, affine_lens.affine(lm64))


def units(lens, layer, ids):
    """Unit directions by hand: of the rows less their mean."""
    every = lens.direction(list(range(lens.lm.vocab_size)), layer)
    centred = every[ids] - every.mean(0)
    return centred / centred.norm(dim=-1, keepdim=True)


def swapped(lens, layer, h, places):
    u, v = units(lens, layer, [A, B])
    h = h.clone()
    for p in places:
        along = h[0, p] @ u
        h[0, p] = h[0, p] - along * u + along * v
    return h


def steered(lens, layer, h, places):
    mean = h[0, 1:].norm(dim=-1).mean()
    h = h.clone()
    for p in places:
        h[0, p] += 0.7 * mean * units(lens, layer, [A])[0]
    return h


def ablated(lens, layer, h, places):
    h = h.clone()
    for p in places:
        top = lens.logits(h[0, p], layer).topk(3).indices
        basis = torch.linalg.qr(units(lens, layer, top).T)[0]
        h[0, p] -= basis @ (basis.T @ h[0, p])
    return h


EDITS = {
    "swap": (lambda lens, *where: swap_tokens(lens, A, B, *where), swapped),
    "steer": (lambda lens, *where: steer_token(lens, A, 0.7, *where), steered),
    "ablate": (lambda lens, *where: ablate_tokens(lens, 3, *where), ablated),
}


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("positions", [None, [1, "France"], slice(-2, None)])
def test_a_band_is_what_plain_hooks_with_its_formula_give(lens, kind, positions):
    make, formula = EDITS[kind]
    lm, ids = lens.lm, lens.lm.prompt(PROMPTS[0]).ids
    edit = make(lens, [1, 2, 3], positions)
    with lm.edit(*edit):
        states = lm.read(PROMPTS[0]).tensor[0]
    places = sorted(lm.prompt(PROMPTS[0]).positions(positions))
    hooks = {n: lambda h, n=n: formula(lens, n, h, places) for n in (1, 2, 3)}
    by_hand, logits = run_with_hooks(lm.model, list(ids), hooks)
    # norms of this model compute in float32: what differs in the last bit of float64 may differ in that of float32
    assert torch.allclose(states, by_hand[:, 0], atol=1e-5)
    assert torch.allclose(states[1], by_hand[1, 0], atol=1e-6)
    assert torch.allclose(lm.unembed(states[-1]), logits[0], atol=1e-4)
    plain = lm.read(PROMPTS[0]).tensor[0]
    assert torch.equal(states[0], plain[0])
    assert not torch.allclose(states[1:, places], plain[1:, places], atol=1e-3)
    before = [p for p in range(len(ids)) if p < min(places)]
    assert torch.equal(states[:, before], plain[:, before])
    added, lengths = edit.sizes(lm.prompt(PROMPTS[0]))
    assert added.shape == lengths.shape == (3, len(places))
    assert torch.allclose(added[0], (states - plain)[1, places].norm(dim=-1), atol=1e-9)
    assert torch.allclose(lengths[0], plain[1, places].norm(dim=-1), atol=1e-9)


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize(
    ("model_type", "close"),
    # gemma2's norms compute in float32, so what padding changes in the last bit of float64 is seen in that of float32
    [("llama", 1e-10), ("gpt2", 1e-10), ("gpt_neox", 1e-10), ("opt", 1e-10), ("gemma2", 1e-5)],
)
def test_prompts_of_a_batch_are_what_they_are_alone(kind, model_type, close):
    lm = ls.LM(tiny.model(model_type, dtype=torch.float64), tiny.tokenizer(), model_type)
    lens = ls.Lens(lm, affine_lens.affine(lm))
    edit = EDITS[kind][0](lens)
    with lm.edit(*edit):
        together = lm.read(PROMPTS).split()
    sizes = [edit.sizes(lm.prompt(p))[0] for p in PROMPTS]
    for prompt, states, size in zip(PROMPTS, together, sizes, strict=True):
        with lm.edit(*edit):
            alone = lm.read(prompt)
        assert torch.allclose(states.tensor, alone.tensor, rtol=0, atol=close)
        assert torch.allclose(size, edit.sizes(lm.prompt(prompt))[0], rtol=0, atol=close)


def test_everything_is_undone_and_only_prompts_are_changed(lens):
    lm = lens.lm
    weights = [p.clone() for p in lm.model.parameters()]
    plain, written = lm.read(PROMPTS[0]).tensor, lm.generate(PROMPTS[0], 4).ids
    edit = steer_token(lens, A, 3.0, [2], -1)
    with pytest.raises(ls.LenscopeError, match="layer 9"), lm.edit(*edit):
        lm.read(PROMPTS[0], 9)
    assert torch.equal(lm.read(PROMPTS[0]).tensor, plain)
    assert lm.generate(PROMPTS[0], 4).ids == written
    assert all(torch.equal(a, b) for a, b in zip(weights, lm.model.parameters(), strict=True))
    # what is written behind the prompt is read as it comes
    ids = list(lm.prompt(PROMPTS[0]).ids)
    with lm.edit(*edit):
        continued = lm.generate(PROMPTS[0], 3).ids
    by_hand = []
    for _ in range(3):
        _, logits = run_with_hooks(lm.model, [*ids, *by_hand], {2: lambda h: prompt_steered(lens, h, len(ids))})
        by_hand.append(int(logits[0, -1].argmax()))
    assert list(continued) == by_hand


def prompt_steered(lens, h, length):
    h = h.clone()
    h[0, length - 1] += 3.0 * h[0, 1:length].norm(dim=-1).mean() * units(lens, 2, [A])[0]
    return h


def test_a_swap_done_again_takes_out_what_is_left(lens):
    """An exchange of both coordinates would undo itself; this does not, which is why bands may have any width."""
    u, v = units(lens, 2, [A, B])
    h = torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    once = h - (h @ u) * (u - v)
    twice = once - (once @ u) * (u - v)
    assert torch.allclose(once @ u, (h @ u) * (u @ v))
    assert (twice @ u).abs() < (h @ u).abs()


def test_spans_of_directions_that_are_alike_are_taken_out_once():
    draw = torch.Generator().manual_seed(0)
    h, one, other = (torch.randn(5, 8, generator=draw, dtype=torch.float64) for _ in range(3))
    alike = torch.stack([one, 2 * one, one + other, other, torch.zeros_like(one)], 1)
    for n in range(5):
        basis = torch.linalg.qr(torch.stack([one[n], other[n]], 1))[0]
        assert torch.allclose(projected(h, alike)[n], basis @ (basis.T @ h[n]), atol=1e-9)


def test_the_strongest_tokens_are_those_of_the_lens(lens):
    h = lens.lm.read(PROMPTS[0])[2, :]
    assert torch.equal(strongest_tokens(lens, h, 2, 4), lens.logits(h, 2).topk(4, -1).indices)


def test_the_middle_band_has_what_the_lens_maps(lm64, lens):
    assert middle_band(lens) == (1, 2, 3)
    assert middle_band(ls.Lens(lm64)) == (1, 2, 3)
    some = Affine({(n, 4): (torch.eye(32), torch.zeros(32)) for n in (2, 3)}, *[model_identity(lm64)] * 2)
    assert middle_band(ls.Lens(lm64, some)) == (2, 3)
    first = Affine({(0, 4): (torch.eye(32), torch.zeros(32))}, *[model_identity(lm64)] * 2)
    with pytest.raises(ls.LenscopeError, match="none in the middle; name layers"):
        middle_band(ls.Lens(lm64, first))


def test_mistakes_are_said_in_one_line(lm64, lens):
    later = Affine({(n, 4): (torch.eye(32), torch.zeros(32)) for n in (1, 2)}, *[model_identity(lm64)] * 2)
    for call, message in (
        (lambda: swap_tokens(lens, A, A), "is put in its own place"),
        (lambda: swap_tokens(lens, A, B, [9]), "layer 9: tiny-llama has layers 0–4"),
        (lambda: swap_tokens(ls.Lens(lm64, later), A, B, [0]), "layer 0: Affine has maps for the layers 1, 2, 4"),
        (lambda: swap_tokens(ls.Lens(lm64, lambda h: h), A, B), "a function has no directions"),
        (lambda: swap_tokens(lens, "qzx", B), "tokens"),
        (lambda: steer_token(lens, A, float("nan")), "strength nan"),
        (lambda: ablate_tokens(lens, 0), "k 0: give 1–31"),
        (lambda: swap_tokens(lens, A, B)[:1][0].change, None),
        (lambda: swap_tokens(lens, A, B).sizes(lm64.prompt("x")), "has not run on this prompt"),
    ):
        if message is None:
            call()
            continue
        with pytest.raises(ls.LenscopeError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)
    part = swap_tokens(lens, A, B)[0]
    with pytest.raises(ls.LenscopeError, match="reads states of tiny-llama, of size 32, not of size 8"):
        part.change(lm64.prompt("x"), torch.ones(1, 8), [0])
    edit = swap_tokens(lens, A, B, positions=[7])
    with pytest.raises(ls.LenscopeError, match="position 7"), lm64.edit(*edit):
        lm64.read("A cat")


def test_16_bits_are_edited_in_float32_and_refused_where_they_overflow():
    lm = ls.LM(tiny.model("llama", dtype=torch.float16), tiny.tokenizer(), "tiny")
    lens = ls.Lens(lm)
    plain = lm.read(PROMPTS[0]).tensor
    with lm.edit(*swap_tokens(lens, A, B)):
        assert not torch.equal(lm.read(PROMPTS[0]).tensor, plain)
    far, why = steer_token(lens, A, 1e6), r"steer .* makes states that are NaN or infinite in float16"
    with pytest.raises(ls.LenscopeError, match=why), lm.edit(*far):
        lm.read(PROMPTS[0])


def test_units_have_length_1(lens):
    lengths = TokenDirections(lens.lm, lens.f, "tuned").unit(torch.tensor([A, B]), 1).norm(dim=-1)
    assert torch.allclose(lengths, torch.ones(2, dtype=torch.float64))


def test_an_edit_names_the_layers_that_it_changes_and_no_others(lens):
    shown = {words: repr(swap_tokens(lens, A, B, layers)) for words, layers in
             {"layers 1–3": slice(1, 4), "layers 1, 3": [1, 3], "layer 2": 2}.items()}  # fmt: skip
    for words, text in shown.items():
        assert f", {words}, " in text
