"""Patchscopes on a tiny model: grids against edits made by hand, targets, options, files, interruption."""

import numpy as np
import pytest
import torch

import lenscope as ls
from lenscope.engine import chunked_runs as rows
from lenscope.measures import definitions as measures
from lenscope.models.deviations import deviation
from lenscope.models.edits import add, replace

SOURCE, TARGET = "The capital of France is", "one -> one, two -> two, x ->"


@pytest.fixture(scope="module")
def states(lm64):
    return lm64.read(SOURCE, positions=[1, -1])


def by_hand(lm, target, at, layer, vector, op=replace):
    """Logits after the target prompt with one edit, and what is generated."""
    with lm.edit(ls.Edit(layer, at, vector, op)):
        h = lm.read(target, layers=lm.n_layers, positions=-1)[lm.n_layers, -1]
        return lm.unembed(h).log_softmax(-1), lm.generate(target, 5).ids


@pytest.mark.parametrize("at", [-1, "x", 0])
def test_every_cell_of_a_grid_is_the_edit_made_by_hand(lm64, states, at):
    scope = ls.Patchscope(lm64, ls.Target(TARGET, at=at))
    grid, written = scope.predict(states, top_k=3), scope.generate(states, max_new_tokens=5)
    assert len(grid) == len(written) == 2 * 5 * 5
    base = lm64.unembed(lm64.read(TARGET)[lm64.n_layers, -1]).log_softmax(-1)
    for n, cell in enumerate(grid):
        h = states[cell.source.layer, cell.source.position]
        log_p, ids = by_hand(lm64, TARGET, at, cell.layer, h)
        top = log_p.topk(3)
        assert list(cell.ids) == top.indices.tolist()
        assert cell.log_probs == pytest.approx(top.values.tolist(), abs=1e-6)
        assert cell.measures["kl"] == pytest.approx(float(measures.kl(base, log_p)), abs=1e-6)
        assert written[n].ids == ids
    assert grid.cells("kl").shape == (10, 5)


def test_a_lens_is_the_patchscope_into_the_last_layer_of_the_same_place(lm64, states):
    """Law 3."""
    grid = ls.Patchscope(lm64, SOURCE).predict(states, lm64.n_layers, top_k=1)
    lens = ls.Lens(lm64).trajectory(SOURCE, positions=[1, -1])
    assert np.array_equal(grid.ids[:, 0].reshape(2, 5).T, lens.top_ids[..., 0])
    assert np.allclose(grid.log_probs[:, 0].reshape(2, 5).T, lens.top_log_probs[..., 0], atol=1e-6)


def test_surprisal_and_precision_are_the_source_models(lm64, states):
    grid = ls.Patchscope(lm64, TARGET).predict(states, "same")
    for cell in grid:
        own = lm64.unembed(states[lm64.n_layers, cell.source.position]).log_softmax(-1)
        assert cell.measures["surprisal"] == pytest.approx(-float(own[cell.ids[0]]), abs=1e-5)
        assert cell.measures["precision"] == float(own.argmax() == cell.ids[0])


def test_answers_of_one_token_and_of_several(lm64, states):
    answer = "France is"
    ids = lm64.encoder.ids(answer)
    one = lm64.encoder.tokens([ids[0]])[0]
    assert len(ids) > 1
    grid = ls.Patchscope(lm64, TARGET).predict(states, [0, 2], answers=[ids[0], answer])
    plain = lm64.unembed(lm64.read([*lm64.prompt(TARGET).ids, *ids])[lm64.n_layers, :]).log_softmax(-1)
    start = len(lm64.prompt(TARGET)) - 1
    for cell in grid:
        h = states[cell.source.layer, cell.source.position]
        with lm64.edit(ls.Edit(cell.layer, start, h)):
            read = lm64.read([*lm64.prompt(TARGET).ids, *ids])[lm64.n_layers, :]
        log_p = lm64.unembed(read).log_softmax(-1)
        total = sum(float(log_p[start + n, i]) for n, i in enumerate(ids))
        before = sum(float(plain[start + n, i]) for n, i in enumerate(ids))
        assert cell.measures[f"log_prob:{answer}"] == pytest.approx(total, abs=1e-5)
        assert cell.measures[f"pmi:{answer}"] == pytest.approx(total - before, abs=1e-5)
        first = float(log_p[start, ids[0]])
        assert cell.measures[f"log_prob:{ids[0]}"] == pytest.approx(first, abs=1e-5), one


def test_windows_additions_and_several_placeholders(lm64):
    vectors = torch.randn(3, lm64.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    target = ls.Target("x y x y", at="x", every=True)
    slots = target.resolve(lm64)[1]
    assert len(slots) == 2
    grid = ls.Patchscope(lm64, target, op=add, window=2).predict(vectors, [1, 4], top_k=2)
    for cell in grid:
        v = vectors[int(cell.source.label.split()[1])]
        edits = [ls.Edit(n, list(slots), v, add) for n in (cell.layer, cell.layer + 1) if n <= lm64.n_layers]
        with lm64.edit(*edits):
            log_p = lm64.unembed(lm64.read("x y x y")[lm64.n_layers, -1]).log_softmax(-1)
        assert list(cell.ids) == log_p.topk(2).indices.tolist()
    spans = ls.Patchscope(lm64, target).predict(vectors[None, :2], 2, top_k=1)
    with lm64.edit(ls.Edit(2, list(slots), vectors[:2])):
        assert spans[0].ids[0] == int(lm64.unembed(lm64.read("x y x y")[lm64.n_layers, -1]).argmax())
    with pytest.raises(ls.LenscopeError, match="3 placeholders, and this target prompt has 2"):
        ls.Patchscope(lm64, target).predict(vectors[None], 2)


def test_pairs_same_and_several_targets(lm64, states):
    targets = [ls.Target(TARGET), ls.Target("a b", at=0)]
    grid = ls.Patchscope(lm64, targets).predict(states, [(1, 3), (4, 0)])
    assert sorted({(c.source.layer, c.layer) for c in grid}) == [(1, 3), (4, 0)]
    assert len(grid) == 2 * 2 * 2
    for t, target in enumerate(targets):
        alone = ls.Patchscope(lm64, target).predict(states, [(1, 3), (4, 0)])
        assert np.array_equal(grid.ids[grid.target == t], alone.ids)
    vectors = states[:, -1]
    assert ls.Patchscope(lm64, TARGET).predict(vectors, "same").layer.tolist() == [0, 1, 2, 3, 4]


def test_masked_placeholders_are_unseen_below_the_patch(lm64, states):
    """below="none": as a mask given to each block of a plain run, row by row."""
    prompt, (slot,) = ls.Target("one x two three", at="x").resolve(lm64)
    scope = ls.Patchscope(lm64, ls.Target("one x two three", at="x", below="none"))
    grid = scope.predict(states, [0, 2, 4], top_k=3)
    length = len(prompt)
    causal = torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1)
    for cell in grid:
        barred = causal.clone()
        barred[slot + 1 :, slot] = -torch.inf

        def mask(block, args, kwargs, cell=cell, barred=barred):
            at = lm64.runner.anatomy.blocks.index(block)
            return args, {**kwargs, "attention_mask": (barred if at < cell.layer else causal)[None, None]}

        hooks = [b.register_forward_pre_hook(mask, with_kwargs=True) for b in lm64.runner.anatomy.blocks]
        with lm64.edit(ls.Edit(cell.layer, slot, states[cell.source.layer, cell.source.position])):
            h = lm64.read(prompt)[lm64.n_layers, -1]
        for hook in hooks:
            hook.remove()
        expected = lm64.unembed(h).log_softmax(-1).topk(3)
        assert cell.log_probs == pytest.approx(expected.values.tolist(), abs=1e-6)
    plain = ls.Patchscope(lm64, ls.Target("one x two three", at="x")).predict(states, [0, 2, 4], top_k=3)
    assert np.allclose(grid.log_probs[grid.layer == 0], plain.log_probs[plain.layer == 0], atol=1e-6)
    assert not np.allclose(grid.log_probs[grid.layer == 4], plain.log_probs[plain.layer == 4], atol=1e-3)


def test_placeholders_filled_from_the_source_below(lm64, states):
    scope = ls.Patchscope(lm64, ls.Target("one x two three", at="x", below="source"))
    for cell in scope.predict(states, [0, 3], top_k=1):
        h = [states[n, cell.source.position] for n in range(cell.layer)]
        own = states[cell.source.layer, cell.source.position]
        with lm64.edit(*(ls.Edit(n, "x", v) for n, v in enumerate([*h, own]))):
            expected = lm64.unembed(lm64.read("one x two three")[lm64.n_layers, -1]).argmax()
        assert cell.ids[0] == int(expected)


def test_an_interrupted_sweep_keeps_what_is_done(lm64, states, monkeypatch):
    monkeypatch.setattr(rows, "MOST_ROWS", 10)
    scope = ls.Patchscope(lm64, TARGET)
    whole = scope.predict(states)

    def progress(done, total):
        if done >= 30:
            raise KeyboardInterrupt

    def hooks():
        # other users of the model may have left theirs, as transformers does for output_hidden_states
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm64.model.modules()]

    before = hooks()
    with pytest.raises(ls.patchscopes.SweepInterrupted) as stop:
        scope.predict(states, progress=progress)
    assert len(stop.value.grid) == 30
    assert np.array_equal(stop.value.grid.ids, whole.ids[:30])
    assert hooks() == before
    assert lm64.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("suffix", [".parquet", ".json"])
def test_saved_grids_load_equal(lm64, states, tmp_path, suffix):
    scope = ls.Patchscope(lm64, TARGET)
    for grid in (scope.predict(states, answers=["a"]), scope.generate(states, "same", stop="e")):
        grid.save(tmp_path / f"g{suffix}")
        assert ls.load_grid(tmp_path / f"g{suffix}").to_json() == grid.to_json()
    (tmp_path / f"bad{suffix}").write_bytes(b"{}")
    with pytest.raises(ls.LenscopeError, match="is no grid"):
        ls.load_grid(tmp_path / f"bad{suffix}")


def test_the_model_is_as_it_was(lm64, states):
    before = {n: p.clone() for n, p in lm64.model.state_dict().items()}
    own = lm64.read(SOURCE).tensor
    ls.Patchscope(lm64, TARGET).generate(states)
    assert all(torch.equal(before[n], p) for n, p in lm64.model.state_dict().items())
    assert deviation(lm64.read(SOURCE).tensor, own) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm, s: ls.Patchscope(lm, ls.Target("a b", at="x")), "'x': not in the prompt"),
        (lambda lm, s: ls.Patchscope(lm, ls.Target("x x", at="x")), "occurs 2 times"),
        (lambda lm, s: ls.Patchscope(lm, TARGET).predict(s, 5), "layer 5: tiny-llama has layers 0–4"),
        (lambda lm, s: ls.Patchscope(lm, TARGET).predict(s[:, -1][:, :7]), "another model a mapping f"),
        (lambda lm, s: ls.Patchscope(lm, TARGET).predict(s[1:3, -1], "same"), "layers of their own"),
        (lambda lm, s: ls.Patchscope(lm, TARGET).predict(s, "diagonal"), "'same'"),
        (lambda lm, s: ls.Patchscope(lm, TARGET).predict(s, [(9, 1)]), "source layer 9"),
        (lambda lm, s: ls.Patchscope(lm, TARGET).generate(s, max_new_tokens=0), "give at least 1"),
        (lambda lm, s: ls.Patchscope(lm, TARGET).generate(s, max_new_tokens=500), "reads at most"),
        (lambda lm, s: ls.Patchscope(lm, ls.Target(TARGET, below="x")), "target, none, source"),
    ],
)
def test_mistakes_are_one_clear_line(lm64, states, call, message):
    with pytest.raises(ls.LenscopeError, match=message) as error:
        call(lm64, states)
    assert "\n" not in str(error.value)
