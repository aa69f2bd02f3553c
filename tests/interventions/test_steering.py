"""Steering: both rows are what runs by hand write, at every kind of position, operation and strength."""

import pytest
import torch
from plain_hooks import hooks_of, run_with_hooks, write_greedily

import lenscope as ls
from lenscope.engine import growing_texts
from lenscope.interventions import steer
from lenscope.measures import streamed
from lenscope.models import edits
from lenscope.models.interruption import Interrupted, interruptible

PROMPT, NEW = "The capital of France is", 6


@pytest.fixture(scope="module")
def vector(lm64):
    return lm64.read(PROMPT)[2, "France"] - lm64.read("A cat sat on the mat")[2, -1]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("strength", [3.0, -2.0])
def test_at_all_positions_and_what_is_written(lm64, vector, cached, strength, monkeypatch):
    if not cached:
        monkeypatch.setattr(growing_texts, "cache_reach", lambda *_: 0)
    ids = list(lm64.prompt(PROMPT).ids)
    for positions, start in ((None, 0), (slice(2, None), 2), (slice(-1, None), len(ids) - 1)):

        def change(h, start=start):
            h = h.clone()
            h[:, start:] += strength * vector
            return h

        texts = steer(lm64, PROMPT, vector, 2, strength=strength, positions=positions, max_new_tokens=NEW)
        steps = list(texts)
        assert [t.row for t in steps[0]] == [0, 1]
        assert texts.ids[0] == list(lm64.generate(PROMPT, NEW).ids)
        assert texts.ids[1] == write_greedily(lm64.model, ids, NEW, {2: change})
        for row, changes in ((0, {}), (1, {2: change})):
            mine = [t for step in steps for t in step if t.row == row]
            assert [t.id for t in mine] == texts.ids[row]
            for n, token in enumerate(mine):
                _, logits = run_with_hooks(lm64.model, [*ids, *texts.ids[row][:n]], changes)
                assert token.log_prob == pytest.approx(float(logits[0, -1].log_softmax(-1)[token.id]), abs=1e-6)
                assert token.reason == (texts.reasons[row] if n == len(mine) - 1 else "")


@pytest.mark.parametrize("op", [edits.add, edits.replace, edits.add_norm_matched, edits.replace_norm_matched])
@pytest.mark.parametrize("positions", [[1, "France"], -1, slice(0, 2)])
def test_at_positions_of_the_prompt_it_is_the_edit(lm64, vector, op, positions):
    texts = steer(lm64, PROMPT, vector, 2, positions=positions, op=op, max_new_tokens=NEW)
    list(texts)
    with lm64.edit(ls.Edit(2, positions, vector, op)):
        steered = lm64.generate(PROMPT, NEW)
    assert texts.ids == (list(lm64.generate(PROMPT, NEW).ids), list(steered.ids))
    assert texts.texts[1] == lm64.encoder.decode([i for i in steered.ids if i != 2])


def test_strength_goes_from_nothing_through_the_operation_and_beyond(lm64, vector):
    h, at = lm64.read(PROMPT)[2, -1], -1

    def steered(op, strength):
        texts = steer(lm64, PROMPT, vector, 2, strength=strength, positions=at, op=op, max_new_tokens=NEW)
        list(texts)
        return texts.ids[1]

    def replaced(state):
        with lm64.edit(ls.Edit(2, at, state)):
            return list(lm64.generate(PROMPT, NEW).ids)

    for op in (edits.add, edits.replace, edits.add_norm_matched, edits.replace_norm_matched):
        assert steered(op, 0.0) == list(lm64.generate(PROMPT, NEW).ids)
        for strength in (0.5, 1.0, 4.0):
            assert steered(op, strength) == replaced(h + strength * (op(h, vector) - h)), (op, strength)


def test_drawn_rows_take_the_same_numbers(lm64, vector):
    same = steer(lm64, PROMPT, vector, 2, strength=0, temperature=1.5, seed=5, max_new_tokens=8)
    list(same)
    assert same.ids[0] == same.ids[1]
    assert same.ids[0] == [t.id for t in ls.Lens(lm64).generate(PROMPT, 8, temperature=1.5, seed=5)]
    apart = steer(lm64, PROMPT, vector, 2, strength=30, temperature=1.5, seed=5, max_new_tokens=8)
    list(apart)
    assert apart.ids[0] == same.ids[0] != apart.ids[1]


def test_a_row_that_ends_leaves_the_other_to_go_on(lm64, vector, monkeypatch):
    plain, steered = (
        list(lm64.generate(PROMPT, NEW).ids),
        steer(lm64, PROMPT, vector, 2, strength=30, max_new_tokens=NEW),
    )
    list(steered)
    whole = steered.ids[1]
    end = next(i for i in plain[1:] if i not in whole)
    monkeypatch.setattr(lm64.model.generation_config, "eos_token_id", end)
    texts = steer(lm64, PROMPT, vector, 2, strength=30, max_new_tokens=NEW)
    steps = list(texts)
    at = plain.index(end) + 1
    assert texts.ids == (plain[:at], whole)
    assert texts.reasons == ["end", "length"]
    assert [len(step) for step in steps] == [2] * at + [1] * (NEW - at)
    assert texts.texts[0] == lm64.encoder.decode(plain[: at - 1])


def test_edits_that_are_open_apply_to_both_rows(lm64, vector):
    patch = ls.Edit(1, 1, lm64.read(PROMPT)[1, 3])
    with lm64.edit(patch):
        texts = steer(lm64, PROMPT, vector, 2, positions=-1, max_new_tokens=NEW)
        list(texts)
        plain = list(lm64.generate(PROMPT, NEW).ids)
        with lm64.edit(ls.Edit(2, -1, vector, edits.add)):
            steered = list(lm64.generate(PROMPT, NEW).ids)
    assert texts.ids == (plain, steered)


def test_nobody_waiting_ends_it_and_leaves_the_model_as_it_was(lm64, vector):
    # transformers' own stay where another test asked the model for all its states
    before = hooks_of(lm64)
    plain, texts = lm64.generate(PROMPT, NEW), steer(lm64, PROMPT, vector, 2, max_new_tokens=NEW)
    next(texts)
    with pytest.raises(Interrupted), interruptible(lambda: len(texts.ids[0]) > 2):
        list(texts)
    assert len(texts.ids[0]) == 3
    assert hooks_of(lm64) == before
    assert lm64.generate(PROMPT, NEW).ids == plain.ids


def test_mistakes_are_said_in_one_line(lm64, vector):
    for call, message in (
        (lambda: steer(lm64, PROMPT, vector, 9), "layer 9"),
        (lambda: steer(lm64, PROMPT, vector[:5], 2), "vector of shape \\(5,\\)"),
        (lambda: steer(lm64, PROMPT, vector * torch.nan, 2), "vector: holds NaN"),
        (lambda: steer(lm64, PROMPT, vector, 2, strength=float("inf")), "strength inf"),
        (lambda: steer(lm64, PROMPT, vector, 2, positions=[99]), "position 99"),
        (lambda: steer(lm64, PROMPT, vector, 2, max_new_tokens=10**6), "reads at most"),
        (lambda: list(steer(lm64, PROMPT, vector, 2, strength=1e308)), "NaN or infinite"),
    ):
        with pytest.raises(ls.LenscopeError, match=message):
            call()


def test_interrupted_texts_go_on_where_they_were(lm64, vector, monkeypatch):
    """Whatever was being done: reading a block, or looking for the most probable token."""
    monkeypatch.setattr(streamed, "PIECE_BYTES", 1)

    def made():
        return steer(lm64, PROMPT, vector, 2, strength=8, max_new_tokens=4, stop="never written")

    whole, asked = made(), 0
    list(whole)

    def should_stop():
        nonlocal asked
        asked += 1
        return asked == n

    for n in range(1, 21):
        texts, asked = made(), 0
        with pytest.raises(Interrupted), interruptible(should_stop):
            list(texts)
        list(texts)
        assert texts.ids == whole.ids, n
        assert texts._chooser.written == whole._chooser.written
