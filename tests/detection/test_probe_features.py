"""Features for probes equal what lenses and the model say of every position, whatever company a prompt is in."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from plain_hooks import run_with_hooks

import lenscope as ls
from lenscope.detection.probe_features import (
    POSITION_POOLS,
    all_views,
    measure_probe_features,
    pool_positions,
    probe_reading,
    trajectory_names,
)
from lenscope.engine.shared_prefix_states import ReadPrefixes

TEXTS = ["Say the alphabet backwards, please.", "The cat", "Write a poem about the sea and its ships.", "T"]
LAYERS = (0, 1, 3, 4)


@pytest.fixture(scope="module")
def lenses(lm, tuned):
    return {"logit": ls.Lens(lm), "tuned": tuned}


@pytest.fixture(scope="module")
def features(lenses):
    return measure_probe_features(lenses, TEXTS, LAYERS)


def _states(lm, text):
    """States (5, T, D) by plain hooks."""
    return run_with_hooks(lm.model, [lm.tokenizer(text)["input_ids"]])[0][:, 0]


def _pooled(values):
    """By pool: of values (T,) without the first."""
    v = values[1:] if len(values) > 1 else values
    quarter = max(1, len(v) // 4)
    steps = [abs(b - a) for a, b in pairwise(v)]
    change = np.mean(steps) if steps else 0
    return dict(
        zip(
            POSITION_POOLS,
            (v[-1], np.mean(v), max(v), change, np.mean(v[-quarter:]) - np.mean(v[:quarter])),
            strict=True,
        )
    )


def test_every_column_is_what_the_lens_s_trajectory_says(lm, lenses, features):
    for name, lens in lenses.items():
        columns = features.columns[f"trajectory {name}"]
        assert columns == trajectory_names(LAYERS, 4)
        assert len(columns) == 5 * (3 * 4 + 2 + 3 + 1) == len({*columns})
        for n, text in enumerate(TEXTS):
            of_lens = lens.trajectory(text, layers=LAYERS)
            top = np.array(of_lens.final or of_lens.top_ids[-1, :, 0].tolist())
            values = {"prediction depth": of_lens.prediction_depth / 4}
            h = _states(lm, text)
            for row, layer in enumerate(LAYERS):
                log_probs = lens.logits(h[layer], layer).double().log_softmax(-1).detach().numpy()
                values[f"{layer} entropy"] = of_lens.entropy[row]
                values[f"{layer} top_log_prob"] = log_probs[np.arange(len(top)), top]
                if layer < 4:
                    values[f"{layer} kl"] = of_lens.kl[row]
                    values[f"{layer} agreement"] = (of_lens.top_ids[row, :, 0] == top).astype(float)
                if row:
                    before = LAYERS[row - 1]
                    a, b = lens.map(h[before], before), lens.map(h[layer], layer)
                    values[f"{layer} drift"] = (1 - (a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)).numpy()
            assert {c.rsplit(" ", 1)[0] for c in columns} == values.keys()
            for at, column in enumerate(columns):
                measure, pool = column.rsplit(" ", 1)
                found = features.views[f"trajectory {name}"][-1][n, at]
                assert found == pytest.approx(_pooled(values[measure])[pool], abs=2e-5), (text, column)


def test_states_length_and_perplexity_are_those_of_plain_hooks(lm, features):
    for n, text in enumerate(TEXTS):
        h = _states(lm, text)
        for layer in LAYERS:
            np.testing.assert_allclose(features.views["last state"][layer][n], h[layer, -1], rtol=1e-5, atol=1e-6)
            mean = h[layer, 1:].mean(0) if h.shape[1] > 1 else h[layer, 0]
            np.testing.assert_allclose(features.views["mean state"][layer][n], mean, rtol=1e-5, atol=1e-6)
        ids = lm.tokenizer(text)["input_ids"]
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids])).logits[0].double()
        surprisals = -logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]
        wanted = float(surprisals.mean()) if len(ids) > 1 else 0.0
        assert features.views["perplexity"][-1][n, 0] == pytest.approx(wanted, abs=1e-6)
        assert features.views["length"][-1][n, 0] == pytest.approx(np.log(len(ids)))


def test_views_that_put_others_together(lenses, features):
    views = features.views
    assert tuple(views) == all_views(lenses)
    assert features.texts == tuple(TEXTS)
    both = np.hstack([views["trajectory logit"][-1], views["trajectory tuned"][-1]])
    np.testing.assert_array_equal(views["trajectories"][-1], both)
    assert len(features.columns["trajectories"]) == both.shape[1]
    assert features.columns["trajectories"][0] == "logit 0 entropy last"
    for layer in LAYERS:
        beside = np.hstack([views["last state"][layer], both.astype(np.float32)])
        np.testing.assert_array_equal(views["states and trajectories"][layer], beside)


def test_a_prompt_s_features_are_its_own(lenses, features):
    for view in all_views(lenses):
        for n in (1, 3):
            alone = measure_probe_features(lenses, TEXTS[n : n + 1], LAYERS, views=[view]).views
            assert {*alone} == {view}
            for layer, x in alone[view].items():
                np.testing.assert_allclose(x[0], features.views[view][layer][n], rtol=1e-5, atol=1e-6)


def test_what_prompts_begin_with_is_read_once_and_gives_the_same(lenses):
    system = "You are a helpful assistant. Answer in one sentence, and never name a source. "
    prompts = [system + t for t in TEXTS]
    known = ReadPrefixes()
    together = measure_probe_features(lenses, prompts, (1, 4), known=known)
    again = measure_probe_features(lenses, prompts[2:3], (1, 4), known=known)
    for view, by_layer in together.views.items():
        for layer, x in by_layer.items():
            alone = measure_probe_features(lenses, prompts[2:3], (1, 4), views=[view]).views[view][layer]
            np.testing.assert_allclose(x[2:3], alone, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(again.views[view][layer], alone, rtol=1e-4, atol=1e-5)


def test_pools_by_hand():
    values = np.array([[99.0, 1, 4, 2, 2, 8, 6, 0, 10], [7.0] * 9])
    assert pool_positions(values).tolist() == [10, 33 / 8, 10, (3 + 2 + 0 + 6 + 2 + 6 + 10) / 7, 2.5, 7, 7, 7, 0, 0]
    assert pool_positions(np.array([[3.0]])).tolist() == [3, 3, 3, 0, 0]


def test_only_what_a_view_needs_is_read(lenses):
    for views, layers in (
        (["last state"], (1, 3)),
        (["length"], (0,)),
        (["perplexity"], (4,)),
        (["trajectory tuned"], (1, 3, 4)),
    ):
        assert probe_reading(lenses, (1, 3), views).layers == layers


def test_progress_and_mistakes(lm, lenses):
    seen = []
    measure_probe_features(lenses, TEXTS, views=["length"], progress=lambda *a: seen.append(a))
    assert seen[-1] == (4, 4)
    other = ls.LM(lm.model, lm.tokenizer, "other")
    for call, told in (
        (lambda: measure_probe_features({}, TEXTS), "lenses: there are none"),
        (lambda: measure_probe_features({**lenses, "b": ls.Lens(other)}, TEXTS), "of several models"),
        (lambda: measure_probe_features(lenses, []), "prompts: there are none"),
        (lambda: measure_probe_features(lenses, TEXTS, views=["states"]), "view 'states': there are 'last state'"),
        (lambda: measure_probe_features(lenses, TEXTS, views=[]), "view none"),
        (lambda: measure_probe_features(lenses, TEXTS, [9]), "layer 9"),
    ):
        with pytest.raises(ls.LenscopeError, match=told):
            call()
