"""Lenses: streamed measures equal their definitions in float64, whatever the pieces, and nothing big is ever made."""

import affine_lens
import numpy as np
import pytest
import tiny
import torch

import lenscope as ls
from lenscope.measures import definitions as measures
from lenscope.models import same_model
from lenscope.models.sublayer_states import read_points

PROMPT = "The capital of France is"


def test_a_list_of_prompts_gives_what_each_gives_alone(lm64):
    lens = ls.Lens(lm64)
    prompts = [PROMPT, "x", "Another one, a little longer."]
    for one, prompt in zip(lens.trajectory(prompts), prompts, strict=True):
        alone = lens.trajectory(prompt)
        assert one.ids == alone.ids
        assert np.array_equal(one.top_ids, alone.top_ids)
        for name in ("entropy", "kl", "max_probability", "cross_entropy"):
            assert np.allclose(one.measure(name), alone.measure(name), atol=1e-6, equal_nan=True)


def test_layers_positions_and_targets_are_chosen(lm64):
    lens = ls.Lens(lm64)
    whole = lens.trajectory(PROMPT, target="a")
    some = lens.trajectory(PROMPT, layers=[3, 1], positions=["France", -1], target="a")
    assert some.layers == (1, 3)
    at = [[1], [3]], [[some.positions[0], some.positions[1]]]
    for name in ("entropy", "kl", "max_probability", "cross_entropy"):
        assert np.allclose(some.measure(name), whole.measure(name)[at], atol=1e-6)
    assert np.array_equal(some.rank, whole.rank[at])
    assert (whole.rank >= 0).all()
    following = lens.trajectory(PROMPT)
    assert np.isnan(following.cross_entropy[:, -1]).all()
    assert (following.rank[:, -1] == -1).all()
    assert (following.rank[:, :-1] >= 0).all()


def test_the_last_layer_of_the_logit_lens_is_the_model_itself(lm64):
    t = ls.Lens(lm64).trajectory(PROMPT)
    assert (t.kl[-1] == 0).all()
    assert (t.prediction_depth <= lm64.n_layers).all()
    with torch.no_grad():
        logits = lm64.model(torch.tensor([t.ids])).logits[0]
    assert np.array_equal(t.top_ids[-1, :, 0], logits.argmax(-1).numpy())
    assert np.allclose(t.max_probability[-1], logits.softmax(-1).amax(-1).numpy(), atol=1e-6)


def test_mistakes_are_said_in_one_line(lm64):
    lens = ls.Lens(lm64)
    for call, message in (
        (lambda: lens.trajectory(PROMPT, layers=[9]), "layer 9: tiny-llama has layers 0–4"),
        (lambda: lens.trajectory(PROMPT, layers=[]), "layers: the list is empty"),
        (lambda: lens.trajectory(PROMPT, positions=99), "position 99"),
        (lambda: lens.trajectory(PROMPT, target="qzx"), "tokens"),
        (lambda: lens.trajectory(PROMPT, top_k=0), "top_k 0"),
        (lambda: lens.trajectory([]), "the prompt is empty"),
        (lambda: lens.compare(PROMPT, "x", positions=slice(0, 2)), "name as many"),
        (lambda: ls.Lens(lm64, lambda h, n: h[..., :3]).trajectory(PROMPT), "f gives states of size 3"),
        (lambda: lens.logits(torch.zeros(31), 0), "states of size 31"),
        (lambda: lens.logits(lm64.read(PROMPT), 0), "HiddenStates is no vector; give a tensor or an array"),
    ):
        with pytest.raises(ls.LenscopeError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_vectors_are_tensors_or_arrays(lm64):
    h = lm64.read(PROMPT)[2, :]
    for given in (h.numpy(), h.tolist()):
        assert torch.equal(ls.Lens(lm64).logits(given, 2), ls.Lens(lm64).logits(h, 2))
        assert torch.equal(lm64.unembed(given), lm64.unembed(h))


# -- fitted lenses


def fitted(lm, layers=None, seed=0):
    """A random affine lens of a model, kept to `layers` (default: every one but the last)."""
    draw = torch.Generator().manual_seed(seed)
    size, last, model = lm.hidden_size, lm.n_layers, same_model.model_identity(lm)
    weights = {
        (n, last): (torch.eye(size) + torch.randn(size, size, generator=draw) / 20, torch.randn(size, generator=draw))
        for n in (range(last) if layers is None else layers)
    }
    return ls.Affine(weights, model, model)


def by_hand(lm, lens, ids):
    """Log-probabilities (L, T, V) from plain transformers: head(norm(A h + b)), at the last layer the model's own."""
    with torch.no_grad():
        out = lm.model(torch.tensor([ids]), output_hidden_states=True)
        found = []
        for n, h in enumerate(out.hidden_states[:-1]):
            a, b = (w.double() for w in lens.weights[n, lm.n_layers])
            found.append(lm.model.lm_head(lm.model.model.norm(torch.einsum("ij,tj->ti", a, h[0]) + b)))
        return torch.stack([*found, out.logits[0]]).log_softmax(-1)


def test_a_fitted_mapping_is_a_lens(lm64):
    lens = fitted(lm64)
    ids = tiny.ids(lm64.model, 1, 9)[0].tolist()
    log_q = by_hand(lm64, lens, ids)
    t = ls.Lens(lm64, lens, name="tuned").trajectory(ids, top_k=4)
    assert t.layers == tuple(range(lm64.n_layers + 1))
    assert t.lens == "tuned"
    assert np.allclose(t.kl, measures.kl(log_q[-1:].expand_as(log_q), log_q), atol=1e-5, rtol=1e-6)
    assert np.array_equal(t.top_ids, log_q.topk(4).indices.numpy())
    assert np.allclose(t.entropy, measures.entropy(log_q), atol=1e-5)
    assert np.abs(t.kl[-1]).max() < 1e-12
    states = lm64.read(ids)
    for n in range(lm64.n_layers + 1):
        got = ls.Lens(lm64, lens).logits(states[n, :], n).log_softmax(-1)
        torch.testing.assert_close(got, log_q[n], atol=1e-9, rtol=0)
    # as it works in a Patchscope on the same prompt, position and last layer
    scope = ls.Patchscope(lm64, ls.Target(ids), lens)
    grid = scope.predict(lm64.read(ids, positions=-1), lm64.n_layers, top_k=4)
    assert np.array_equal(grid.ids, t.top_ids[:, -1])
    assert np.allclose(grid.log_probs, t.top_log_probs[:, -1], atol=1e-5)


def test_a_function_is_called_with_as_many_arguments_as_it_takes(lm64):
    ids = tiny.ids(lm64.model, 1, 5)[0].tolist()
    expected = ls.Lens(lm64, lambda h, layer: h + layer).trajectory(ids)
    for f in (lambda h, layer, target: h + target - (lm64.n_layers - layer), lambda *args: args[0] + args[1]):
        assert np.allclose(ls.Lens(lm64, f).trajectory(ids).kl, expected.kl, atol=1e-9)
    assert np.allclose(
        ls.Lens(lm64, torch.tanh).trajectory(ids).kl, ls.Lens(lm64, lambda h: h.tanh()).trajectory(ids).kl
    )
    with pytest.raises(ls.LenscopeError, match=r"give f\(h\)"):
        ls.Lens(lm64, lambda a, b, c, d: a)


def test_a_lens_reads_the_layers_it_has_weights_for(lm64):
    some = ls.Lens(lm64, fitted(lm64, [1, 3]))
    assert some.trajectory(PROMPT).layers == (1, 3, 4)
    with pytest.raises(ls.LenscopeError, match=r"pair \(2, 4\): this mapping was fitted for the pairs"):
        some.trajectory(PROMPT, layers=[1, 2])
    assert ls.Lens(lm64).compare(PROMPT, PROMPT, lens=some).layers == (1, 3, 4)
    model = same_model.model_identity(lm64)
    with pytest.raises(ls.LenscopeError, match="maps no layer to layer 4, the last of tiny-llama"):
        ls.Lens(lm64, ls.Affine({(0, 2): (torch.eye(32),)}, model, model))
    everywhere = ls.Lens(lm64, ls.mappings.Scale({None: (1.0,)}, model, model)).trajectory(PROMPT)
    assert np.allclose(everywhere.kl, ls.Lens(lm64).trajectory(PROMPT).kl, atol=1e-6)


def test_a_lens_of_another_model_is_refused_when_it_is_made(lm64):
    stranger = ls.LM(tiny.model("llama", dtype=torch.float64, seed=5), tiny.tokenizer(), "tiny-llama")
    lens = fitted(stranger)
    with pytest.raises(ls.LenscopeError, match=r"fitted from tiny-llama .* but used from tiny-llama"):
        ls.Lens(lm64, lens)
    ls.Lens(lm64, lens.transferred(lm64)).trajectory(PROMPT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_lens_of_a_float32_model_reads_it_in_16_bits(lm, dtype):
    lens = fitted(lm)
    half = ls.LM(tiny.model("llama", dtype=dtype), tiny.tokenizer(), "tiny-llama")
    states = half.read(PROMPT)
    for layer in (1, 4):
        h = states[layer, :]
        # computed in float32, handed to the readout in the model's own dtype
        a, b = lens.weights.get((layer, 4), (torch.eye(32), torch.zeros(32)))
        with torch.no_grad():
            own = half.model.lm_head(half.model.model.norm((h.float() @ a.T + b).to(dtype)))
        assert ls.Lens(half, lens).logits(h, layer).equal(own.float())
        t = ls.Lens(half, lens).trajectory(PROMPT, layers=[layer])
        assert np.allclose(t.max_probability[0], own.float().softmax(-1).amax(-1), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_what_is_not_finite_is_an_error_and_no_score(dtype):
    lm = ls.LM(tiny.model("llama", dtype), None, "tiny")
    with pytest.raises(ls.LenscopeError, match="NaN or infin"):
        ls.Lens(lm, lambda h, layer: h * float("inf")).trajectory([20, 21, 22])
    with (
        pytest.raises(ls.LenscopeError, match="NaN or infinity; give finite"),
        lm.edit(ls.Edit(1, 1, torch.full((32,), torch.nan))),
    ):
        lm.read([20, 21, 22])
    loud = 1e30 if dtype == torch.float32 else 1e3
    lm.model.model.layers[1].mlp.down_proj.weight.data.mul_(loud).mul_(loud)
    with pytest.raises(ls.LenscopeError, match="NaN or infinite there"):
        ls.Lens(lm).trajectory([20, 21, 22])
    with pytest.raises(ls.LenscopeError, match="NaN or infinite there"):
        lm.generate([20, 21, 22], 3)


# -- within blocks


@pytest.mark.parametrize("architecture", ["llama", "gptj"])
def test_points_within_blocks_are_decoded_as_they_are(architecture):
    lm = ls.LM(tiny.model(architecture, torch.float64), tiny.tokenizer(), architecture)
    lens, layers = ls.Lens(lm), range(1, lm.n_layers + 1)
    for point in ("attention", "mlp"):
        t = lens.trajectory("The cat sat", points=point, top_k=2)
        assert (t.points, t.layers) == (point, tuple(layers))
        log_q = lm.unembed(read_points(lm, "The cat sat", point, layers)[:, :]).log_softmax(-1)
        assert np.allclose(t.top_log_probs, log_q.topk(2).values, atol=1e-5)
        final = lm.unembed(lm.read("The cat sat")[lm.n_layers, :]).log_softmax(-1)
        assert np.allclose(t.kl, (final.exp() * (final - log_q)).sum(-1), atol=1e-5)
        assert t.final == tuple(final.argmax(-1).tolist())
        ranks = lens.ranks("The cat sat", [17], points=point)
        chosen = lens.trajectory("The cat sat", points=point, target=17)
        assert np.array_equal(ranks.rank[0], chosen.rank)
        assert ranks.lens == chosen.read_by
    block = lens.trajectory("The cat sat", layers, top_k=2)
    same = np.allclose(block.top_log_probs, lens.trajectory("The cat sat", points="mlp", top_k=2).top_log_probs)
    assert same == (architecture == "llama"), "after the MLP a sequential block is at its end"


def test_two_prompts_are_compared_within_blocks(lm):
    both = ls.Lens(lm).compare("The cat", "The mat", points="attention")
    assert both.layers == (1, 2, 3, 4)
    assert both.first.points == both.second.points == "attention"
    assert "after attention of each block" in str(both.table(width=200).caption)
    assert ls.Comparison.from_json(both.to_json()) == both


def test_points_that_cannot_be_read_are_refused(lm):
    lens = ls.Lens(lm)
    with pytest.raises(ls.LenscopeError, match="points 'middle': give block, attention or mlp"):
        lens.trajectory("The cat", points="middle")
    with pytest.raises(ls.LenscopeError, match="layer 0: is made by no block"):
        lens.trajectory("The cat", [0, 1], points="attention")
    tuned = ls.Lens(lm, affine_lens.affine(lm))
    with pytest.raises(ls.LenscopeError, match="no map for those within"):
        tuned.trajectory("The cat", points="attention")
