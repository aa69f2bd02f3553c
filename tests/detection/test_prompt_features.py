"""Features of prompts equal their definitions; disturbed prompts are made of normal ones."""

import numpy as np
import pytest
import torch
from plain_hooks import run_with_hooks

import lenscope as ls
from lenscope.detection.prompt_features import (
    answer_features,
    disturb_prompts,
    mean_states,
    measure_prompts,
    sorted_answer_features,
    spaced_layers,
    trajectory_columns,
)
from lenscope.tasks import builtin_questions as quizzes

REQUESTS = quizzes.REQUESTS.splitlines()


def _states(lm, text):
    """States (5, P, D) by plain hooks."""
    return run_with_hooks(lm.model, [lm.tokenizer(text)["input_ids"]])[0][:, 0]


def test_trajectories_equal_their_definitions(lm, tuned):
    texts = [REQUESTS[0], "The cat", REQUESTS[3], "The"]
    found = measure_prompts(tuned, texts, [1, 3, -1])
    assert found.layers == (1, 3, 4)
    assert found.columns == trajectory_columns((1, 3, 4), 4)
    assert found.trajectory.shape == (4, 3 * (4 + 4 + 2))
    for n, text in enumerate(texts):
        h = _states(lm, text)
        h = h[:, 1:] if h.shape[1] > 1 else h
        with torch.no_grad():
            p = lm.model.lm_head(lm.model.model.norm(h[-1])).log_softmax(-1)
            for layer in (1, 3, 4):
                a, b = tuned.f.weights[layer, 4] if layer < 4 else (torch.eye(32), torch.zeros(32))
                q = lm.model.lm_head(lm.model.model.norm(h[layer] @ a.double().T + b.double())).log_softmax(-1)
                wanted = {
                    "entropy": -(q.exp() * q).sum(-1),
                    "kl": (p.exp() * (p - q)).sum(-1),
                    "top_log_prob": q.gather(-1, p.argmax(-1)[:, None])[:, 0],
                    "agreement": (p.argmax(-1) == q.argmax(-1)).double(),
                }
                for name, values in wanted.items():
                    for pool, value in (("last", values[-1]), ("mean", values.mean()), ("max", values.max())):
                        if f"{layer} {name} {pool}" in found.columns:
                            at = found.columns.index(f"{layer} {name} {pool}")
                            assert found.trajectory[n, at] == pytest.approx(float(value), abs=1e-8)
        np.testing.assert_allclose(found.states[n], h[[1, 3, 4]].mean(1).numpy(), atol=1e-9)
    np.testing.assert_allclose(mean_states(lm, texts, [3, 4]), found.states[:, 1:], atol=1e-9)
    assert not any(c.startswith(("4 kl", "4 agreement")) for c in found.columns)
    # a prompt's features are its own, whatever company it is in
    np.testing.assert_allclose(
        measure_prompts(tuned, texts[2:3], [1, 3, 4]).trajectory, found.trajectory[2:3], atol=1e-9
    )


def test_answers_become_features():
    log_probs = np.arange(12.0).reshape(2, 2, 3) ** 2
    assert answer_features(log_probs).tolist() == log_probs.reshape(2, 6).tolist()
    assert answer_features(log_probs[..., :2]).tolist() == [[-1, -7], [-13, -19]]
    found = sorted_answer_features(log_probs)
    assert found.tolist() == [[4, 1, 0, 25, 16, 9], [64, 49, 36, 121, 100, 81]]
    assert sorted_answer_features(log_probs[..., [2, 0, 1]]).tolist() == found.tolist()
    log_probs[0, 0, 2] = np.nan
    for features in (answer_features, sorted_answer_features):
        with pytest.raises(ls.LenscopeError, match="as many"):
            features(log_probs)


def test_layers_are_spread(lm):
    assert spaced_layers(ls.Lens(lm)) == (0, 1, 2, 3, 4)
    assert spaced_layers(ls.Lens(lm), 3) == (0, 2, 4)


def test_disturbed_texts_are_made_of_normal_ones():
    texts = [
        f"Question: shown {n}?\nAnswer: yes\n\nQuestion: a{n} b{n} c{n} d{n} e{n} f{n}\nAnswer:" for n in range(30)
    ]
    made = disturb_prompts(texts, seed=3)
    assert made == disturb_prompts(texts, seed=3) != disturb_prompts(texts, seed=4)
    words = {w for t in texts for w in t.split()}
    for n, (text, odd) in enumerate(zip(texts, made, strict=True)):
        assert odd.startswith(f"Question: shown {n}?\nAnswer: yes\n\n")
        assert odd.endswith("\nAnswer:")
        assert {*odd.split()} <= words
        if n % 2:
            assert sorted(odd.split()) == sorted(text.split())
            assert "shown" in odd
        else:
            inserted = len(odd.split()) - len(text.split())
            assert inserted >= 1
            # one other text's words, not its own
            others = {w[1:] for w in odd.split() if w[0] in "abcdef" and w[1:].isdigit()} - {str(n)}
            assert len(others) <= 1
    assert sum(o != t for o, t in zip(made, texts, strict=True)) >= 29
    with pytest.raises(ls.LenscopeError, match="at least two"):
        disturb_prompts(["alone"])
