"""Gradients by relevance rules: the forward to the last bit, the rules of a block written by hand, conservation."""

import pytest
import tiny
import torch
from torch.nn import functional as F

import lenscope as ls
from lenscope.models.relevance_rules import relp_rules

IDS = torch.tensor([[5, 17, 99, 4, 200, 31, 8], [7, 3, 90, 41, 200, 12, 66]])
FAMILIES = ["llama", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "qwen2", "qwen3", "mistral", "phi", "opt", "olmo2"]


def loaded(name, dtype=torch.float64, attention=None, capped=True):
    model = tiny.model(name, dtype=dtype)
    if not capped:
        model.config.final_logit_softcapping = None
    if attention is not None and (attention == "eager" or model._supports_sdpa):
        model.set_attn_implementation(attention)
    return ls.LM(model, None, f"tiny-{name}")


def graph(lm, ids=IDS):
    """The states of all layers, from a first one that gradients end at, and the logits."""
    states = []

    def begin(_, args, kwargs):
        h = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
        states.append(h)
        return ((h, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": h})

    blocks = lm.runner.anatomy.blocks
    hooks = [blocks[0].register_forward_pre_hook(begin, with_kwargs=True)]
    hooks += [
        b.register_forward_hook(lambda _, __, out: states.append(out if torch.is_tensor(out) else out[0]) or None)
        for b in blocks
    ]
    try:
        with torch.enable_grad():
            logits = lm.model(input_ids=ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    return states, logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_forward_is_the_same_to_the_last_bit(name, attention):
    for dtype in (torch.float32, torch.float64):
        lm = loaded(name, dtype, attention)
        with torch.no_grad():
            plain = lm.model(input_ids=IDS, use_cache=False).logits
        (_, *states), own = graph(lm)
        with relp_rules(lm):
            (h, *ruled), logits = graph(lm)
            with torch.no_grad():
                assert lm.model(input_ids=IDS, use_cache=False).logits.equal(plain)
            assert logits.equal(plain)
            assert all(a.equal(b) for a, b in zip(states, ruled, strict=True))
            (new,) = torch.autograd.grad(ruled[-1].sum(), h)
        (h, *states), own = graph(lm)
        (old,) = torch.autograd.grad(states[-1].sum(), h)
        assert own.equal(plain)
        # after the block everything is as it was, and gradients are others than within it
        assert not torch.allclose(new, old, rtol=1e-2)
        assert not [m for m in lm.model.modules() if "forward" in vars(m)]
        assert lm.model.config._attn_implementation == (attention if lm.model._supports_sdpa else "eager")
        assert lm.runner.exclusive.changed() == ""


def norm(x, weight, eps=1e-6):
    """RMSNorm, its denominator a constant."""
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps).detach()


def by_hand(block, h, cos, sin):
    """A block of Llama by the rules, written from their formulas."""
    attention, mlp = block.self_attn, block.mlp
    x = norm(h, block.input_layernorm.weight, block.input_layernorm.variance_epsilon)
    heads, keys, size = 4, 2, attention.head_dim

    def split(linear, n):
        return linear(x).unflatten(-1, (n, size)).transpose(1, 2)

    def turned(t):
        a, b = t.chunk(2, -1)
        return t * cos + torch.cat([-b, a], -1) * sin

    q, k, v = split(attention.q_proj, heads), split(attention.k_proj, keys), split(attention.v_proj, keys)
    k, v = (t.repeat_interleave(heads // keys, 1) for t in (turned(k), v))
    scores = turned(q) @ k.transpose(-1, -2) * attention.scaling
    ahead = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool).triu(1)
    pattern = scores.masked_fill(ahead, -torch.inf).softmax(-1).detach()
    h = h + attention.o_proj((pattern @ v).transpose(1, 2).flatten(2))
    x = norm(h, block.post_attention_layernorm.weight, block.post_attention_layernorm.variance_epsilon)
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    act = gate * torch.sigmoid(gate).detach()  # SiLU: f(g)/g is the sigmoid
    product = 0.5 * act * up.detach() + 0.5 * act.detach() * up
    return h + mlp.down_proj(product)


def test_a_block_of_llama_is_that_of_the_formulas():
    lm = loaded("llama")
    block = lm.runner.anatomy.blocks[1]
    draw = torch.Generator().manual_seed(0)
    with relp_rules(lm):
        states, _ = graph(lm)
        c = torch.randn(states[2].shape, generator=draw, dtype=torch.float64)
        (ruled,) = torch.autograd.grad(states[2], states[1], c)
    h = states[1].detach().requires_grad_()
    cos, sin = lm.model.model.rotary_emb(h, torch.arange(IDS.shape[1])[None])
    out = by_hand(block, h, cos[:, None].double(), sin[:, None].double())
    (expected,) = torch.autograd.grad(out, h, c)
    # transformers' norm, and cosines, are in float32 whatever the model's dtype
    torch.testing.assert_close(out, states[2], rtol=0, atol=1e-5)
    torch.testing.assert_close(ruled, expected, rtol=0, atol=2e-5 * float(expected.std()))
    states, _ = graph(lm)
    (plain,) = torch.autograd.grad(states[2], states[1], c)
    assert ((plain - expected).std() / expected.std()).item() > 0.05


def test_an_mlp_without_a_gate_follows_the_identity_rule_alone():
    lm = loaded("gpt_neox")
    mlp = lm.runner.anatomy.blocks[0].mlp
    x = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with relp_rules(lm):
        (ruled,) = torch.autograd.grad(mlp(x).sum(), x)
    z = mlp.dense_h_to_4h(x)
    (expected,) = torch.autograd.grad(mlp.dense_4h_to_h(z * (F.gelu(z) / z).detach()).sum(), x)
    torch.testing.assert_close(ruled, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "mistral", "olmo2"])
def test_relevance_is_conserved_without_biases(name):
    """Σ h · ∂logit/∂h is the logit, at every layer, up to float32, in which norms are computed."""
    lm = loaded(name, capped=False)
    biased = [n for n, _ in lm.model.named_parameters() if n.endswith("bias")]
    assert not biased
    with relp_rules(lm):
        states, logits = graph(lm)
        for token in (3, 77):
            logit = logits[:, -1, token].sum()
            grads = torch.autograd.grad(logit, states, retain_graph=True)
            relevance = [float((h.detach() * g).sum()) for h, g in zip(states, grads, strict=True)]
            assert relevance == pytest.approx([logit.item()] * len(states), abs=2e-4 * logits.std().item())
    states, logits = graph(lm)
    grads = torch.autograd.grad(logits[:, -1, 3].sum(), states)
    plain = [float((h.detach() * g).sum()) for h, g in zip(states, grads, strict=True)]
    assert max(abs(p - logits[:, -1, 3].sum().item()) for p in plain) > 0.1 * logits.std().item()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_several_cotangents_at_once_are_each_alone(name, attention):
    lm = loaded(name, attention=attention)
    draw = torch.Generator().manual_seed(2)
    with relp_rules(lm):
        states, _ = graph(lm)
        c = torch.randn(5, *states[-1].shape, generator=draw, dtype=torch.float64)
        together = torch.autograd.grad(states[-1], states[:-1], c, is_grads_batched=True, retain_graph=True)
        for row in range(5):
            alone = torch.autograd.grad(states[-1], states[:-1], c[row], retain_graph=True)
            for a, b in zip(alone, together, strict=True):
                torch.testing.assert_close(b[row], a, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("mixtral", "mlp"),
        ("gpt_neo", "attn"),
        ("bloom", "self_attention"),
        ("falcon", "self_attention"),
        ("gemma3n_text", "model.layers.0"),
        ("mamba", "mixer"),
    ],
)
def test_what_has_no_rule_is_named(name, part):
    lm = loaded(name, torch.float32)
    message = rf"tiny-{name}: \S*{part}\S* \(\w+\) does not conserve"
    with pytest.raises(ls.LenscopeError, match=message) as told, relp_rules(lm):
        pass
    assert "\n" not in str(told.value)
    assert not [m for m in lm.model.modules() if "forward" in vars(m)]


def test_blocks_may_be_nested_and_end_when_the_body_raises():
    lm = loaded("llama")
    with relp_rules(lm):
        (h, *states), _ = graph(lm)
        (once,) = torch.autograd.grad(states[-1].sum(), h)
        with relp_rules(lm):
            (h, *states), _ = graph(lm)
            (twice,) = torch.autograd.grad(states[-1].sum(), h)
        (h, *states), _ = graph(lm)
        (after,) = torch.autograd.grad(states[-1].sum(), h)
    assert once.equal(twice)
    assert once.equal(after)
    with pytest.raises(ZeroDivisionError), relp_rules(lm):
        raise ZeroDivisionError
    assert not [m for m in lm.model.modules() if "forward" in vars(m)]
    lm.read([1, 2, 3])


def test_weights_keep_their_biases():
    lm = loaded("gpt2")
    before = dict(lm.model.named_parameters())
    values = {n: p.clone() for n, p in before.items()}
    with relp_rules(lm):
        inside = dict(lm.model.named_parameters())
    assert {n: id(p) for n, p in inside.items()} == {n: id(p) for n, p in before.items()}
    assert all(p.equal(values[n]) for n, p in lm.model.named_parameters())
