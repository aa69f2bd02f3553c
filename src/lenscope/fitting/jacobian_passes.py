"""Jacobians of a model's last states by the states of all its layers: many cotangents on the graph of one run.

Knows: how one run of a row of text is kept differentiable at every layer, which of its tokens need no gradient, how
rows of all layers' Jacobians come out of one backward pass, how that is compared with finite differences.
Does not know: which text is run, what Jacobians are summed for (jacobian_run.py).

The gradient with respect to the states of a layer of Σ_t' z · h_last[t'], over the target positions t', is at source
position t the row zᵀ Σ_t' ∂h_last[t'] / ∂h_l[t]: with the cotangent z at all targets at once, one backward pass gives a
row of the Jacobian lens (Gurnee et al. 2026) at every layer and position.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lenscope.errors import LenscopeError
from lenscope.models.attention_implementations import eager_attention
from lenscope.models.carried_states import nothing_read
from lenscope.models.deviations import FAILURES, deviation
from lenscope.models.exactness import tolerance
from lenscope.models.language_model import LM
from lenscope.models.precision import half_precision
from lenscope.models.residual_stream import forward_kwargs
from lenscope.models.runner import EnoughRead

# Cotangents × tokens of a backward pass: as many rows as keep a processor's caches, or an accelerator, busy.
ON_PROCESSOR, ON_ACCELERATOR = 1024, 1 << 15
# What counts as the same where products are made in 16 bits, in standard deviations of the states.
LOW_ROUNDING = 5e-2
# The largest relative gap between mean gradients over positions with products in 16 bits and the model's own, at any
# layer. One prompt's Jacobian is further from the mean of all prompts': by .2 to 1.6 of its size in SmolLM2-135M.
LOW_GAP = 0.1
# The largest relative gap between a gradient and a finite difference, by the dtype of the states.
GAPS = {torch.float64: 1e-2, torch.float32: 5e-2}


@contextmanager
def without_weight_gradients(lm: LM) -> Iterator[None]:
    """Within the block no weight of the model asks for a gradient: nothing is kept or computed for one."""
    asking = [p for p in lm.model.parameters() if p.requires_grad]
    for p in asking:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in asking:
            p.requires_grad_(True)


def batched_gradients(last: Tensor, states: Sequence[Tensor], cotangents: Tensor, stacked: bool) -> list[Tensor]:
    """For each of some states (1, T, D) the gradients (K, T, D) of `last` for cotangents (K, 1, T', D) of it.

    `stacked`: all cotangents go through the graph at once. A state that `last` does not depend on has gradients 0.
    """

    def filled(gradient: Tensor | None, state: Tensor, count: int) -> Tensor:
        return state.new_zeros(count, *state.shape[1:]) if gradient is None else gradient

    if stacked:
        one = last.device.type != "cuda"
        # flash attention has no backward pass for several cotangents at once
        with nullcontext() if one else sdpa_kernel(SDPBackend.MATH):
            grads: Sequence[Tensor | None] = torch.autograd.grad(
                last, states, cotangents, retain_graph=True, is_grads_batched=True, allow_unused=True
            )
        pairs = zip(grads, states, strict=True)
        return [filled(None if g is None else g[:, 0], state, len(cotangents)) for g, state in pairs]
    columns = []
    for z in cotangents:
        grads = torch.autograd.grad(last, states, z, retain_graph=True, allow_unused=True)
        columns.append([filled(g, state, 1)[0] for g, state in zip(grads, states, strict=True)])
    return [torch.stack(of_layer) for of_layer in zip(*columns, strict=True)]


def _gaps_within(ours: Sequence[Tensor], own: Sequence[Tensor], most: float) -> bool:
    """Whether tensors are apart, pair by pair, by at most this share of the size of the second ones."""
    pairs = zip(ours, own, strict=True)
    return all(float((a - b).norm()) <= most * max(float(b.norm()), 1e-30) for a, b in pairs)


def alike(ours: Sequence[Tensor], own: Sequence[Tensor], rounding: float) -> bool:
    """Whether gradients are a model's own, pair by pair, where states may be `rounding` standard deviations apart."""
    return _gaps_within(ours, own, min(10 * rounding, 0.1))


def near_enough(gradients: Sequence[Tensor], own: Sequence[Tensor]) -> bool:
    """Whether gradients (K, T, D) of all layers with products in 16 bits are near a model's own.

    Means over positions are compared, as they are what a Jacobian lens is made of.
    """
    return _gaps_within([g.mean(1) for g in gradients], [g.mean(1) for g in own], LOW_GAP)


class LayerGraph:
    """One run of a row of text whose states at some layers, and the last ones, can be differentiated repeatedly.

    `states` are the layers' states (T, D) of the tokens from `start` on, `last` the last layer's. Tokens before
    `start` are read without a graph: nothing that is asked for depends on their gradients.
    """

    def __init__(self, states: Sequence[Tensor], last: Tensor, start: int, stacked: bool) -> None:
        self.states, self.last, self.start, self.stacked = states, last, start, stacked

    @property
    def tokens(self) -> int:
        """How many tokens have a gradient."""
        return self.last.shape[1]

    def gradients(self, cotangents: Tensor, targets: Tensor) -> list[Tensor]:
        """For each layer the gradients (K, T, D) of Σ z · h_last over `targets` (T,) bool, for cotangents z (K, D)."""
        given = self.last.new_zeros(len(cotangents), 1, *self.last.shape[1:])
        given[:, 0, targets] = cotangents.to(given)[:, None]
        return batched_gradients(self.last, self.states, given, self.stacked)


class LayerGraphs:
    """Makes the graphs of rows of text for one model, by ways that were measured on it to give its own numbers.

    Args:
        lm: the model, in eval mode.
        layers: the layers whose states are differentiated with respect to.
        target_layer: the layer whose states are differentiated.
        low: the 16-bit dtype in which products are made where that changes gradients little, None: the model's own.
        own_gradients: whether gradients are the model's, and so compared with finite differences, or follow a rule.
    """

    def __init__(
        self, lm: LM, layers: Sequence[int], target_layer: int, low: torch.dtype | None, own_gradients: bool = True
    ) -> None:
        if lm.runner.editing or lm.runner.exclusive.training:
            raise LenscopeError(
                f"{lm.name}: is being edited or in training mode; end the edit or call model.eval() first"
            )
        self.lm, self.layers, self.target_layer, self.low = lm, tuple(layers), target_layer, low
        self.own_gradients = own_gradients
        self.stacked = self.cached = True
        # Fused attention takes the cotangents one by one. In float32 that costs nothing, but products in 16 bits are so
        # much faster that it was half of all time.
        self.eager = low is not None and lm.device.type == "cpu"
        self._measured = False

    @property
    def together(self) -> int:
        """Cotangents × tokens of one backward pass."""
        return ON_PROCESSOR if self.lm.device.type == "cpu" else ON_ACCELERATOR

    def of_row(self, ids: Sequence[int], start: int) -> LayerGraph:
        """The graph of a row, whose tokens before `start` need no gradient.

        The first row is run in all ways, and its gradients had in all: what does not give the model's own numbers is
        not used again. Raises LenscopeError where gradients are not those of finite differences.
        """
        self.measure(ids, start)
        return self._graph(ids, start if self.cached else 0, self.stacked, self.low, self.eager)

    def measure(self, ids: Sequence[int], start: int) -> None:
        """See on a row which ways give this model's own numbers, unless that was seen; raises as `of_row`."""
        if not self._measured:
            self._measure(ids, start)
            self._measured = True

    def _graph(
        self, ids: Sequence[int], start: int, stacked: bool, low: torch.dtype | None = None, eager: bool = False
    ) -> LayerGraph:
        """The graph of a row in one of the ways; by default with the model's own products and attention."""
        lm, captured = self.lm, dict[int, Tensor]()
        runner = lm.runner

        def keep(layer: int, h: Tensor) -> Tensor:
            # the graph begins at the lowest layer
            state = h.detach().requires_grad_() if layer == self.layers[0] else h.view_as(h)
            captured[layer] = state
            if layer == self.target_layer:
                raise EnoughRead
            return state

        with runner.exclusive.alone(), ExitStack() as undo:
            given: dict[str, Any] = {"use_cache": False}
            device = runner.input_device
            if eager:
                undo.enter_context(eager_attention(lm.model))
            if start:
                carried = nothing_read(runner)
                first = torch.tensor([ids[:start]], device=device)
                with torch.no_grad(), half_precision(lm, low), carried.passed(first) as arguments:
                    lm.model(input_ids=first, **forward_kwargs(lm.model, logits_to_keep=1), **arguments)
            rest = torch.tensor([ids[start:]], device=device)
            if start:
                given = undo.enter_context(carried.passed(rest))
            for layer in (*self.layers, self.target_layer):
                undo.callback(runner.hook(layer, lambda h, layer=layer: keep(layer, h)).remove)
            undo.enter_context(torch.enable_grad())
            undo.enter_context(half_precision(lm, low))
            try:
                lm.model(input_ids=rest, **forward_kwargs(lm.model, **given))
            except EnoughRead:
                pass
        states = [captured[layer] for layer in self.layers]
        return LayerGraph(states, captured[self.target_layer], start, stacked)

    def _measure(self, ids: Sequence[int], start: int) -> None:
        """Which ways give this model's own numbers, seen on a row; then, how near those of products in 16 bits are."""
        lm, rounding = self.lm, tolerance(self.lm.runner)
        whole = self._graph(ids, 0, False)
        lm.runner.require_finite(whole.last, self.target_layer)
        draw = torch.Generator().manual_seed(0)
        z = torch.randn(2, lm.hidden_size, generator=draw).to(whole.last)
        targets = torch.zeros(whole.tokens, dtype=torch.bool, device=z.device)
        targets[start:] = True
        own, states = whole.gradients(z, targets), whole.last[0].detach()
        self._require_gradients(ids, whole, z[0], targets, own)
        if self.eager:
            with self._unless_it_fails("eager"):
                written_out = self._graph(ids, 0, False, eager=True)
                self.eager = self._near(written_out, states) and alike(written_out.gradients(z, targets), own, rounding)
                whole = written_out if self.eager else whole
        with self._unless_it_fails("stacked"):
            self.stacked = alike(LayerGraph(whole.states, whole.last, 0, True).gradients(z, targets), own, rounding)
        self.cached = self.cached and start > 0
        if self.cached:
            with self._unless_it_fails("cached"):
                short = self._graph(ids, start, False, eager=self.eager)
                gradients = short.gradients(z, targets[start:])
                self.cached = self._near(short, states) and alike(gradients, [g[:, start:] for g in own], rounding)
        if self.low is not None:
            graph = self._graph(ids, start if self.cached else 0, self.stacked, self.low, self.eager)
            gradients = graph.gradients(z, targets[graph.start :])
            if not near_enough(gradients, [g[:, graph.start :] for g in own]):
                self.low = None

    @contextmanager
    def _unless_it_fails(self, way: str) -> Iterator[None]:
        """A way that fails within the block is not used; without memory nothing is."""
        try:
            yield
        except FAILURES as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            setattr(self, way, False)

    def _near(self, graph: LayerGraph, states: Tensor) -> bool:
        """Whether a graph has the last states (T, D) of the row."""
        return deviation(graph.last[0].detach(), states[graph.start :]) <= tolerance(self.lm.runner)

    def _require_gradients(
        self, ids: Sequence[int], whole: LayerGraph, z: Tensor, targets: Tensor, gradients: Sequence[Tensor]
    ) -> None:
        """Raise LenscopeError unless gradients along random directions are what states that are moved so give.

        In states of 16 bits differences are lost in rounding: there is nothing to compare with.
        """
        lm, most = self.lm, GAPS.get(whole.last.dtype)
        if most is None or not self.own_gradients:
            return
        draw = torch.Generator().manual_seed(1)
        for at in {0, len(self.layers) // 2, len(self.layers) - 1}:
            layer, h = self.layers[at], whole.states[at].detach()
            direction = torch.randn(h.shape, generator=draw).to(h) * h.abs().mean()
            direction[:, ~targets] = 0
            steps = []
            # the step at which rounding and curvature are both small is not known beforehand
            for step in (1e-4, 1e-3, 1e-2, 3e-2):
                ends = [self._moved(ids, layer, h + sign * step * direction)[0, targets] @ z for sign in (1, -1)]
                steps.append(float((ends[0].double().sum() - ends[1].double().sum()) / (2 * step)))
            along = float((gradients[at][0].double() * direction[0].double()).sum())
            size = float(gradients[at][0].double().norm() * direction.double().norm()) / direction.numel() ** 0.5
            gap = min(abs(step - along) for step in steps) / max(size, abs(along), 1e-30)
            if not gap <= most:
                raise LenscopeError(
                    f"{lm.name}: the gradient at layer {layer} is not the finite difference (apart by {gap:.2g} of its "
                    "size); a part of this model passes no gradient, so a Jacobian of it would be wrong"
                )

    def _moved(self, ids: Sequence[int], layer: int, states: Tensor) -> Tensor:
        """The last states (1, T, D) of a row where those of a layer are replaced."""
        runner, last = self.lm.runner, list[Tensor]()

        def take(h: Tensor) -> None:
            last.append(h)
            raise EnoughRead

        with runner.exclusive.alone(), ExitStack() as undo, torch.no_grad():
            undo.callback(runner.hook(layer, lambda h: states.to(h)).remove)
            undo.callback(runner.hook(self.target_layer, take).remove)
            try:
                given = forward_kwargs(self.lm.model, use_cache=False)
                self.lm.model(input_ids=torch.tensor([list(ids)], device=runner.input_device), **given)
            except EnoughRead:
                pass
        return last[0]
