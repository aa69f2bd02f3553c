"""Edits: what is written where, by which operation."""

import pytest
import torch
from plain_hooks import hooks_of

import lenscope as ls
from lenscope.models.batches import Running, pad
from lenscope.models.edits import add, add_norm_matched, replace_norm_matched

PROMPT = "The capital of France is"


def test_several_edits_of_one_block_are_made_each_in_its_turn(lm64):
    """Not one of them several times, and not in another order."""
    draw = torch.Generator().manual_seed(6)
    u, v, w = torch.randn(3, 32, generator=draw, dtype=torch.float64)
    plain = lm64.read(PROMPT)
    with lm64.edit(ls.Edit(1, 0, u), ls.Edit(1, 0, v, add), ls.Edit(3, -1, w)):
        found = lm64.read(PROMPT)
    assert torch.equal(found[1, 0], u + v)
    assert torch.equal(found[3, -1], w)
    assert torch.equal(found[1, -1], plain[1, -1])
    with lm64.edit(ls.Edit(1, 0, v, add), ls.Edit(1, 0, u)):
        assert torch.equal(lm64.read(PROMPT)[1, 0], u)


def test_an_edit_leaves_the_state_that_it_was_given(lm64):
    """Whoever else holds it, such as a cache or a residual branch, must not see the edit."""
    prompt = lm64.prompt(PROMPT)
    running = Running([prompt], [0], 1, pad([prompt], "right", lm64.device))
    h = torch.randn(1, len(prompt), 32, dtype=torch.float64)
    before = h.clone()
    edited = ls.Edit(1, 0, torch.ones(32, dtype=torch.float64)).apply(h, running)
    assert torch.equal(h, before)
    assert not torch.equal(edited, before)


def test_a_row_is_one_of_those_that_run(lm64):
    v = torch.zeros(32, dtype=torch.float64)
    for row in (-1, 2):
        with (
            pytest.raises(ls.LenscopeError, match=f"row {row}: 2 prompts are running"),
            lm64.edit(ls.Edit(1, 0, v, row=row)),
        ):
            lm64.read(["a", "b"])


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1.0, 1e6])
def test_a_norm_matched_vector_counts_by_its_direction_alone(size):
    h = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    v = torch.tensor([[0.0, size]], dtype=torch.float64)
    torch.testing.assert_close(add_norm_matched(h, v), torch.tensor([[3.0, 9.0]], dtype=torch.float64))
    torch.testing.assert_close(replace_norm_matched(h, v), torch.tensor([[0.0, 5.0]], dtype=torch.float64))


@pytest.mark.parametrize("layer", range(5))
def test_an_edit_equals_the_same_change_made_by_a_plain_hook(lm64, layer):
    """The oracle: a hook written out by hand on the module itself."""
    v = torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def change(h):
        h = h.clone()
        h[:, 2] = v
        return h

    blocks = lm64.model.model.layers
    if layer == 0:
        handle = blocks[0].register_forward_pre_hook(lambda m, args: (change(args[0]), *args[1:]))
    else:
        handle = blocks[layer - 1].register_forward_hook(lambda m, args, out: change(out))
    ids = torch.tensor([lm64.prompt(PROMPT).ids])
    with torch.no_grad():
        truth = lm64.model(ids).logits[0]
    handle.remove()
    with lm64.edit(ls.Edit(layer, 2, v)):
        found = lm64.unembed(lm64.read(PROMPT)[lm64.n_layers, :])
    assert (found - truth).abs().max() < 1e-12


def test_operations(lm64):
    h = lm64.read(PROMPT)[2, 1]
    v = torch.randn(32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    unit = v / v.norm()
    expected = {
        add: h + v,
        add_norm_matched: h + h.norm() * unit,
        replace_norm_matched: h.norm() * unit,
        (lambda old, new: 2 * old - new): 2 * h - v,
    }
    for op, value in expected.items():
        with lm64.edit(ls.Edit(2, 1, v, op)):
            assert torch.allclose(lm64.read(PROMPT)[2, 1], value, atol=1e-12)


def test_several_positions_rows_and_nested_blocks(lm64):
    prompts = [PROMPT, "One two three"]
    plain = lm64.read(prompts)
    v = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with lm64.edit(ls.Edit(1, [0, -1], v)):
        both = lm64.read(prompts)
    for row in range(2):
        assert torch.equal(both[1, 0][row], v[row, 0])
        assert torch.equal(both[1, -1][row], v[row, 1])
    with lm64.edit(ls.Edit(1, 0, v[0, 0], row=1)):
        one = lm64.read(prompts)
        with lm64.edit(ls.Edit(1, 0, v[0, 1], add, row=1)):
            two = lm64.read(prompts)
    assert torch.equal(one[1, 0][0], plain[1, 0][0])
    assert torch.equal(one[1, 0][1], v[0, 0])
    assert torch.allclose(two[1, 0][1], v[0, 0] + v[0, 1])
    assert torch.equal(lm64.read(prompts).tensor, plain.tensor)


def test_edits_are_undone_when_the_body_raises(lm64):
    before, hooked = lm64.read(PROMPT).tensor, hooks_of(lm64)

    def boom():
        with lm64.edit(ls.Edit(1, 0, torch.zeros(32, dtype=torch.float64))):
            lm64.read(PROMPT)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        boom()
    assert torch.equal(lm64.read(PROMPT).tensor, before)
    assert hooks_of(lm64) == hooked


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (ls.Edit(1, 0, torch.zeros(31)), "the vector has 31 numbers, a state of this model 32; map it first"),
        (ls.Edit(1, [0, 1], torch.zeros(3, 32)), "give \\(D,\\), \\(positions, D\\) or \\(prompts, positions, D\\)"),
        (ls.Edit(1, 0, torch.zeros(5, 1, 32)), "5 rows of vectors for 1 prompts"),
        (ls.Edit(1, 0, torch.zeros(32), row=3), "row 3: 1 prompts are running, rows 0–0"),
        (ls.Edit(1, 99, torch.zeros(32)), "position 99"),
        (ls.Edit(1, "Spain", torch.zeros(32)), "position 'Spain': not in the prompt"),
    ],
)
def test_edits_that_do_not_fit(lm, edit, message):
    with pytest.raises(ls.LenscopeError, match=message), lm.edit(edit):
        lm.read(PROMPT)
