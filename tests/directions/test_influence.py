"""Ablations in the model equal plain hooks on the transformers model."""

import numpy as np
import pytest
import torch
from directions_by_hand import ablate, behind, hooked, kl, lm_of, rows_of

import lenscope as ls
from lenscope.directions.causal_basis import random_basis
from lenscope.directions.influence import influence
from lenscope.engine import run_above_layer as resume
from lenscope.text import row_states


@pytest.mark.parametrize(("kind", "layer"), [("llama", 0), ("llama", 2), ("gpt2", 3), ("bloom", 1), ("bloom", 4)])
def test_influence_on_the_model_is_that_of_a_plain_hook(kind, layer):
    lm = lm_of(kind)
    rows = [*rows_of(lm, 3), *rows_of(lm, 2, 5)]
    basis = random_basis(lm, rows, None, [layer], k=3)
    found = influence(lm, rows, basis)
    mean = basis.mean[0].double()
    expected = np.zeros((len(rows), 3))
    for n, row in enumerate(rows):
        clean = hooked(lm, kind, row, layer, lambda h: h)
        for d, v in enumerate(basis[layer].double()):
            changed = hooked(lm, kind, row, layer, lambda h, v=v: behind(h, ablate(h[:, 1:], v, mean)))
            expected[n, d] = float(kl(clean, changed)[1:].sum())
    np.testing.assert_allclose(found.by_unit[1, :, 0], expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(found.counts, [len(r) - 1 for r in rows])
    if layer == lm.n_layers:
        np.testing.assert_allclose(found.lens, found.model, rtol=1e-9)


def test_blocks_below_are_left_out_only_where_that_gives_the_same():
    ids = [list(range(20, 29)), list(range(40, 49))]
    for kind, layer, short in (("llama", 2, True), ("gemma3n_text", 3, False)):
        lm = lm_of(kind)
        (run,) = row_states.row_states(lm, ids, [layer])
        above = resume.RunAbove(lm.runner, run.prompts, layer, run.states[0], run.states[-1])
        assert above.short == short
        torch.testing.assert_close(above(run.states[:1])[0], run.states[-1], rtol=1e-9, atol=1e-9)
        assert not any("forward" in vars(b) for b in lm.runner.anatomy.blocks)


def test_the_lower_blocks_do_not_run(monkeypatch):
    lm = lm_of("llama")
    (run,) = row_states.row_states(lm, rows_of(lm, 2), [3])
    above = resume.RunAbove(lm.runner, run.prompts, 3, run.states[0], run.states[-1])
    ran = []
    hooks = [
        b.self_attn.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, b in enumerate(lm.model.model.layers)
    ]
    above(run.states[:1])
    for hook in hooks:
        hook.remove()
    assert ran == [3]


def test_only_positions_that_count_are_ablated(tmp_path):
    lm = lm_of("llama")
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and " * 40)
    (batch,) = ls.Corpus.open(lm, path, length=12, skip=4).batches(12, 1)
    basis = random_basis(lm, [batch], None, [1], k=1)
    found = influence(lm, [batch], basis)
    counted, v, mean = batch.counted[0], basis[1][0].double(), basis.mean[0].double()
    row = batch.ids[0].tolist()
    changed = hooked(lm, "llama", row, 1, lambda h: torch.where(counted[:, None], ablate(h, v, mean), h))
    expected = kl(hooked(lm, "llama", row, 1, lambda h: h), changed)[counted]
    assert len(expected) < 12
    assert found.model[0, 0] == pytest.approx(float(expected.mean()), rel=1e-7)
