"""Ablated blocks give what plain hooks on the transformers model give; nothing of the model is left changed."""

import numpy as np
import pytest
import tiny
import torch
from block_hooks import by_hooks

import lenscope as ls
from lenscope.interventions import block_ablation as ablating
from lenscope.interventions.block_ablation import (
    MeanUpdate,
    RandomDirection,
    Resampling,
    ablate_blocks,
    ablated,
    deletion,
    mean_update,
)
from lenscope.models.identity import model_hash
from lenscope.text.corpus import TokenBatch


def rows_of(lm, lengths, seed=0):
    return [tiny.ids(lm.model, 1, n, seed + i)[0].tolist() for i, n in enumerate(lengths)]


def cycle(update, layer):
    """As resampling does, by hand: a fixed other row."""
    return update.roll(1, 0)


ARCHITECTURES = ["llama", "gpt2", "gpt_neox", "bloom", "falcon", "gptj", "gemma2", "opt"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_block_and_change_equals_plain_hooks(architecture):
    lm = ls.LM(tiny.model(architecture, torch.float64), None, architecture)
    before = model_hash(lm.model)
    ids = rows_of(lm, (9, 9, 9))
    means = MeanUpdate(torch.randn(lm.n_layers, lm.hidden_size, dtype=torch.float64))
    changes = {"deletion": deletion, "cycle": cycle, "mean": means, "random": RandomDirection(3)}
    found = ablate_blocks(lm, ids, changes)
    assert found.provenance["run"] == "resumed"
    assert (found.layers, found.tokens) == (tuple(range(1, lm.n_layers + 1)), 21)
    # position 0 does not count
    clean = by_hooks(lm, ids, 0, None)[:, 1:]
    following = torch.tensor(ids)[:, 2:, None]
    loss = -clean.gather(-1, following)[..., 0]
    assert found.own == pytest.approx(loss.sum(1).numpy(), rel=1e-9)
    for c, change in enumerate(changes.values()):
        for n, layer in enumerate(found.layers):
            lp = by_hooks(lm, ids, layer, change)[:, 1:]
            expected = {
                "loss": -lp.gather(-1, following)[..., 0] - loss,
                "kl": (clean.exp() * (clean - lp)).sum(-1),
                "agreement": (lp.argmax(-1) == clean.argmax(-1)).double(),
            }
            for name, values in expected.items():
                assert found.sums[name][c, n] == pytest.approx(values.sum(1).numpy(), rel=1e-7, abs=1e-8), (name, layer)
    assert model_hash(lm.model) == before
    assert not any("forward" in vars(b) or b._forward_hooks for b in lm.runner.anatomy.blocks)


def test_the_direct_effect_leaves_later_blocks_as_they_were(lm64):
    (ids,) = rows_of(lm64, (8,))
    found = ablate_blocks(lm64, [ids])
    model = lm64.model
    with torch.no_grad():
        h = lm64.read(ids).tensor[0]
        clean = model.lm_head(model.model.norm(h[-1])).log_softmax(-1)[1:-1]
        for n, layer in enumerate(found.layers):
            lp = model.lm_head(model.model.norm(h[-1] - (h[layer] - h[layer - 1]))).log_softmax(-1)[1:-1]
            kl = (clean.exp() * (clean - lp)).sum()
            at = torch.tensor(ids[2:])[:, None]
            assert found.sums["direct_kl"][0, n, 0] == pytest.approx(float(kl), abs=1e-8)
            assert found.sums["direct_loss"][0, n, 0] == pytest.approx(
                float((clean - lp).gather(1, at).sum()), abs=1e-8
            )
            repair = found.sums["repair"][0, n, 0]
            assert repair == pytest.approx(float(kl) - found.sums["kl"][0, n, 0], abs=1e-8)
    # no block comes after the last to make up for it
    assert found.sums["repair"][0, -1, 0] == pytest.approx(0, abs=1e-9)


def test_lenses_read_what_is_above_the_block(lm64):
    ids = rows_of(lm64, (7, 7))
    drift = torch.linspace(-1, 1, lm64.hidden_size, dtype=torch.float64)
    lenses = {"logit": None, "drift": lambda h, layer: h + (layer + 1) * drift}
    found = ablate_blocks(lm64, ids, layers=[2, 4], lenses=lenses, read=[1, 3, 4])
    assert (found.lenses, found.read) == (("logit", "drift"), (1, 3, 4))
    model = lm64.model
    clean = by_hooks(lm64, ids, 0, None)[:, 1:]

    def read(h, lens, layer):
        h = h if lens == 0 else h + (layer + 1) * drift
        return model.lm_head(model.model.norm(h)).log_softmax(-1)[:, 1:-1]

    with torch.no_grad():
        for b, layer in ((None, None), (0, 2), (1, 4)):
            if layer is None:
                states = lm64.read(ids)
            else:
                with ablated(lm64, layer):
                    states = lm64.read(ids)
            for i in range(2):
                for m, at in enumerate(found.read):
                    lp = read(states[at, :], i, at)
                    kl = (clean.exp() * (clean - lp)).sum((1, 2)).numpy()
                    same = (lp.argmax(-1) == clean.argmax(-1)).sum(1).numpy()
                    if layer is None:
                        assert found.clean["kl"][i, m] == pytest.approx(kl, abs=1e-8)
                        assert (found.clean["agreement"][i, m] == same).all()
                    elif at >= layer:
                        assert found.read_sums["kl"][i, 0, b, m] == pytest.approx(kl, abs=1e-8)
                        assert (found.read_sums["agreement"][i, 0, b, m] == same).all()
                    else:
                        assert np.isnan(found.read_sums["kl"][i, 0, b, m]).all()
    less = found.reading("kl", "logit", "deletion", 2, 3)
    assert less.value == pytest.approx((found.read_sums["kl"][0, 0, 0, 1] - found.clean["kl"][0, 1]).sum() / 10)


@pytest.mark.parametrize("architecture", ["gemma3n_text", "gemma4_text", "rwkv", "longcat_flash", "mamba", "xlstm"])
def test_blocks_with_state_of_their_own_give_what_hooks_give(architecture):
    """Whichever way is taken: resumed where that is exact, else hooks."""
    lm = ls.LM(tiny.model(architecture), None, architecture)
    ids = rows_of(lm, (8, 8))
    found = ablate_blocks(lm, ids, layers=[1, 3])
    for n, layer in enumerate((1, 3)):
        with ablated(lm, layer):
            h = lm.read(ids, lm.n_layers)[lm.n_layers, :]
        lp = lm.unembed(h).double().log_softmax(-1)[:, 1:-1]
        clean = lm.unembed(lm.read(ids, lm.n_layers)[lm.n_layers, :]).double().log_softmax(-1)[:, 1:-1]
        kl = (clean.exp() * (clean - lp)).sum((1, 2)).numpy()
        assert found.sums["kl"][0, n] == pytest.approx(kl, rel=1e-3, abs=1e-4)


def test_where_resuming_is_off_hooks_are_taken(lm64, monkeypatch):
    ids = rows_of(lm64, (6, 6))
    resumed = ablate_blocks(lm64, ids, Resampling())
    monkeypatch.setattr(ablating, "_resumes", lambda _: False)
    hooked = ablate_blocks(lm64, ids, Resampling())
    assert (resumed.provenance["run"], hooked.provenance["run"]) == ("resumed", "hooks")
    for name, sums in resumed.sums.items():
        assert sums == pytest.approx(hooked.sums[name], abs=1e-10)


def test_resuming_is_measured(lm64, monkeypatch):
    """A way of resuming that gives other numbers is not taken."""
    whole = ablating.BlockRun.states
    monkeypatch.setattr(lm64.runner.measured, "values", {})
    assert ablating._resumes(lm64)
    monkeypatch.setattr(lm64.runner.measured, "values", {})
    monkeypatch.setattr(
        ablating.BlockRun, "states", lambda run, layer, h, read: whole(run, layer, h * (1 + run.resumes / 100), read)
    )
    assert not ablating._resumes(lm64)


def test_leaving_the_update_alone_changes_nothing_at_all(lm):
    found = ablate_blocks(lm, rows_of(lm, (9, 9)), lambda update, layer: update)
    assert all((found.sums[name] == 0).all() for name in ("loss", "direct_loss"))
    assert (found.column("agreement") == 1).all()


def test_rows_of_equal_length_run_together_and_order_does_not_matter(lm64, monkeypatch):
    ids = rows_of(lm64, (5, 9, 5, 9, 5, 3))
    once = ablate_blocks(lm64, ids, layers=[2])
    monkeypatch.setattr(ablating, "TOKENS_PER_RUN", 80)
    parts = ablate_blocks(lm64, ids[::-1], layers=2)
    assert once.column("kl") == pytest.approx(parts.column("kl"), abs=1e-10)
    # none is alone, as resampling takes from another row
    assert [len(b.ids) for b in ablating._equal_rows(lm64, rows_of(lm64, (5,) * 5))] == [3, 2]


def test_of_a_corpus_counted_positions_count_and_documents_are_units(lm64):
    ids = torch.tensor(rows_of(lm64, (8, 8)))
    counted = torch.ones(2, 8, dtype=torch.bool)
    counted[0, :3] = False
    document = torch.tensor([[4] * 5 + [7] * 3, [7] * 8])
    batch = TokenBatch(torch.arange(2), ids, document, document > 9, counted, None, 2, None)
    found = ablate_blocks(lm64, [batch], layers=[1])
    # row 0: positions 3, 4 of document 4, and 5, 6 of document 7, as all seven of row 1
    assert found.counts.tolist() == [2, 9]
    both = ablate_blocks(lm64, ids.tolist(), layers=[1])
    assert both.counts.tolist() == [6, 6]


def test_resampling_moves_every_row_and_random_directions_keep_norms():
    update = torch.randn(5, 3, 8, dtype=torch.float64)
    moved = Resampling(1)(update, 2)
    matches = [[i for i in range(5) if torch.equal(moved[n], update[i])] for n in range(5)]
    assert sorted(m[0] for m in matches) == list(range(5))
    assert all(m != [n] for n, m in enumerate(matches))
    assert not torch.equal(moved, Resampling(1)(update, 3)) or not torch.equal(moved, Resampling(2)(update, 2))
    drawn = RandomDirection()(update, 1)
    assert drawn.norm(dim=-1) == pytest.approx(update.norm(dim=-1).numpy())
    assert not torch.allclose(drawn, update)


def test_mean_update_is_the_mean_over_predictions(lm64):
    ids = rows_of(lm64, (6, 4))
    means = mean_update(lm64, ids).means
    states = torch.cat([lm64.read(r).tensor[0, :, 1:-1] for r in ids], 1)
    assert means == pytest.approx(states.diff(dim=0).mean(1).numpy(), abs=1e-10)
    assert torch.equal(mean_update(lm64, ids)(torch.zeros(2, 3, lm64.hidden_size), 2)[1, 1], means[1].float())


def test_ablated_is_undone_when_its_body_raises_and_reaches_generation(lm64):
    prompt = rows_of(lm64, (6,))[0]
    before = lm64.generate(prompt, 4).ids
    states = lm64.read(prompt)
    with ablated(lm64, [1, 3]):
        inside = lm64.read(prompt)
        assert torch.equal(inside[1, :], inside[0, :])
        assert torch.equal(inside[3, :], inside[2, :])
        written = lm64.generate(prompt, 4).ids
        # the same greedy tokens as reading anew with the blocks gone
        grown = list(prompt)
        for token in written:
            h = lm64.read(grown, lm64.n_layers, -1)[lm64.n_layers, -1]
            assert int(lm64.unembed(h).argmax()) == token
            grown.append(token)
    with pytest.raises(KeyError), ablated(lm64, 2):
        raise KeyError
    assert torch.equal(lm64.read(prompt).tensor, states.tensor)
    assert lm64.generate(prompt, 4).ids == before
    assert lm64.runner.editing == 0


def test_an_edit_below_is_the_blocks_input(lm64):
    prompt = rows_of(lm64, (5,))[0]
    vector = torch.randn(lm64.hidden_size, dtype=torch.float64)
    for layer in (0, 2):
        with ablated(lm64, layer + 1), lm64.edit(ls.Edit(layer, 1, vector)):
            h = lm64.read(prompt)
        assert torch.equal(h[layer, 1], vector)
        assert torch.equal(h[layer + 1, :], h[layer, :])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm: ablate_blocks(lm, [[5, 6, 7]], layers=[0]), "layer 0: no block makes it; give blocks"),
        (lambda lm: ablate_blocks(lm, [[5, 6, 7]], layers=[9]), "layer 9: tiny-llama has layers"),
        (lambda lm: ablate_blocks(lm, [[5, 6, 7]], layers=[]), "layers: the list is empty"),
        (lambda lm: ablate_blocks(lm, [[5]]), r"rows: \[5\] has no position that counts"),
        (lambda lm: ablate_blocks(lm, [[5, 6, 7], [5, 6]]), r"rows: \[5, 6\] has no position that counts"),
        (lambda lm: mean_update(lm, [[5, 6]]), r"rows: \[5, 6\] has no position that counts"),
        (lambda lm: ablate_blocks(lm, "The cat sat"), "rows: is one string"),
        (lambda lm: ablate_blocks(lm, []), "no prediction counts"),
        (lambda lm: mean_update(lm, []), "no prediction counts"),
        (lambda lm: ablate_blocks(lm, [[5, 6, 7]], {}), "changes: none given"),
        (lambda lm: ablate_blocks(lm, [[5, 6, 7]], Resampling()), "resampling: one row"),
        (lambda lm: ablate_blocks(lm, [[5, 6, 7]], lambda u, _: u[0]), "gave shape .* for an update of shape"),
        (lambda lm: ablate_blocks(lm, [[5, 6, 7]], lambda u, _: None), "gave NoneType"),
        (lambda lm: ablate_blocks(lm, [[5, 6, 7]]).column("x"), "measure 'x': there are loss"),
        (lambda lm: ablate_blocks(lm, [[5, 6, 7]]).estimate("kl", "x", 1), "change 'x': there are deletion"),
        (lambda lm: ablate_blocks(lm, [[5, 6, 7]]).reading("x", "x", "x", 1, 1), "measure 'x': lenses read"),
        (lambda lm: within_edit(lm), "inside edit"),
    ],
)
def test_mistakes_are_one_clear_line(lm64, call, message):
    with pytest.raises(ls.LenscopeError, match=message) as error:
        call(lm64)
    assert "\n" not in str(error.value)
    assert lm64.runner.editing == 0


def within_edit(lm):
    with ablated(lm, 1):
        ablate_blocks(lm, [[5, 6, 7]])


def test_intervals_are_over_units(lm64):
    found = ablate_blocks(lm64, rows_of(lm64, (6,) * 8), {"a": deletion, "b": lambda u, _: u / 2})
    e = found.estimate("kl", "a", 2)
    per_row = found.sums["kl"][0, 1] / 4
    assert e.value == pytest.approx(per_row.mean())
    assert e.low < e.value < e.high
    d = found.estimate("kl", "a", 2, less="b")
    assert d.value == pytest.approx(e.value - found.estimate("kl", "b", 2).value)
