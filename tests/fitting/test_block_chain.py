"""Blocks that are no chain are refused in one line, whatever they pass on, and so is a block without a gradient."""

import pytest
import tiny
import torch
from small_fits import documents
from transformers.models.llama import modeling_llama

from lenscope.errors import LenscopeError
from lenscope.fitting import jacobian_passes
from lenscope.fitting.block_chain import BlockChain
from lenscope.models import load_streamed

IDS = [20, 41, 7, 99, 130, 55, 20, 250]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LENSCOPE_CACHE", str(tmp_path / "cache"))


def streamed(folder, kind, dtype=torch.float32):
    tiny.model(kind, dtype).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return load_streamed(folder)


def chain_of(lm):
    return BlockChain(lm, lm.n_layers, None)


def refused(lm, says):
    with pytest.raises(LenscopeError, match=says) as error:
        chain_of(lm).of_row(IDS, 2)
    assert "\n" not in str(error.value)
    assert "load the model without streaming" in str(error.value)


def test_gradients_through_the_chain_are_those_of_one_graph(tmp_path):
    lm = streamed(tmp_path, "llama")
    chain = chain_of(lm)
    row = chain.of_row(IDS, 2)
    z = torch.randn(3, len(IDS) - 2, lm.hidden_size, generator=torch.Generator().manual_seed(0))
    down = z
    for number in reversed(range(lm.n_layers)):
        down = chain.graph(row, number, 2).gradients(down, chain.stacked)
    states = []
    hooks = [
        lm.runner.hook(0, lambda h: states.append(h.detach().requires_grad_()) or states[0]),
        lm.runner.hook(lm.n_layers, states.append),
    ]
    lm.model(input_ids=torch.tensor([IDS]))
    for hook in hooks:
        hook.remove()
    for k in range(3):
        (whole,) = torch.autograd.grad(states[1][0, 2:], states[0], z[k], retain_graph=True)
        assert torch.allclose(down[k], whole[0, 2:], atol=1e-5)


# keys and values for later blocks, in 16 bits too, where no finite difference would show it
@pytest.mark.parametrize(("kind", "dtype"), [("gemma3n_text", torch.float32), ("gemma4_text", torch.bfloat16)])
def test_keys_that_later_blocks_use_are_refused(kind, dtype, tmp_path):
    refused(streamed(tmp_path, kind, dtype), "what block 1 is given as shared_kv_states.* depends on states of earlier")


def test_what_changes_states_between_blocks_is_refused(tmp_path):
    lm = streamed(tmp_path, "llama")
    lm.runner.anatomy.blocks[2].register_forward_pre_hook(lambda block, args: (args[0] * 2, *args[1:]))
    refused(lm, "between blocks 1 and 2 it does more")


def test_a_block_that_gives_something_else_by_itself_is_refused(tmp_path):
    lm, runs = streamed(tmp_path, "llama"), []
    lm.runner.anatomy.blocks[2].mlp.register_forward_hook(lambda m, a, out: runs.append(1) or out * len(runs))
    refused(lm, "it is run by itself|depends on states")


def test_a_block_that_passes_no_gradient_is_refused(tmp_path):
    lm = streamed(tmp_path, "llama")
    lm.runner.anatomy.blocks[2].mlp.register_forward_hook(lambda m, a, out: out.detach())
    refused(lm, "is not the finite difference")


def test_a_model_in_16_bits_and_documents_of_any_length(tmp_path):
    lm = streamed(tmp_path, "llama", torch.bfloat16)
    chain = chain_of(lm)
    for ids in documents(2):
        row = chain.of_row(ids[:20], 4)
        z = torch.ones(2, 16, lm.hidden_size, dtype=torch.bfloat16)
        assert torch.isfinite(chain.graph(row, 3, 4).gradients(z, chain.stacked)).all()


def test_a_chain_in_16_bits_of_a_model_in_32_gives_nearly_its_gradients(tmp_path):
    lm = streamed(tmp_path, "llama")
    z = torch.randn(3, len(IDS) - 2, lm.hidden_size, generator=torch.Generator().manual_seed(0))
    given = []
    for low in (None, torch.bfloat16):
        chain = BlockChain(lm, lm.n_layers, low)
        row, down = chain.of_row(IDS, 2), z
        for number in reversed(range(lm.n_layers)):
            down = chain.graph(row, number, 2).gradients(down, chain.stacked)
        assert (chain.low, chain.eager, chain.stacked) == (low, low is not None, True)
        given.append(down)
    assert 0 < (given[1] - given[0]).norm() < 0.1 * given[0].norm()


def test_16_bits_do_not_hide_a_block_that_passes_no_gradient(tmp_path):
    lm = streamed(tmp_path, "llama")
    lm.runner.anatomy.blocks[2].mlp.register_forward_hook(lambda m, a, out: out.detach())
    with pytest.raises(LenscopeError, match="is not the finite difference"):
        BlockChain(lm, lm.n_layers, torch.bfloat16).of_row(IDS, 2)


def test_16_bits_that_are_too_far_from_the_models_own_are_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(jacobian_passes, "LOW_GAP", 0.0)
    chain = BlockChain(streamed(tmp_path, "llama"), 4, torch.bfloat16)
    chain.of_row(IDS, 2)
    assert chain.low is None


def test_plain_attention_of_a_chain_that_is_not_the_models_own_is_not_used(tmp_path, monkeypatch):
    inner = modeling_llama.eager_attention_forward
    monkeypatch.setattr(
        modeling_llama, "eager_attention_forward", lambda *a, **k: tuple(1.01 * x for x in inner(*a, **k))
    )
    chain = BlockChain(streamed(tmp_path, "llama"), 4, torch.bfloat16)
    chain.of_row(IDS, 2)
    assert not chain.eager


def test_the_row_that_is_measured_is_run_once(tmp_path, monkeypatch):
    chain, runs = chain_of(streamed(tmp_path, "llama")), []
    inner = chain._run
    monkeypatch.setattr(chain, "_run", lambda ids: runs.append(ids) or inner(ids))
    chain.of_row(IDS, 2)
    assert runs == [IDS]
    chain.of_row(IDS[1:], 2)
    assert runs == [IDS, IDS[1:]]
