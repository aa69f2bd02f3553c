"""Jacobians of rows of text are those of finite differences, on every way of running, and whole rows alone count."""

import pytest
import torch
from jacobians_by_hand import InFloat64, alone_by_differences, by_differences
from small_fits import documents, make
from transformers.models.llama import modeling_llama

from lenscope.distributed.processes import Group
from lenscope.errors import LenscopeError
from lenscope.fitting import jacobian_passes
from lenscope.fitting.jacobian_passes import LayerGraphs
from lenscope.fitting.jacobian_run import ALONE, JacobianRun, Targets
from lenscope.fitting.jacobian_sums import JacobianSums
from lenscope.text.corpus import Corpus

FAMILIES = ("llama", "gpt2", "gemma2", "gpt_neox", "mamba", "mixtral", "bloom", "gemma3n_text", "qwen3_next", "rwkv")
IDS = [20, 41, 7, 99, 130, 55, 20, 250, 31, 77, 12, 180]


def run_of(lm, targets="later", last=None, dtype=torch.float64, low=None):
    last = lm.n_layers if last is None else last
    corpus = Corpus.open(lm, documents(), length=32, skip=4)
    sums = JacobianSums(torch.zeros(2, last, lm.hidden_size, lm.hidden_size, dtype=dtype), [0, 0], {})
    graphs = LayerGraphs(lm, range(last), last, low)
    return JacobianRun(lm, corpus.split(0.5), graphs, Targets(targets), sums, (0, 1), Group())


def directions(lm, count=6):
    """Random directions (D, 6): a Jacobian that is right along all of them is right."""
    draw = torch.Generator().manual_seed(2)
    return torch.randn(lm.hidden_size, count, dtype=lm.dtype, generator=draw)


@pytest.mark.parametrize("kind", FAMILIES)
def test_jacobians_are_those_of_finite_differences(kind):
    lm = make(kind, torch.float64)
    counted = torch.arange(len(IDS)) >= 3
    places = counted.clone()
    places[-1] = False
    layers = (0, 2, lm.n_layers - 1)
    with InFloat64():
        ours = run_of(lm).rows_of(IDS, counted)
        v = directions(lm)
        differences = [by_differences(lm, IDS, places, layer, v) for layer in layers]
    for layer, wanted in zip(layers, differences, strict=True):
        assert (ours[layer] @ v - wanted).abs().max() < 1e-6 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])
def test_a_position_that_is_its_only_target(kind):
    lm = make(kind, torch.float64)
    counted = torch.arange(len(IDS)) >= 3
    sources = list(range(3, len(IDS) - 1))
    chosen = sources[len(sources) // (2 * ALONE) :: max(1, len(sources) // ALONE)][:ALONE]
    with InFloat64():
        ours = run_of(lm, "same").rows_of(IDS, counted)
        v = directions(lm)
        wanted = alone_by_differences(lm, IDS, chosen, 1, v)
    assert (ours[1] @ v - wanted).abs().max() < 1e-6 * max(1.0, float(wanted.abs().max()))


def test_the_layer_before_the_last_may_be_aimed_at():
    lm = make("llama", torch.float64)
    counted = torch.arange(len(IDS)) >= 3
    places = counted & (torch.arange(len(IDS)) < len(IDS) - 1)
    with InFloat64():
        ours = run_of(lm, last=3).rows_of(IDS, counted)
        v = directions(lm)
        wanted = by_differences(lm, IDS, places, 1, v, 3)
    assert len(ours) == 3
    assert (ours[1] @ v - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_every_way_of_running_gives_the_same(kind):
    lm = make(kind, torch.float64)
    counted = torch.arange(len(IDS)) >= 3
    given = []
    for stacked in (True, False):
        for cached in (True, False):
            run = run_of(lm)
            run.rows_of(IDS, counted)
            run.graphs.stacked, run.graphs.cached = stacked, cached
            given.append(run.rows_of(IDS, counted))
    for other in given[1:]:
        assert (other - given[0]).abs().max() < 1e-10


def test_cotangents_give_combinations_of_rows():
    lm = make("llama", torch.float64)
    counted = torch.arange(len(IDS)) >= 3
    z = torch.randn(5, lm.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    run = run_of(lm)
    assert torch.allclose(run.rows_of(IDS, counted, z), z @ run.rows_of(IDS, counted), atol=1e-5)


def test_a_row_without_a_source_counts_nothing():
    counted = torch.arange(len(IDS)) == len(IDS) - 1
    assert run_of(make("llama")).rows_of(IDS, counted) is None


def test_weights_ask_for_gradients_again_and_hold_none():
    lm = make("llama")
    before = [p.requires_grad for p in lm.model.parameters()]
    run_of(lm, dtype=torch.float32).rows_of(IDS, torch.arange(len(IDS)) >= 3)
    assert [p.requires_grad for p in lm.model.parameters()] == before
    assert all(p.grad is None for p in lm.model.parameters())


def test_a_model_that_passes_no_gradient_is_refused():
    lm = make("llama", torch.float64)
    block = lm.runner.anatomy.blocks[2]
    block.mlp.register_forward_hook(lambda m, a, out: out.detach())
    with pytest.raises(LenscopeError, match="is not the finite difference"):
        run_of(lm).rows_of(IDS, torch.arange(len(IDS)) >= 3)


@pytest.mark.parametrize("kind", FAMILIES)
def test_products_in_16_bits_give_the_jacobian_up_to_rounding(kind):
    lm = make(kind)
    counted = torch.arange(len(IDS)) >= 3
    own, low = (run_of(lm, dtype=torch.float32, low=low) for low in (None, torch.bfloat16))
    for ours, wanted in zip(low.rows_of(IDS, counted), own.rows_of(IDS, counted), strict=True):
        assert (ours - wanted).norm() < 0.12 * wanted.norm()
    # a tiny recurrent model whose gradients are .17 apart
    assert (low.graphs.low is None) == (kind == "qwen3_next")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_every_way_of_running_is_used_with_products_in_16_bits(kind):
    run = run_of(make(kind), dtype=torch.float32, low=torch.bfloat16)
    run.rows_of(IDS, torch.arange(len(IDS)) >= 3)
    assert (run.graphs.eager, run.graphs.stacked, run.graphs.cached) == (True, True, True)


def test_products_in_16_bits_do_not_hide_that_no_gradient_is_passed():
    lm = make("llama")
    lm.runner.anatomy.blocks[2].mlp.register_forward_hook(lambda m, a, out: out.detach())
    with pytest.raises(LenscopeError, match="is not the finite difference"):
        run_of(lm, dtype=torch.float32, low=torch.bfloat16).rows_of(IDS, torch.arange(len(IDS)) >= 3)


@pytest.mark.parametrize("most", [0.0, float("nan")])
def test_products_in_16_bits_that_are_too_far_from_the_models_own_are_not_used(monkeypatch, most):
    monkeypatch.setattr(jacobian_passes, "LOW_GAP", most)
    run = run_of(make("llama"), dtype=torch.float32, low=torch.bfloat16)
    ours = run.rows_of(IDS, torch.arange(len(IDS)) >= 3)
    assert run.graphs.low is None
    own = run_of(make("llama"), dtype=torch.float32).rows_of(IDS, torch.arange(len(IDS)) >= 3)
    assert (ours - own).norm() < 1e-5 * own.norm()


def test_what_products_are_made_in_stands_in_the_settings(monkeypatch):
    said = []
    for most in (0.1, 0.0):
        monkeypatch.setattr(jacobian_passes, "LOW_GAP", most)
        run = run_of(make("llama"), dtype=torch.float32, low=torch.bfloat16)
        run.read(1, None)
        said.append(run.sums.settings["products"])
    assert said == ["bfloat16", "float32"]


@pytest.mark.parametrize("wrong", [lambda out: (out[0] * 1.01, out[1]), lambda out: int("no"), lambda out: None])
def test_plain_attention_that_is_not_the_models_own_is_not_used(monkeypatch, wrong):
    lm = make("llama")
    inner = modeling_llama.eager_attention_forward
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", lambda *a, **k: wrong(inner(*a, **k)))
    run = run_of(lm, dtype=torch.float32, low=torch.bfloat16)
    ours = run.rows_of(IDS, torch.arange(len(IDS)) >= 3)
    assert not run.graphs.eager
    own = run_of(lm, dtype=torch.float32).rows_of(IDS, torch.arange(len(IDS)) >= 3)
    assert (ours - own).norm() < 0.1 * own.norm()


def test_a_model_in_training_mode_is_refused():
    lm = make("llama")
    lm.model.train()
    with pytest.raises(LenscopeError, match="training mode"):
        run_of(lm)


def test_unknown_targets_are_refused():
    with pytest.raises(LenscopeError, match="targets 'all': give 'later' or 'same'"):
        Targets("all")
