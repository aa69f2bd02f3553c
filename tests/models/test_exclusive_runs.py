"""A model that was changed after loading, and several threads or tasks that use one model."""

import asyncio
import copy
import threading

import pytest
import tiny
import torch

import lenscope as ls
from lenscope.models.deviations import deviation

IDS = [20, 30, 40, 50]


def fresh(dtype=torch.float32):
    return ls.LM(tiny.model("llama", dtype), tiny.tokenizer(), "tiny")


def assert_current(lm):
    """States and logits are those of the model as it is now."""
    with torch.no_grad():
        out = lm.model(input_ids=torch.tensor([IDS]), output_hidden_states=True, use_cache=False)
    states = lm.read(IDS)
    for layer in range(lm.n_layers):
        assert deviation(states[layer, :], out.hidden_states[layer][0]) <= 1e-5
    assert deviation(lm.unembed(states[lm.n_layers, :]), out.logits[0]) <= 1e-5
    assert float(states.tensor.norm(dim=-1).min()) > 0


def numbers(result):
    """A result without the time when it was made."""
    return {k: v for k, v in result.to_json().items() if k not in ("provenance", "sha256")}


def replace_block(model):
    model.model.layers[1] = copy.deepcopy(model.model.layers[3])


def replace_head(model):
    model.lm_head = torch.nn.Linear(32, tiny.VOCAB, bias=False).eval()


def replace_norm(model):
    model.model.norm = copy.deepcopy(model.model.norm)
    model.model.norm.weight.data.mul_(3)


def change_in_place(model):
    model.model.layers[2].mlp.up_proj.weight.data.mul_(1.5)


@pytest.mark.parametrize("change", [replace_block, replace_head, replace_norm, change_in_place])
def test_what_is_read_is_the_model_as_it_is_now(change):
    lm = fresh()
    lens, before = ls.Lens(lm), ls.Lens(lm).trajectory(IDS)
    change(lm.model)
    assert_current(lm)
    assert numbers(lens.trajectory(IDS)) != numbers(before)
    grid = ls.Patchscope(lm, IDS).predict(lm.read(IDS)[1, -1], [lm.n_layers])
    expected = lm.unembed(lm.read(IDS)[1, -1]).log_softmax(-1).max()
    assert float(grid.log_probs[0, 0]) == pytest.approx(float(expected), abs=1e-4)


def test_a_setting_that_was_changed_counts():
    lm = ls.LM(tiny.model("gemma2"), None, "tiny")
    lm.model.config.final_logit_softcapping = 1.0
    with torch.no_grad():
        truth = lm.model(input_ids=torch.tensor([IDS]), use_cache=False).logits[0]
    assert deviation(lm.unembed(lm.read(IDS)[lm.n_layers, :]), truth) <= 1e-4


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.to(torch.float64), "dtype changed from .* load it again"),
        (lambda m: m.resize_token_embeddings(400), "sizes, dtype or device are others; load it again"),
        (lambda m: m.compile(), "compilation changed"),
        (lambda m: m.model.layers[2].compile(), "compilation changed"),
        (lambda m: m.model.layers.append(copy.deepcopy(m.model.layers[0])), "number of blocks changed from 4 to 5"),
        (lambda m: m.train(), "training mode"),
    ],
)
def test_what_no_longer_is_the_model_that_was_loaded_is_refused(change, match):
    lm = fresh()
    change(lm.model)
    for use in (lambda: lm.read(IDS), lambda: ls.Lens(lm).trajectory(IDS), lambda: lm.generate(IDS, 2)):
        with pytest.raises(ls.LenscopeError, match=match):
            use()


def test_a_change_inside_an_edit_is_refused():
    lm = fresh()
    with lm.edit(ls.Edit(1, 1, torch.ones(32))):
        replace_block(lm.model)
        with pytest.raises(ls.LenscopeError, match="block 1 was replaced since it was loaded; load it again"):
            lm.read(IDS)


def test_a_layer_that_does_not_run_is_an_error():
    lm = fresh()

    class Skipping(type(lm.model.model)):
        def forward(self, *args, **kwargs):
            kept, self.layers = self.layers, torch.nn.ModuleList(list(self.layers)[:2])
            try:
                return super().forward(*args, **kwargs)
            finally:
                self.layers = kept

    lm.model.model.__class__ = Skipping
    with pytest.raises(ls.LenscopeError, match="layer 3: did not run"):
        lm.read(IDS)


def in_a_thread(call):
    results = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join(600)
    return results[0]


def test_an_edit_acts_in_its_own_thread_only():
    lm = fresh()
    plain, written = lm.read(IDS).tensor, lm.generate(IDS, 4).ids
    with lm.edit(ls.Edit(2, 1, 3 * torch.ones(32))):
        assert lm.runner.editing
        edited = lm.read(IDS).tensor
        assert not torch.equal(edited, plain)
        # the other thread does not wait for the block, and does not see it
        assert torch.equal(in_a_thread(lambda: lm.read(IDS).tensor), plain)
        assert in_a_thread(lambda: lm.generate(IDS, 4).ids) == written
        assert in_a_thread(lambda: lm.runner.editing) is False
        grid = in_a_thread(lambda: ls.Patchscope(lm, IDS).predict(plain[0, 1], [1, 2]))
        assert torch.equal(lm.read(IDS).tensor, edited)
        with pytest.raises(ls.LenscopeError, match="a bare call has no positions"):
            lm.model(input_ids=torch.tensor([IDS]))
        in_a_thread(lambda: lm.model(input_ids=torch.tensor([IDS])))
    assert numbers(grid) == numbers(ls.Patchscope(lm, IDS).predict(plain[0, 1], [1, 2]))
    assert torch.equal(lm.read(IDS).tensor, plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_an_edit_acts_in_its_own_task_only():
    lm = fresh()
    plain = lm.read(IDS).tensor

    async def edits(entered, left):
        with lm.edit(ls.Edit(2, 1, 3 * torch.ones(32))):
            entered.set()
            await left.wait()
            return lm.read(IDS).tensor

    async def both():
        entered, left = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(edits(entered, left))
        await entered.wait()
        other = lm.read(IDS).tensor
        left.set()
        return await task, other

    edited, other = asyncio.run(both())
    assert torch.equal(other, plain)
    assert not torch.equal(edited, plain)


def test_models_around_one_module_share_its_lock():
    lm = fresh()
    other = ls.LM(lm.model, None, "other")
    assert other.lock is lm.lock
    assert fresh().lock is not lm.lock
    with lm.lock:
        thread = threading.Thread(target=lambda: other.read(IDS))
        thread.start()
        thread.join(0.5)
        assert thread.is_alive(), "a run did not wait for the lock"
    thread.join(600)
    assert not thread.is_alive()


def test_two_models_sweep_side_by_side():
    """What attention needs to know of a running layer is a thread's own."""
    pair = [fresh(), ls.LM(tiny.model("qwen3"), tiny.tokenizer(), "other")]
    grids = [ls.Patchscope(lm, IDS) for lm in pair]
    sources = [lm.read(IDS)[:, -1] for lm in pair]
    expected = [grid.generate(s, max_new_tokens=4) for grid, s in zip(grids, sources, strict=True)]
    found = [[], []]

    def sweep(n):
        found[n] = [grids[n].generate(sources[n], max_new_tokens=4) for _ in range(5)]

    threads = [threading.Thread(target=sweep, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    for some, own in zip(found, expected, strict=True):
        assert [numbers(grid) for grid in some] == [numbers(own)] * 5


def test_vectors_are_tensors_or_arrays():
    lm = fresh()
    vector = lm.read(IDS)[2, 1] * 2
    with lm.edit(ls.Edit(2, 1, vector)):
        expected = lm.read(IDS).tensor
    for given in (vector.numpy(), vector.tolist(), vector.double()):
        with lm.edit(ls.Edit(2, 1, given)):
            assert torch.allclose(lm.read(IDS).tensor, expected, atol=1e-5)
        assert len(ls.Patchscope(lm, IDS).predict(given, [1])) == 1
    for bad in ("text", [True] * 32, 5.0, None, [1j] * 32):
        with pytest.raises(ls.LenscopeError, match="is no vector"):
            ls.Edit(2, 1, bad)
        with pytest.raises(ls.LenscopeError, match="is no vector"):
            ls.Patchscope(lm, IDS).predict(bad, [1])
