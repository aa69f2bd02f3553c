"""Traced cells equal hooks on a tiny float64 Llama."""

import itertools

import numpy as np
import pytest
import torch
from cells_by_hand import OTHER, PROMPT, TWO, answered, run_by_hand, tokens

from lenscope.engine import chunked_runs as rows
from lenscope.interventions import prompt_cells as iv
from lenscope.interventions.causal_tracing import causal_tracing, embedding_std


@pytest.mark.parametrize(("window", "answer", "subject"), [(1, None, "cat"), (2, "o", [4]), (3, TWO, "at sat")])
def test_traced_cells_are_hooks_on_the_model(lm64, raw, window, answer, subject):
    samples, n = 3, lm64.n_layers
    [(run, found, totals)] = causal_tracing(
        lm64, PROMPT, subject, answer, window=window, samples=samples, noise=0.7, seed=5
    )
    ids, wanted = tokens(lm64, PROMPT, answer or "o")
    if answer is None:
        wanted = [int(run_by_hand(lm64, ids)[0][-1].argmax())]
    text = [*ids, *wanted[:-1]]
    draws = torch.randn(
        samples, len(run.marked), lm64.hidden_size, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    clean_p, clean = run_by_hand(lm64, text)
    noises = [[(p, 0.7 * draws[s, k]) for k, p in enumerate(run.marked)] for s in range(samples)]
    base = np.array([answered(run_by_hand(lm64, text, noise=noise)[0], wanted) for noise in noises])
    assert totals["clean_log_prob"] == pytest.approx(answered(clean_p, wanted), abs=1e-9)
    assert totals["corrupted"] == pytest.approx(np.exp(base).mean(), abs=1e-9)
    assert totals["total_effect"] == pytest.approx(np.exp(answered(clean_p, wanted)) - np.exp(base).mean(), abs=1e-9)
    assert run.places == tuple((p,) for p in range(len(ids)))
    for layer, p in itertools.product(range(n + 1), range(len(ids))):
        around = range(max(0, layer - window // 2), min(n, layer + (window + 1) // 2 - 1) + 1)
        puts = [(at, p, clean[at, p]) for at in around]
        lp = np.array([answered(run_by_hand(lm64, text, puts, noise=noise)[0], wanted) for noise in noises])
        effect = np.exp(lp) - np.exp(base)
        assert found["probability"][layer, p] == pytest.approx(np.exp(lp).mean(), abs=1e-9)
        assert found["effect"][layer, p] == pytest.approx(effect.mean(), abs=1e-9)
        assert found["standard_error"][layer, p] == pytest.approx(effect.std(ddof=1) / samples**0.5, abs=1e-9)
        assert found["log_prob"][layer, p] == pytest.approx(lp.mean(), abs=1e-9)
        assert found["log_effect"][layer, p] == pytest.approx((lp - base).mean(), abs=1e-9)
    assert np.abs(found["log_effect"]).max() > 0.1
    assert answer is not None or np.abs(found["effect"]).max() > 1e-3


def test_a_subject_of_one_token_is_whole_again_when_restored(lm64):
    found = causal_tracing(lm64, PROMPT, [2], samples=4)
    effect, total = found.cells("effect"), found.totals["total_effect"][0]
    assert abs(total) > 1e-3
    assert effect[0, 2] == pytest.approx(total, abs=1e-6)
    assert effect[-1, -1] == pytest.approx(total, abs=1e-6)
    assert not effect[:, :2].any()
    assert not causal_tracing(lm64, PROMPT, [2], positions=[0, 1], samples=1).cells().any()
    assert not effect[-1, :-1].any()
    one = causal_tracing(lm64, PROMPT, [2], samples=1)
    assert np.isnan(one.measures["standard_error"]).all()


def test_other_vectors_are_restored_as_controls(lm64, raw):
    ids = lm64.prompt(PROMPT).ids
    states = lm64.read(list(reversed(ids)))[:, :]
    [(run, found, _)] = causal_tracing(lm64, PROMPT, "cat", "o", samples=1, noise=1.0, restore=states)
    draws = torch.randn(
        1, len(run.marked), lm64.hidden_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    noise = list(zip(run.marked, draws[0], strict=True))
    wanted = lm64.encoder.ids("o")
    for layer, p in itertools.product(range(lm64.n_layers + 1), range(len(ids))):
        log_p = run_by_hand(lm64, ids, [(layer, p, states[layer, p])], noise=noise)[0]
        assert found["log_prob"][layer, p] == pytest.approx(answered(log_p, wanted), abs=1e-9)


def test_noise_is_three_deviations_of_the_subjects_embeddings(lm64):
    prompt = lm64.prompt(PROMPT)
    at = [i for i, (a, b) in enumerate(prompt.spans) if a < 7 and b > 4]  # "cat"
    rows = lm64.model.get_input_embeddings().weight[list(prompt.ids)][at].detach().numpy()
    expected = np.std(rows, ddof=1)
    assert embedding_std(lm64, PROMPT, "cat") == pytest.approx(expected, abs=1e-12)
    assert causal_tracing(lm64, PROMPT, "cat", samples=1).totals["noise"][0] == pytest.approx(3 * expected, rel=1e-6)
    pooled = embedding_std(lm64, [PROMPT, OTHER], ["cat", "dog"])
    subjects = (PROMPT, "cat"), (OTHER, "dog")
    parts = [lm64.read(p, 0, list(iv.positions_of(lm64.prompt(p), s))).tensor for p, s in subjects]
    assert pooled == pytest.approx(float(torch.cat([t.flatten() for t in parts]).std()), abs=1e-12)


def test_draws_depend_on_the_seed_alone(lm64, monkeypatch):
    found = causal_tracing(lm64, PROMPT, "cat", samples=2)
    monkeypatch.setattr(rows, "MOST_ROWS", 5)
    assert np.allclose(causal_tracing(lm64, PROMPT, "cat", samples=2).cells(), found.cells(), atol=1e-7)
    assert not np.allclose(causal_tracing(lm64, PROMPT, "cat", samples=2, seed=1).cells(), found.cells(), atol=1e-4)
