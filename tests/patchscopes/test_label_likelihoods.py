"""Labels behind patched prompts: every way's ln p per token equals whole runs with plain hooks, token by token."""

import numpy as np
import pytest
import torch
from plain_hooks import put, run_with_hooks

from lenscope.errors import LenscopeError
from lenscope.models.edits import Edit
from lenscope.patchscopes.control_runs import (
    BIAS,
    CONTROLS,
    MEAN,
    NONE,
    RANDOM,
    SHUFFLED,
    TEXT,
    UNTRAINED,
    VECTOR,
    exchanged_items,
)
from lenscope.patchscopes.controls import random_vectors
from lenscope.patchscopes.label_likelihoods import label_log_likelihoods, likelihoods_with_controls
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.target_prompts import Target

NAMES = ["The cat", "France", "a test of the mat", "Paris is"]
LABELS = [" sat", " is the capital", " on a mat", " a"]


def by_hand(lm, ids, label, changes=None):
    """Mean ln p of a label's tokens behind ids, of one whole run with plain hooks."""
    behind = lm.encoder.answer_ids(lm.prompt(list(ids)), [label])[0]
    logits = run_with_hooks(lm.model, [[*ids, *behind]], changes or {})[1][0].double().log_softmax(-1)
    places = range(len(ids) - 1, len(ids) + len(behind) - 1)
    return float(np.mean([logits[at, token] for at, token in zip(places, behind, strict=True)]))


def close(found, expected):
    # float64, some products in another order
    assert found == pytest.approx(expected, abs=1e-9)


def test_every_way_equals_whole_runs(lm64):
    bias = torch.linspace(-1, 1, 32, dtype=torch.float64)
    scope = Patchscope(lm64, Target("x is a x of", at="x", every=True), lambda h: 2 * h + bias, layers=[0, 2])
    prompt, places = scope.resolved[0]
    vectors = lm64.read(NAMES, 3, -1).tensor[:, 0, 0]
    done = []
    found = likelihoods_with_controls(
        scope, vectors, LABELS, NAMES, seed=1, units=[0, 0, 1, 1], progress=lambda a, b: done.append((a, b))
    )
    assert tuple(found.scores) == (VECTOR, *CONTROLS)
    assert found.cells == ((-1, 0), (-1, 2))
    assert found.units == [0, 0, 1, 1]
    assert len({len(lm64.encoder.answer_ids(prompt, [label])[0]) for label in LABELS}) > 1
    patches = {
        VECTOR: 2 * vectors + bias,
        RANDOM: 2 * random_vectors(vectors, 1) + bias,
        SHUFFLED: 2 * vectors[exchanged_items(None, 4, 1)] + bias,
        MEAN: (2 * vectors.mean(0) + bias).expand(4, -1),
        UNTRAINED: vectors,
        BIAS: bias.expand(4, -1),
    }
    for way, vector in patches.items():
        for c, (_, layer) in enumerate(found.cells):
            for n, label in enumerate(LABELS):
                changes = {layer: put(list(places), vector[n])}
                close(found.scores[way][n, c], by_hand(lm64, prompt.ids, label, changes))
    for n, (name, label) in enumerate(zip(NAMES, LABELS, strict=True)):
        close(found.scores[TEXT][n, 0], by_hand(lm64, lm64.prompt(f"{name} is a {name} of").ids, label))
        close(found.scores[NONE][n, 0], by_hand(lm64, prompt.ids, label))
    assert done[-1] == (7 * 8, 7 * 8)
    assert [a for a, _ in done] == sorted(a for a, _ in done)
    assert len(np.unique(np.round(found.scores[VECTOR], 6))) == 8


def test_states_go_to_the_cells_that_are_asked_for(lm64):
    scope = Patchscope(lm64, Target("The capital of x", at="x"))
    states = lm64.read(NAMES, [1, 4], -1)
    cells, table = label_log_likelihoods(scope, states, LABELS, [(1, 3), (4, 0)])
    assert cells == ((1, 3), (4, 0))
    ids = scope.resolved[0][0].ids
    for c, (source, target) in enumerate(cells):
        for n, label in enumerate(LABELS):
            changes = {target: put(len(ids) - 1, states[source, -1][n])}
            close(table[n, c], by_hand(lm64, ids, label, changes))
    # with one token, that is what `predict` has
    grid = scope.predict(states, [(1, 3), (4, 0)], answers=LABELS)
    for n, label in enumerate(LABELS):
        behind = lm64.encoder.answer_ids(scope.resolved[0][0], [label])[0]
        mine = grid.measures[f"log_prob:{label}"][grid.source // 2 == n] / len(behind)
        # a grid keeps float32
        assert table[n] == pytest.approx(mine, abs=1e-5)


def test_the_targets_own_edits_are_made_in_every_way(lm64):
    edit = Edit(0, [0, 1], torch.linspace(-2, 2, 64, dtype=torch.float64).view(2, 32))
    scope = Patchscope(lm64, Target("a b is x", at="x", edits=(edit,)), layers=2)
    states = lm64.read(NAMES, 3, positions=-1)
    found = likelihoods_with_controls(scope, states, LABELS, controls=[NONE, SHUFFLED])
    ids = scope.resolved[0][0].ids
    own = {0: put([0, 1], edit.vector)}
    for n, label in enumerate(LABELS):
        close(found.scores[NONE][n, 0], by_hand(lm64, ids, label, own))
        close(found.scores[VECTOR][n, 0], by_hand(lm64, ids, label, {**own, 2: put(len(ids) - 1, states[3, -1][n])}))


def test_labels_that_do_not_fit_are_refused(lm64):
    scope = Patchscope(lm64, Target("The capital of x", at="x"), layers=0)
    vectors = torch.randn(2, 32, dtype=torch.float64)
    with pytest.raises(LenscopeError, match="1 labels, 2 items: give one label for each"):
        likelihoods_with_controls(scope, vectors, [" a"])
    with pytest.raises(LenscopeError, match="is no token"):
        likelihoods_with_controls(scope, vectors, [" a", ""])
    with pytest.raises(LenscopeError, match="give the texts"):
        likelihoods_with_controls(scope, vectors, [" a", " b"], controls=[TEXT])
