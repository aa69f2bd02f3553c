"""Trajectories while a model writes: the tokens of plain generation, and the trajectory of the whole text."""

import numpy as np
import pytest
import tiny
import torch
from plain_hooks import run_with_hooks, write_greedily

import lenscope as ls
from lenscope.engine.token_choice_and_end import TokenChooser
from lenscope.lenses.trajectory import MEASURES
from lenscope.models.interruption import Interrupted, interruptible

PROMPT = "The capital of France is"
# of measures in nats and of probabilities, on tiny models in float32
CLOSE = 1e-4


def require_equal(whole, expected):
    assert (whole.ids, whole.layers, whole.positions) == (expected.ids, expected.layers, expected.positions)
    assert whole.final == expected.final
    assert whole.vocabulary == expected.vocabulary
    for name in MEASURES:
        np.testing.assert_allclose(getattr(whole, name), getattr(expected, name), atol=CLOSE, err_msg=name)
    assert np.array_equal(whole.top_ids[..., 0], expected.top_ids[..., 0])
    np.testing.assert_allclose(whole.top_log_probs, expected.top_log_probs, atol=CLOSE)


@pytest.mark.parametrize("f", [None, lambda h, layer: h + 0.1 * layer])
@pytest.mark.parametrize("how", [{}, {"layers": [1, 3], "positions": [0, -1]}, {"target": "a", "positions": [2]}])
def test_the_whole_is_the_trajectory_of_the_whole_text(lm, f, how):
    lens = ls.Lens(lm, f)
    generation = lens.generate(PROMPT, 6, **how)
    start = generation.start
    require_equal(start, lens.trajectory(PROMPT, **how))
    tokens = list(generation)
    assert [t.id for t in tokens] == list(lm.generate(PROMPT, 6).ids) == generation.ids
    assert generation.reason == "length"
    assert generation.text == lm.generate(PROMPT, 6).text
    prompt = lm.prompt(PROMPT)
    n = len(prompt)
    every = [*dict.fromkeys(p for p in prompt.positions(how.get("positions")) if p < n - 1), *range(n - 1, n + 6)]
    expected = lens.trajectory([*prompt.ids, *generation.ids], **{**how, "positions": every})
    whole = generation.trajectory()
    require_equal(whole, expected)
    drawn = {"temperature": 0.0, "top_p": 1.0, "seed": 0}
    assert whole.provenance["generation"] == {"prompt_tokens": n, "reason": "length", **drawn}
    assert ls.Trajectory.from_json(whole.to_json()).ids == whole.ids
    assert generation.written().positions == tuple(range(n - 1, n + 5))
    assert np.array_equal(generation.written().entropy, whole.entropy[:, -7:-1])
    for k, token in enumerate(tokens):
        assert token.trajectory.positions == (n - 1 + k,)
        assert token.trajectory.ids == (*prompt.ids, *generation.ids[: k + 1])
        assert token.text == lm.encoder.tokens([token.id])[0] == token.trajectory.tokens[-1]
        if "target" not in how and 3 not in how.get("layers", []):
            assert token.log_prob == pytest.approx(-float(token.trajectory.cross_entropy[-1, 0]), abs=CLOSE) or f


def test_tokens_and_log_probabilities_are_those_of_runs_by_hand(lm):
    ids = list(lm.prompt(PROMPT).ids)
    generation = ls.Lens(lm).generate(PROMPT, 5)
    tokens = list(generation)
    assert generation.ids == write_greedily(lm.model, ids, 5)
    for k, token in enumerate(tokens):
        _, logits = run_with_hooks(lm.model, [*ids, *generation.ids[:k]])
        assert token.log_prob == pytest.approx(float(logits[0, -1].log_softmax(-1)[token.id]), abs=CLOSE)


def test_at_any_time_there_is_a_trajectory_of_what_is_written_so_far(lm):
    lens = ls.Lens(lm)
    generation, expected = lens.generate(PROMPT, 4), list(lens.generate(PROMPT, 4))
    for k, token in enumerate(generation):
        assert token.id == expected[k].id
        require_equal(generation.trajectory(), lens.trajectory([*lm.prompt(PROMPT).ids, *generation.ids]))
    assert next(generation, None) is None


def test_drawn_tokens_are_fixed_by_the_seed_and_cut_to_the_nucleus(lm):
    lens = ls.Lens(lm)

    def drawn(**how):
        return [t.id for t in lens.generate(PROMPT, 8, temperature=1.5, **how)]

    assert drawn(seed=3) == drawn(seed=3) != drawn(seed=4)
    assert drawn(seed=3, top_p=1e-9) == list(lm.generate(PROMPT, 8).ids)
    # by hand: the same numbers choose from the same states
    writer = TokenChooser(lm, 1, 8, (), 1.5, 1.0, 3)
    ids, written = list(lm.prompt(PROMPT).ids), []
    for step in range(8):
        state = lm.read([*ids, *written], lm.n_layers, -1)[lm.n_layers, -1]
        with torch.no_grad():
            written.append(int(writer.choose(state[None], np.array([0]), step)[0][0]))
    assert drawn(seed=3) == written


def test_it_ends_at_an_end_of_text_token_and_at_a_stop_string():
    lm = ls.LM(tiny.model("llama"), tiny.tokenizer(), "tiny-llama")
    whole = lm.generate(PROMPT, 6)
    lm.model.generation_config.eos_token_id = whole.ids[2]
    generation = ls.Lens(lm).generate(PROMPT, 6)
    assert [t.id for t in generation] == list(lm.generate(PROMPT, 6).ids) == list(whole.ids[:3])
    assert generation.reason == "end"
    assert generation.text == lm.encoder.decode(whole.ids[:2])
    lm.model.generation_config.eos_token_id = 2
    generation = ls.Lens(lm).generate(PROMPT, 6, stop=whole.tokens[1])
    list(generation)
    assert generation.reason == "stop"
    assert whole.tokens[1] not in generation.text


def test_edits_of_the_prompt_are_made_as_in_plain_generation(lm):
    patch = ls.Edit(2, "France", lm.read(PROMPT)[2, 0])
    with lm.edit(patch):
        generation = ls.Lens(lm).generate(PROMPT, 5)
        assert [t.id for t in generation] == list(lm.generate(PROMPT, 5).ids)
        start = ls.Lens(lm).trajectory(PROMPT)
    require_equal(generation.start, start)
    assert not np.allclose(start.entropy, ls.Lens(lm).trajectory(PROMPT).entropy)


@pytest.mark.parametrize("questions", [0, 3, 6, 8, 9, 10, 13, 20])
def test_an_interrupted_generation_goes_on_where_it_was(lm, questions):
    """Whatever it was doing: reading a block, reducing logits. What was not written does not count as text either."""
    lens = ls.Lens(lm)
    expected = [t.id for t in lens.generate(PROMPT, 5)]
    generation, asked = lens.generate(PROMPT, 5, stop="never written"), 0

    def should_stop():
        nonlocal asked
        asked += 1
        return asked > questions

    first = next(generation)
    with pytest.raises(Interrupted), interruptible(should_stop):
        list(generation)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    require_equal(generation.trajectory(), lens.trajectory([*lm.prompt(PROMPT).ids, *generation.ids]))
    list(generation)
    assert first.id == expected[0]
    assert generation.ids == expected
    assert generation.chooser.written == {0: expected}
    require_equal(generation.trajectory(), lens.trajectory([*lm.prompt(PROMPT).ids, *expected]))


def test_mistakes_are_said_in_one_line(lm):
    lens = ls.Lens(lm)
    for call, message in (
        (lambda: lens.generate(PROMPT, 0), "max_new_tokens 0"),
        (lambda: lens.generate(PROMPT, 10**6), "reads at most 64; ask for at most"),
        (lambda: lens.generate([7] * 64, 1), "give a shorter prompt"),
        (lambda: lens.generate(PROMPT, 3, layers=[9]), "layer 9"),
        (lambda: lens.generate(PROMPT, 3, positions=[99]), "position 99"),
        (lambda: lens.generate(PROMPT, 3, temperature=-1), "temperature -1"),
        (lambda: lens.generate(PROMPT, 3, top_p=0), "top_p 0"),
        (lambda: lens.generate(PROMPT, 3, temperature=1, seed=-1), "seed -1: give at least 0"),
        (lambda: lens.generate(PROMPT, 3).written(), "nothing was written yet"),
    ):
        with pytest.raises(ls.LenscopeError, match=message):
            call()
