"""Patched runs read by a lens: as edits made by hand, and nothing outside the causal cone changes."""

import numpy as np
import pytest
import tiny
import torch
from plain_hooks import put, run_with_hooks

import lenscope as ls
from lenscope.lenses import causal_cone, patched_trajectory
from lenscope.models import edits

PROMPT, OTHER = "The capital of France is", "A cat sat on the mat"
# what a patch leaves alone; KL compares with the end of the run, which it moves
OWN = ("entropy", "max_probability", "cross_entropy", "rank", "top_ids", "top_log_probs")


@pytest.mark.parametrize("layer", [0, 2, 4])
@pytest.mark.parametrize("f", [None, lambda h, layer: h + 0.1 * layer])
def test_it_is_the_run_with_hooks_and_the_plain_one_outside_the_cone(lm64, layer, f):
    lens = ls.Lens(lm64, f)
    state = lm64.read(OTHER, 3, -1)
    prompt = lm64.prompt(PROMPT)
    at = prompt.position("France")
    patched, plain = patched_trajectory(lens, PROMPT, state, layer, "France", top_k=3), lens.trajectory(PROMPT, top_k=3)
    states, _ = run_with_hooks(lm64.model, prompt.ids, {layer: put(at, state[3, -1])})
    for n, number in enumerate(patched.layers):
        log_q = lens.logits(states[number, 0], number).log_softmax(-1)
        np.testing.assert_allclose(patched.top_log_probs[n], log_q.topk(3).values.detach().numpy(), atol=1e-5)
        assert np.array_equal(patched.top_ids[n], log_q.topk(3).indices.numpy())
    cone = causal_cone(patched, layer, at)
    assert [[bool(x) for x in row] for row in cone] == [
        [(n == layer and p == at) or (n > layer and p >= at) for p in patched.positions] for n in patched.layers
    ]
    for name in OWN:
        a, b = getattr(patched, name), getattr(plain, name)
        assert np.array_equal(a[~cone], b[~cone], equal_nan=True), name
    assert (patched.entropy[cone] != plain.entropy[cone]).all()
    before = [n for n, p in enumerate(plain.positions) if p < at]
    assert np.array_equal(patched.kl[:, before], plain.kl[:, before])
    assert patched.provenance["patch"] == {
        "layer": layer,
        "position": at,
        "op": "replace",
        "source": {"model": "tiny-llama", "text": OTHER, "layer": 3, "position": len(lm64.prompt(OTHER)) - 1},
    }
    assert ls.Trajectory.from_json(patched.to_json()).provenance == patched.provenance


def test_operations_windows_and_vectors(lm64):
    lens, vector = ls.Lens(lm64), lm64.read(OTHER)[3, -1]
    how = {"layers": [0, 4], "positions": [2, -1], "target": "a", "top_k": 2}
    patched = patched_trajectory(lens, PROMPT, vector, 1, 2, op=edits.add_norm_matched, **how)
    with lm64.edit(ls.Edit(1, 2, vector, edits.add_norm_matched)):
        expected = lens.trajectory(PROMPT, **how)
    for name in (*OWN, "kl", "layers", "positions", "target"):
        assert np.array_equal(getattr(patched, name), getattr(expected, name)), name
    assert causal_cone(patched, 1, 2).tolist() == [[False, False], [True, True]]


def test_a_state_of_another_model_is_mapped(lm64):
    other = ls.LM(tiny.model("gemma2", torch.float64, seed=1), tiny.tokenizer(), "tiny-gemma2")
    state, lens = lm64.read(PROMPT, 3, -1), ls.Lens(other)
    patched = patched_trajectory(lens, OTHER, state, 2, 1, f=lambda h, layer, to: h * layer + to)
    with other.edit(ls.Edit(2, 1, state[3, -1] * 3 + 2)):
        expected = lens.trajectory(OTHER)
    for name in (*OWN, "kl"):
        assert np.array_equal(getattr(patched, name), getattr(expected, name), equal_nan=True), name
    assert patched.provenance["patch"]["source"]["model"] == "tiny-llama"


def test_mistakes_are_said_in_one_line(lm64):
    lens, state = ls.Lens(lm64), lm64.read(OTHER, 3, -1)
    for call, message in (
        (lambda: patched_trajectory(lens, PROMPT, lm64.read(OTHER), 1, 1), "give one, of one layer and position"),
        (lambda: patched_trajectory(lens, PROMPT, state, 9, 1), "layer 9"),
        (lambda: patched_trajectory(lens, PROMPT, state, 1, 99), "position 99"),
        (lambda: patched_trajectory(lens, PROMPT, torch.zeros(7), 1, 1), "7 numbers"),
        (lambda: patched_trajectory(lens, PROMPT, state, 1, 1, layers=[9]), "layer 9"),
    ):
        with pytest.raises(ls.LenscopeError, match=message):
            call()
