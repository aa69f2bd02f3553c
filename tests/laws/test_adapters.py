"""A Patchscope with an adapter is PEFT's own forward with hooks; what is read without the adapter never sees it."""

import threading

import numpy as np
import peft_adapters
import pytest
import tiny
import torch
from plain_hooks import hooks_of, put, run_with_hooks, write_greedily

import lenscope as ls
from lenscope.engine import sweep
from lenscope.models import with_adapter
from lenscope.models.identity import model_hash
from lenscope.patchscopes import generate_with_controls, stream_explanation

SOURCE, TARGET = "The capital of France is", "one -> one, two -> two, x ->"
# (source layer, target layer)
PAIRS = [(2, 1), (3, 3)]
# the largest difference of a logit in float64; these compute a part in float32 whatever they are given
EXACT = {"gemma2": 1e-5, "mamba": 1e-5}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """By family: a model, the folder of an adapter for it, and PEFT's own model with it."""
    made = {}

    def of(family):
        if family not in made:
            lm = ls.LM(tiny.model(family, dtype=torch.float64), tiny.tokenizer(), f"tiny-{family}")
            folder = tmp_path_factory.mktemp("adapters") / family
            peft_adapters.saved(folder, lm.model, peft_adapters.lora(family))
            made[family] = lm, folder, peft_adapters.opened(lm.model, folder).get_base_model()
        return made[family]

    return of


@pytest.mark.parametrize("family", peft_adapters.ATTENTION_AND_MLP)
def test_patched_runs_with_an_adapter_are_pefts_forward_with_hooks(family, adapted):
    lm, folder, oracle = adapted(family)
    ids = list(lm.prompt(TARGET).ids)
    with torch.no_grad():
        before = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits
    states = lm.read(SOURCE, positions=-1)
    scope = ls.Patchscope(lm, ls.Target(TARGET, at="x"), adapter=folder)
    ((_, (slot,)),) = scope.resolved
    n = lm.n_layers
    predicted = scope.predict(states, [(a, b) for a in (0, n // 2, n) for b in (0, 1, n)], top_k=3)
    written = scope.generate(states, "same", max_new_tokens=3)
    _, plain = run_with_hooks(oracle, ids)
    for cell in predicted:
        _, logits = run_with_hooks(oracle, ids, {cell.layer: put(slot, states[cell.source.layer, -1])})
        expected = logits[0, -1].log_softmax(-1)
        top = expected.topk(3)
        assert cell.ids == tuple(top.indices.tolist())
        assert np.allclose(cell.log_probs, top.values, rtol=0, atol=1e-5)
    # the numbers of cells are float32; those that they are made of are not
    rows = scope.plan(states, "same").rows
    for mine, h in sweep.predict(scope.lm, rows):
        for row, logits in zip(mine.tolist(), scope.lm.unembed(h[:, 0]), strict=True):
            _, expected = run_with_hooks(oracle, ids, {row: put(slot, states[row, -1])})
            assert (logits - expected[0, -1]).abs().max() <= EXACT.get(family, 1e-10)
    for cell in written:
        expected = write_greedily(oracle, ids, 3, {cell.layer: put(slot, states[cell.layer, -1])})
        assert list(cell.ids) == expected
    unpatched = scope.lm.unembed(scope._unpatched([scope.resolved[0][0]], 1)[0, 0])
    assert (unpatched - plain[0, -1]).abs().max() <= EXACT.get(family, 1e-10)
    # and the plain model's numbers are what they were, bit for bit
    with torch.no_grad():
        assert torch.equal(lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits, before)
    assert not any(map(any, hooks_of(lm)))
    assert predicted.provenance["adapter"] == str(folder)
    assert predicted.provenance["model_hash"] != model_hash(lm.model)
    assert predicted.provenance["source_model"] == lm.name


def texts(grid):
    return [cell.text for cell in grid]


def test_several_adapters_share_a_model_and_never_mix(adapted, tmp_path):
    lm, folder, _ = adapted("llama")
    second = peft_adapters.saved(tmp_path, lm.model, peft_adapters.lora(r=2), seed=5)
    states = lm.read(SOURCE, positions=-1)
    scopes = {name: ls.Patchscope(lm, TARGET, adapter=name) for name in (None, folder, second)}

    def told(scope):
        return texts(scope.generate(states, PAIRS, max_new_tokens=3))

    # each alone, on a model that nobody else has
    alone = {}
    for name in scopes:
        fresh = ls.LM(tiny.model("llama", dtype=torch.float64), tiny.tokenizer(), lm.name)
        alone[name] = told(ls.Patchscope(fresh, TARGET, adapter=name))
    assert len({tuple(t) for t in alone.values()}) == 3
    for name in (None, folder, second, folder, None, second):
        assert told(scopes[name]) == alone[name]
    # and at once, in threads
    seen = {name: [] for name in scopes}
    threads = [threading.Thread(target=lambda n=name: seen[n].append(told(scopes[n]))) for name in scopes for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one == alone[name] for name, runs in seen.items() for one in runs)


def test_a_source_with_an_adapter_and_a_target_with_another(adapted, tmp_path):
    """As Activation Oracles have it: the adapter of the target is in the place of the source's, not on top of it."""
    lm, folder, _ = adapted("llama")
    second = peft_adapters.saved(tmp_path, lm.model, peft_adapters.lora(r=2), seed=6)
    tuned = with_adapter(lm, folder)
    states = tuned.read(SOURCE, positions=-1)
    scope = ls.Patchscope(tuned, TARGET, adapter=second)
    assert scope.source_lm is tuned
    assert scope.lm is with_adapter(lm, second)
    by_hand = ls.Patchscope(lm, TARGET, source_lm=tuned, adapter=second)
    assert texts(scope.generate(states, PAIRS, max_new_tokens=3)) == texts(
        by_hand.generate(states, PAIRS, max_new_tokens=3)
    )


def test_an_interrupted_run_leaves_nothing_behind(adapted):
    lm, folder, _ = adapted("llama")
    states = lm.read(SOURCE, positions=-1)
    scope = ls.Patchscope(lm, TARGET, adapter=folder)
    whole = texts(scope.generate(states, PAIRS, max_new_tokens=3))
    plain = texts(ls.Patchscope(lm, TARGET).generate(states, PAIRS, max_new_tokens=3))
    identity = model_hash(lm.model), model_hash(scope.lm.model)
    passes = 0

    def stop(*_):
        nonlocal passes
        passes += 1
        if passes == 3:
            raise KeyboardInterrupt

    hook = scope.lm.model.model.layers[2].mlp.register_forward_hook(stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            scope.generate(states, PAIRS, max_new_tokens=3)
    finally:
        hook.remove()
    assert passes == 3
    assert (model_hash(lm.model), model_hash(scope.lm.model)) == identity
    assert not any(map(any, [*hooks_of(lm), *hooks_of(scope.lm)]))
    assert texts(scope.generate(states, PAIRS, max_new_tokens=3)) == whole
    assert texts(ls.Patchscope(lm, TARGET).generate(states, PAIRS, max_new_tokens=3)) == plain


def test_controls_and_streams_have_the_adapter_on(adapted):
    lm, folder, oracle = adapted("llama")
    states = lm.read([SOURCE, "A cat sat on the mat"], positions=-1)
    scope = ls.Patchscope(lm, TARGET, adapter=folder)
    written = scope.generate(states, PAIRS, max_new_tokens=3)
    streamed = stream_explanation(scope, states, PAIRS, max_new_tokens=3)
    for _ in streamed:
        pass
    # controls are written beside them
    assert list(streamed.texts)[: len(written)] == texts(written)
    ids = list(lm.prompt(TARGET).ids)
    plain = lm.encoder.decode(write_greedily(oracle, ids, 3))
    scope = ls.Patchscope(lm, ls.Target(TARGET, at="x"), adapter=folder)
    controlled = generate_with_controls(scope, states, ["France", "cat"], PAIRS, max_new_tokens=3)
    assert set(controlled.texts["no patch"].ravel().tolist()) == {plain}


def test_inside_an_edit_of_the_model_a_scope_with_an_adapter_does_not_run(adapted):
    lm, folder, _ = adapted("llama")
    states = lm.read(SOURCE, positions=-1)
    scope = ls.Patchscope(lm, TARGET, adapter=folder)
    with lm.edit(ls.Edit(1, -1, torch.ones(lm.hidden_size))), pytest.raises(ls.LenscopeError, match="edit"):
        scope.predict(states)
