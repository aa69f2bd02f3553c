"""Explanations that stream: every row is what the Patchscope generates, and its controls what they are alone."""

import numpy as np
import pytest
import tiny
import torch
from plain_hooks import hooks_of, put, run_with_hooks, write_greedily

import lenscope as ls
from lenscope.engine import chunked_runs
from lenscope.models.interruption import Interrupted, interruptible
from lenscope.patchscopes import random_vectors, stream_explanation
from lenscope.patchscopes.controls import random_like

SOURCE, TARGET, NEW = "The capital of France is", "one -> one, two -> two, x ->", 5
TARGETS = {
    "at the end": ls.Target(TARGET),
    "inside": ls.Target(TARGET, at="x"),
    "several": ls.Target(TARGET, at="one", every=True),
    "masked": ls.Target(TARGET, at="x", below="none"),
}


@pytest.fixture(scope="module")
def states(lm64):
    return lm64.read(SOURCE, 2, -1)


def rows_of(explanation, kind):
    return [n for n, row in enumerate(explanation.rows) if row.kind == kind]


def texts_of(explanation, kind):
    return [explanation.texts[n] for n in rows_of(explanation, kind)]


@pytest.mark.parametrize("name", TARGETS)
def test_texts_are_those_of_generate_and_of_the_controls(lm64, states, name):
    scope = ls.Patchscope(lm64, TARGETS[name])
    explanation = stream_explanation(scope, states, max_new_tokens=NEW, seed=3)
    steps = list(explanation)
    grid, random = (scope.generate(sources, max_new_tokens=NEW) for sources in (states, random_vectors(states, seed=3)))
    assert texts_of(explanation, "state") == list(grid.texts)
    assert texts_of(explanation, "random") == list(random.texts)
    plain = lm64.generate(TARGET, NEW)
    (unpatched,) = rows_of(explanation, "unpatched")
    assert explanation.ids[unpatched] == list(plain.ids)
    cells = [(row.target, row.source, row.layer) for row in explanation.rows if row.kind == "state"]
    assert cells == list(zip(grid.target.tolist(), grid.source.tolist(), grid.layer.tolist(), strict=True))
    # what came step by step
    written = [[t for step in steps for t in step if t.row == n] for n in range(len(explanation.rows))]
    for n, tokens in enumerate(written):
        assert [t.id for t in tokens] == explanation.ids[n]
        assert [t.text for t in tokens] == lm64.encoder.tokens(explanation.ids[n])
        assert [t.reason for t in tokens] == [""] * (len(tokens) - 1) + [explanation.reasons[n]]
    for n, ids in enumerate(grid.ids.tolist()):
        assert explanation.ids[n] == [i for i in ids if i >= 0]
        np.testing.assert_allclose([t.log_prob for t in written[n]], grid.log_probs[n][: len(written[n])], atol=1e-5)


def test_rows_are_runs_by_hand(lm64, states):
    explanation = stream_explanation(ls.Patchscope(lm64, TARGETS["inside"]), states, max_new_tokens=NEW, seed=1)
    first = next(explanation)
    assert [t.row for t in first] == list(range(2 * (lm64.n_layers + 1) + 1))
    list(explanation)
    prompt = lm64.prompt(TARGET)
    at, ids = prompt.position("x"), list(prompt.ids)
    h, drawn = states[2, -1], random_like(states.tensor, 1)[0, 0, 0]
    assert float(drawn.norm()) == pytest.approx(float(h.norm()))
    for n, row in enumerate(explanation.rows):
        changes = {} if row.layer < 0 else {row.layer: put(at, h if row.kind == "state" else drawn)}
        assert explanation.ids[n] == write_greedily(lm64.model, ids, NEW, changes)
        _, logits = run_with_hooks(lm64.model, ids, changes)
        log_p = logits[0, -1].log_softmax(-1)
        assert first[n].log_prob == pytest.approx(float(log_p[first[n].id]), abs=1e-6)


def test_all_rows_run_in_one_batch(lm64, states, monkeypatch):
    """Otherwise the controls would come behind the state's own texts."""
    chunks = []
    prepare = chunked_runs._prepare
    monkeypatch.setattr(chunked_runs, "_prepare", lambda *a: chunks.append(a[2]) or prepare(*a))
    for target in TARGETS.values():
        chunks.clear()
        list(stream_explanation(ls.Patchscope(lm64, target), states, max_new_tokens=2))
        assert len(chunks) == 1


def test_between_models_the_random_vector_is_mapped_as_the_state_is(lm64, states):
    other = ls.LM(tiny.model("gemma2", torch.float64, seed=1), tiny.tokenizer(), "tiny-gemma2")
    turn = torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 6
    scope = ls.Patchscope(other, TARGETS["inside"], lambda h, layer, to: h @ turn * (1 + to), source_lm=lm64)
    explanation = stream_explanation(scope, states, [1, 3], max_new_tokens=NEW)
    list(explanation)
    assert texts_of(explanation, "state") == list(scope.generate(states, [1, 3], max_new_tokens=NEW).texts)
    random = scope.generate(random_vectors(states), [1, 3], max_new_tokens=NEW)
    assert texts_of(explanation, "random") == list(random.texts)
    assert texts_of(explanation, "unpatched") == [other.generate(TARGET, NEW).text]


def test_stops_ends_and_no_controls(lm64, states):
    scope = ls.Patchscope(lm64, ls.Target(TARGET, edits=[ls.Edit(0, 1, states[2, -1])]))
    whole = stream_explanation(scope, states, max_new_tokens=NEW)
    list(whole)
    stop = whole.texts[0][-1]
    explanation = stream_explanation(scope, states, max_new_tokens=NEW, stop=stop, controls=False)
    list(explanation)
    assert {row.kind for row in explanation.rows} == {"state"}
    grid = scope.generate(states, max_new_tokens=NEW, stop=stop)
    assert explanation.texts == grid.texts
    assert tuple(explanation.reasons) == grid.ended
    assert "stop" in explanation.reasons
    with lm64.edit(ls.Edit(0, 1, states[2, -1])):
        plain = lm64.generate(TARGET, NEW).text
    with_controls = stream_explanation(scope, states, max_new_tokens=NEW)
    list(with_controls)
    assert texts_of(with_controls, "unpatched") == [plain]


def test_nobody_waiting_ends_it_and_leaves_the_model_as_it_was(lm64, states):
    # transformers' own stay where another test asked the model for all its states
    before = hooks_of(lm64)
    scope = ls.Patchscope(lm64, TARGETS["inside"])
    grid, explanation = (
        scope.generate(states, max_new_tokens=NEW),
        stream_explanation(scope, states, max_new_tokens=NEW),
    )
    next(explanation)
    with pytest.raises(Interrupted), interruptible(lambda: len(explanation.ids[0]) > 1):
        list(explanation)
    assert [len(ids) for ids in explanation.ids] == [2] * len(explanation.rows)
    assert hooks_of(lm64) == before
    assert scope.generate(states, max_new_tokens=NEW).texts == grid.texts


def test_mistakes_are_said_in_one_line(lm64, states):
    scope = ls.Patchscope(lm64, TARGET)
    for call, message in (
        (lambda: stream_explanation(scope, states, max_new_tokens=0), "max_new_tokens 0"),
        (lambda: stream_explanation(scope, states, max_new_tokens=10**6), "reads at most"),
        (lambda: stream_explanation(scope, torch.zeros(1, 7)), "vectors of size 7"),
        (lambda: stream_explanation(scope, states, 9), "layer 9"),
    ):
        with pytest.raises(ls.LenscopeError, match=message):
            call()
