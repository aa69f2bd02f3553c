"""Gradients that follow the rules of relevance propagation (LRP, as RelP): the forward values stay as they are.

Knows: the four rules, how a model's modules and its attention are made to follow them for as long as a block lasts, how
it is checked that nothing else in a block bends gradients. Does not know: what gradients are used for.

RelP (Jafari et al. 2025, arXiv 2508.21258; rules of Ali et al. 2022 and Arras et al. 2019). In the backward pass
norms divide by constants (LN rule), attention patterns are constants (AH rule), an activation f(x) is x times the
constant f(x)/x (identity rule), a product of two branches gives each half of its gradient (half rule). So every block,
biases aside, is a linear map of its input with frozen coefficients: relevance, state times gradient, is conserved. The
"R-lens" of TransformerLens (2026) has the same rules but that of attention, whose gradient it leaves as it is.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lenscope.errors import LenscopeError
from lenscope.models.attention_implementations import attention_by
from lenscope.models.language_model import LM
from lenscope.models.relevance_parts import ActivationPart, NormPart, activation_part, norm_part, watched
from lenscope.models.residual_stream import (
    forward_kwargs,
    input_state,
    output_state,
    with_input_state,
)

NAME = "lenscope_relp_"
# how much of a block's relevance may be lost, in standard deviations, beside rounding
_LOST = {torch.float64: 1e-4, torch.float32: 1e-3}
# random directions that relevance is followed along
_DIRECTIONS = 8
_ruled: WeakSet[nn.Module] = WeakSet()


@contextmanager
def relp_rules(lm: LM) -> Iterator[None]:
    """Within the block, gradients through the model follow the rules of RelP; what it computes stays the same.

    The rules are those of Jafari et al. 2025 (arXiv 2508.21258): denominators of norms and attention patterns are
    constants, an activation's gradient is f(x)/x, each side of a gated product gets half. They reach all blocks and the
    last norm; a soft cap of the logits keeps its own gradient. Forward values are the same to the last bit.
    `torch.autograd.grad(…, is_grads_batched=True)` works. No other thread runs the model meanwhile.

    Modules are found by what they compute. Then relevance is followed through each block, without biases: where it is
    not conserved, something in it has no rule. Raises LenscopeError, which names the module, for such a block, and for
    weights that are not in memory.

    Args:
        lm: the model, whose gradients are taken by whoever runs `lm.model` in the block.
    """
    model = lm.model
    if lm.runner.stream is not None or any(p.is_meta for p in model.parameters()):
        raise LenscopeError(f"{lm.name}: its weights are not in memory, where gradients need them; load it whole")
    with lm.runner.exclusive.alone(), ExitStack() as undo:
        if model in _ruled:  # twice is once
            yield
            return
        for module, forward in _ruled_forwards(lm):
            _replace_forward(module, forward, undo)
        undo.enter_context(_constant_patterns(model))
        _ruled.add(model)
        undo.callback(_ruled.discard, model)
        _require_conserved(lm)
        yield


def _replace_forward(module: nn.Module, forward: Callable[..., Any], undo: ExitStack) -> None:
    before = vars(module).get("forward")

    def restore() -> None:
        if before is None:
            vars(module).pop("forward", None)
        else:
            module.forward = before

    undo.callback(restore)
    module.forward = forward


def _ruled_forwards(lm: LM) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
    """Which modules get another forward, one after the other, each from the forward that it has then."""
    parts = _ruled_parts(lm)
    for part in parts:
        if isinstance(part, NormPart):
            yield part.module, _norm_forward(part, part.module.forward)
    for part in parts:
        if isinstance(part, ActivationPart):
            yield part.module, _activation_forward(part, part.module.forward)
            if part.product is not None:
                yield part.product, _halved_forward(part.product.forward)


def _ruled_parts(lm: LM) -> list[NormPart | ActivationPart]:
    """The norms and activations of the blocks and behind them, told by a run on a few tokens."""
    anatomy = lm.runner.anatomy
    inside = [m for block in anatomy.blocks for m in block.modules()]
    inside += [m for _, outer in anatomy.tail for m in outer.modules()]
    fired = watched(lm.model, dict.fromkeys(inside), anatomy.ids, **forward_kwargs(lm.model, use_cache=False))
    by_module = {id(one.module): one for one in fired}
    parents = {id(child): module for module in inside for child in module.children()}
    leaves = [one for one in fired if not any(True for _ in one.module.children())]
    parts: dict[int, NormPart | ActivationPart] = {}
    for one in leaves:
        if id(one.module) in parts:
            continue
        part: NormPart | ActivationPart | None = norm_part(one)
        if part is None:
            parent = parents.get(id(one.module))
            around = {id(m) for m in parent.modules()} if parent is not None else set()
            part = activation_part(one, leaves, by_module.get(id(parent)), around)
        if part is not None:
            parts[id(one.module)] = part
    return list(parts.values())


def _with_gradient_of(value: Tensor, line: Tensor) -> Tensor:
    """`value`, to the last bit, with the gradient of `line`."""
    return value.detach() + (line - line.detach()).to(value.dtype)


def _norm_forward(part: NormPart, forward: Callable[..., Any]) -> Callable[..., Any]:
    """LN rule: the row's r is a constant."""

    def ruled(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return forward(x, *args, **kwargs)
        with torch.no_grad():
            y = forward(x, *args, **kwargs)
        return _with_gradient_of(y, part.linear(x, y))

    return ruled


def _activation_forward(part: ActivationPart, forward: Callable[..., Any]) -> Callable[..., Any]:
    """Identity rule: f(x)/x is a constant."""

    def ruled(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return forward(x, *args, **kwargs)
        with torch.no_grad():
            y = forward(x, *args, **kwargs)
            ratio = torch.where(x == 0, part.slope, y / torch.where(x == 0, 1.0, x))
        return _with_gradient_of(y, x * ratio)

    return ruled


def _halved_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Half rule: what comes from a product gives half of its gradient to it, and so half to each side."""

    def ruled(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(_with_gradient_of(x, x * 0.5) if x.requires_grad else x, *args, **kwargs)

    return ruled


@contextmanager
def _constant_patterns(model: PreTrainedModel) -> Iterator[None]:
    """AH rule: within the block, attention has no gradient in queries and keys; configurations are as before then."""
    with attention_by(model, lambda name: _registered_by_rule(name) if isinstance(name, str) else name):
        yield


def _registered_by_rule(name: str) -> str:
    """The name under which attention `name` with constant patterns is known to transformers."""
    ruled = f"{NAME}{name}"
    if ruled not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(
            ruled, lambda module, *args, **kwargs: _attention_by_rule(name, module, *args, **kwargs)
        )
        if name in ALL_MASK_ATTENTION_FUNCTIONS:
            AttentionMaskInterface.register(ruled, ALL_MASK_ATTENTION_FUNCTIONS[name])
    return ruled


def _attention_by_rule(
    name: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **how: Any
) -> Any:
    """Attention as implementation `name` computes it, with a gradient in the values alone."""
    inner = ALL_ATTENTION_FUNCTIONS[name] if name in ALL_ATTENTION_FUNCTIONS else _eager_attention(module)
    query, key = query.detach(), key.detach()
    if name != "sdpa" or not (torch.is_grad_enabled() and value.requires_grad):
        return inner(module, query, key, value, *args, **how)
    # fused kernels have no gradient for several cotangents at once, and round a little otherwise
    with torch.no_grad():
        result = inner(module, query, key, value, *args, **how)
    with sdpa_kernel(SDPBackend.MATH):
        line = inner(module, query, key, value, *args, **how)
    return (_with_gradient_of(result[0], line[0]), *result[1:])


def _eager_attention(module: nn.Module) -> Callable[..., Any]:
    """The eager attention of a module: the function of that name beside its class."""
    for kind in type(module).__mro__:
        function = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if function is not None:
            return function
    raise LenscopeError(f"{type(module).__name__}: has no eager attention; load it with attn_implementation sdpa")


def _require_conserved(lm: LM) -> None:
    """Raise LenscopeError, naming the module, unless each block conserves relevance where nothing has a bias."""
    anatomy = lm.runner.anatomy
    named = [(f"{anatomy.name}.{n}", block) for n, block in enumerate(anatomy.blocks)]
    named += [(name, module) for name, module in anatomy.tail[:-1]]
    lost = _lost_relevance(lm, dict(named))
    name = next((name for name, _ in named if lost.get(name, 0.0) > 1), None)
    if name is None:
        return
    # the first that has parts of its own: linear maps and what has a rule have none
    parts = {f"{name}.{part}": m for part, m in dict(named)[name].named_children() if any(True for _ in m.children())}
    inner = _lost_relevance(lm, parts)
    culprit = next((part for part in parts if inner.get(part, 0.0) > 1), name)
    kind = type(parts.get(culprit, dict(named)[name])).__name__
    raise LenscopeError(
        f"{lm.name}: {culprit} ({kind}) does not conserve relevance under the rules of RelP, so something in it has no "
        "rule here; read this model with plain gradients"
    )


def _lost_relevance(lm: LM, modules: dict[str, nn.Module]) -> dict[str, float]:
    """By module, how much relevance is lost in it, in units of what may be; 1 or less is none."""
    cut: dict[int, tuple[Tensor, Tensor]] = {}
    taken: dict[int, Tensor] = {}

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not isinstance(args[0] if args else kwargs.get("hidden_states"), Tensor):
            return None
        taken[id(module)] = state = input_state(args, kwargs).detach().requires_grad_()
        return with_input_state(args, kwargs, state)

    def end(module: nn.Module, _: Any, output: Any) -> None:
        if id(module) in taken and isinstance(output if isinstance(output, Tensor) else output[0], Tensor):
            # cloned, because blocks may add to what their parts return in place
            cut[id(module)] = taken[id(module)], output_state(output).clone()

    anatomy = lm.runner.anatomy
    with ExitStack() as undo, torch.enable_grad():
        _without_biases([*anatomy.blocks, *(m for _, m in anatomy.tail)], undo)
        for module in modules.values():
            undo.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
            undo.callback(module.register_forward_hook(end).remove)
        lm.model(input_ids=anatomy.ids, **forward_kwargs(lm.model, use_cache=False))
        return {name: _share_lost(*cut[id(m)]) for name, m in modules.items() if id(m) in cut}


def _without_biases(modules: list[nn.Module], undo: ExitStack) -> None:
    for module in {id(m): m for outer in modules for m in outer.modules()}.values():
        bias = module._parameters.get("bias")
        if bias is not None:
            undo.callback(module._parameters.__setitem__, "bias", bias)
            module._parameters["bias"] = nn.Parameter(torch.zeros_like(bias), requires_grad=False)


def _share_lost(h: Tensor, out: Tensor) -> float:
    """What is lost between h and out: Σ c · out against Σ (cᵀ ∂out/∂h) · h, in units of what may be.

    What passes by unchanged, as a residual does, is taken out of the scale where both have the same shape.
    """
    if not out.requires_grad:
        return float("inf")
    draw = torch.Generator().manual_seed(0)
    c = torch.randn(_DIRECTIONS, *out.shape, generator=draw).to(out)
    rows = [torch.autograd.grad(out, h, one, retain_graph=True, allow_unused=True)[0] for one in c]
    g = torch.stack([torch.zeros_like(h) if row is None else row for row in rows])
    tolerance, finest = _LOST.get(out.dtype, 3e-2), torch.finfo(out.dtype).eps
    c, g, h, out = (t.detach().double().cpu() for t in (c, g, h, out))
    over = list(range(1, c.ndim)), list(range(1, g.ndim))
    gap = (c * out).sum(over[0]) - (g * h).sum(over[1])
    whole = (c * out).square().sum() + (g * h).square().sum()
    same = out.shape == h.shape
    part = (c * (out - h)).square().sum() + ((g - c) * h).square().sum() if same else whole
    allowed = tolerance * part.sqrt() + 4 * finest * whole.sqrt()
    return float(gap.square().sum().sqrt() / allowed.clamp_min(1e-30))
