"""The laws on tiny random models of every causal-LM architecture that transformers can build small, offline.

tiny.py has the models and says which architectures are left out and why. REFUSED are those that lenscope itself
turns away, each with the reason it must give. Tolerances are relative to the standard deviation of what is compared.
"""

import pytest
import tiny
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import lenscope as ls
from lenscope import measures
from lenscope.anatomy import deviation

EXACT = 1e-4
REFUSED = {
    "blt": "the readout cannot be verified",
    "cpmant": "its positions are not the prompt's",
    "hrm_text": "looped models are not supported",
    "inkling2_text": "the readout cannot be verified",
    "mllama": "do not run on plain text",
    "prophetnet": "its positions are not the prompt's",
    "reformer": "readout does not run alone",
    "xlm": "the readout cannot be verified",
    "xlnet": "not a causal language model",
}
ARCHITECTURES = tiny.architectures()


@pytest.fixture(scope="module", params=[a for a in ARCHITECTURES if a not in REFUSED])
def lm(request):
    return ls.LM(tiny.model(request.param), None, request.param)


def prompts(lm, *lengths):
    return [tiny.ids(lm.model, 1, n, seed=n)[0].tolist() for n in lengths]


def test_every_architecture_is_tested_or_left_out_for_a_reason():
    assert set(ARCHITECTURES) | set(tiny.SKIP) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert not set(ARCHITECTURES) & set(tiny.SKIP)
    assert all(reason.strip() for reason in tiny.SKIP.values())
    assert len(ARCHITECTURES) - len(REFUSED) >= 110


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_cannot_be_read_is_refused_with_its_reason(architecture):
    with pytest.raises(ls.LenscopeError, match=REFUSED[architecture]):
        ls.LM(tiny.model(architecture), None, architecture)


def test_readout_gives_the_models_own_logits(lm):
    """Law 1, on other tokens than those the readout was verified with, and on states no forward pass produced."""
    assert lm.verified.deviation <= EXACT
    assert lm.verified.elsewhere is None or lm.verified.elsewhere <= EXACT
    ids = tiny.ids(lm.model, 2, 9, seed=5)
    with torch.no_grad():
        truth = lm.model(input_ids=ids, use_cache=False).logits
    states = lm.read(ids.tolist())
    assert deviation(lm.unembed(states[lm.n_layers, :]), truth) <= EXACT
    assert truth.std() > 0.5, "logits too small to show a missing scale or cap"


def test_a_state_patched_into_its_own_place_changes_nothing(lm):
    """Law 2, and that a foreign state there does change what follows and nothing before."""
    before = {name: p.clone() for name, p in lm.model.state_dict().items()}
    (ids,) = prompts(lm, 8)
    states = lm.read(ids)
    for layer in (0, lm.n_layers // 2, lm.n_layers):
        with lm.edit(ls.Edit(layer, 4, states[layer, 4])):
            assert deviation(lm.read(ids).tensor, states.tensor) <= EXACT
        with lm.edit(ls.Edit(layer, 4, states[layer, 4].flip(-1))):
            moved = lm.read(ids)
        assert deviation(moved[:, :4], states[:, :4]) <= EXACT
        assert deviation(moved[layer, 4], states[layer, 4].flip(-1)) <= EXACT
        assert deviation(moved[lm.n_layers, 4], states[lm.n_layers, 4]) > 1e-2
    after = lm.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_a_batch_gives_what_each_row_gives_alone(lm):
    """Law 4: reading ragged prompts, padded or in groups."""
    many = prompts(lm, 7, 4, 6)
    together = lm.read(many).split()
    for ids, states in zip(many, together, strict=True):
        assert deviation(states.tensor, lm.read(ids).tensor) <= EXACT


def test_generation_with_cache_equals_recomputation_and_rows_equal_singles(lm):
    """Law 4: greedy tokens from the cache, in a ragged batch, with and without a patch."""
    many = prompts(lm, 7, 4)
    patch = ls.Edit(lm.n_layers // 2, 1, lm.read(many[0])[lm.n_layers // 2, 5])
    for edits in ((), (patch,)):
        with lm.edit(*edits):
            rows = [list(c.ids) for c in lm.generate(many, 5)]
            for ids, row in zip(many, rows, strict=True):
                assert list(lm.generate(ids, 5).ids) == row
                for n in range(len(row)):
                    state = lm.read(ids + row[:n], layers=lm.n_layers, positions=-1)[lm.n_layers, -1]
                    logits = lm.unembed(state)
                    # a tie within rounding may fall either way
                    assert logits.max() - logits[row[n]] <= EXACT * logits.std()


def test_lens_measures_equal_their_definitions(lm):
    (ids,) = prompts(lm, 6)
    t = ls.Lens(lm).trajectory(ids, top_k=3)
    log_q = lm.unembed(lm.read(ids)[:, :]).double().log_softmax(-1)
    log_p = log_q[-1:].expand_as(log_q)
    following = torch.tensor(ids[1:]).expand(lm.n_layers + 1, -1)
    expected = {
        "entropy": measures.entropy(log_q),
        "kl": measures.kl(log_p, log_q),
        "max_probability": measures.max_probability(log_q),
        "cross_entropy": measures.surprisal(log_q[:, :-1], following),
    }
    for name, values in expected.items():
        found = torch.from_numpy(t.measure(name)).double()[:, : values.shape[1]]
        assert torch.allclose(found, values, rtol=1e-4, atol=1e-4), name
    top = log_q.topk(3).values
    assert torch.allclose(torch.from_numpy(t.top_log_probs).double(), top, rtol=1e-4, atol=1e-4)
