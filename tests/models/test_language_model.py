"""Reading, editing and generating: addresses, operations, rows, and what is undone afterwards."""

import pytest
import torch

import lenscope as ls

PROMPT = "The capital of France is"


def test_states_are_addressed_by_layer_and_position(lm64):
    states = lm64.read(PROMPT)
    n, t = lm64.n_layers, len(lm64.prompt(PROMPT))
    assert states[0, 0].shape == (32,)
    assert states[:, -1].shape == (n + 1, 32)
    assert states[-1, :].shape == (t, 32)
    assert torch.equal(states[-1, :], states[n, :])
    assert torch.equal(states[[0, 2], "France"], states[:, "France"][[0, 2]])
    assert torch.equal(states[2, [0, -1]], states[2, :][[0, -1]])
    assert states[1:3, :2].shape == (2, 2, 32)
    embedded = lm64.model.get_input_embeddings()(torch.tensor([states.prompts[0].ids]))[0]
    assert torch.equal(states[0, :], embedded)


def test_layers_are_the_block_outputs_before_the_final_norm(lm64):
    states = lm64.read(PROMPT)
    ids = torch.tensor([states.prompts[0].ids])
    with torch.no_grad():
        hf = lm64.model(ids, output_hidden_states=True).hidden_states
    for layer in range(lm64.n_layers):
        assert torch.allclose(states[layer, :], hf[layer][0], atol=1e-12)
    # the library's last entry is after the norm
    assert torch.allclose(lm64.model.model.norm(states[lm64.n_layers, :]), hf[-1][0], atol=1e-12)


def test_a_subset_is_what_the_whole_has_there(lm64):
    whole = lm64.read(PROMPT)
    some = lm64.read(PROMPT, layers=[3, 1], positions=["France", -1])
    assert torch.equal(some[3, -1], whole[3, -1])
    assert torch.equal(some[1, "France"], whole[1, "France"])
    assert some.layers == (3, 1)
    with pytest.raises(ls.LenscopeError, match="layer 2: was not read; these states have layers 3, 1"):
        some[2, -1]
    with pytest.raises(ls.LenscopeError, match="position 0: was not read"):
        some[3, 0]


def test_the_forward_pass_stops_at_the_highest_layer_asked_for(lm64):
    ran = []
    handles = [b.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, b in enumerate(lm64.runner.anatomy.blocks)]
    lm64.read(PROMPT, layers=[0, 2])
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]


def test_ragged_batches_keep_their_own_positions(lm64):
    prompts = [PROMPT, "A much longer prompt than the other one, with a comma.", "x"]
    states = lm64.read(prompts)
    last = states[:, -1]
    assert last.shape == (3, lm64.n_layers + 1, 32)
    for row, prompt in enumerate(prompts):
        assert torch.allclose(last[row], lm64.read(prompt)[:, -1], atol=1e-10)
    with pytest.raises(ls.LenscopeError, match=r"split\(\) reads each alone"):
        states[0, :]
    one = states.split()[1]
    assert not one.batched
    assert len(one[0, :]) == len(lm64.prompt(prompts[1]))
