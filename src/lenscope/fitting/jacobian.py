"""Jacobians of a model's last state by one of its states, row by row of a batch.

Knows: what comes before the state is run once where that gives the model's own result, how gradients are had in pieces.
Does not know: what Jacobians are for (relation.py).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from lenscope.errors import LenscopeError
from lenscope.models.deviations import FAILURES, deviation
from lenscope.models.exactness import tolerance
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.layers import check_layers
from lenscope.models.prompts import Position
from lenscope.models.residual_stream import forward_kwargs

# tokens that run together, each with the gradients of one output dimension
TOKENS = 384


def jacobian(lm: LM, prompt: PromptLike, at: Position, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """J (D, D) = ∂o/∂s, and s, o (D): the states at position `at` of `layer`, and of the last token and layer.

    What comes before `at` is computed once, and held as keys and values where that gives the model's own o.
    """
    if lm.runner.editing or lm.model.training:
        raise LenscopeError(f"{lm.name}: is being edited or in training mode; end the edit or call model.eval() first")
    read = lm.prompt(prompt)
    place = read.every(at)[-1] if isinstance(at, str) else read.position(at)
    (number,) = check_layers((layer,), lm.n_layers, lm.name)
    states = lm.read(read, (number, lm.n_layers))
    s, o = states[number, place], states[lm.n_layers, -1]
    differentiated = None
    if place:
        try:
            differentiated = _differentiated(lm, read.ids, place, number, s, place)
        except FAILURES as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
    if differentiated is None or not deviation(differentiated[1], o) <= tolerance(lm.runner):
        differentiated = _differentiated(lm, read.ids, place, number, s, 0)
    return differentiated[0], s, o


def _differentiated(lm: LM, ids: Sequence[int], place: int, layer: int, s: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """J (D, D) and o (D) from a run of the tokens from `start` on: rows of a batch, a dimension of o each."""
    width = lm.hidden_size
    rows = max(1, min(width, TOKENS // (len(ids) - start)))
    device = lm.runner.input_device
    gradients = []
    for first in range(0, width, rows):
        count = min(rows, width - first)
        cache: Any = None
        if start:
            cache = DynamicCache(config=lm.model.config)
            wanted = forward_kwargs(lm.model, use_cache=True, past_key_values=cache, logits_to_keep=1)
            with lm.runner.exclusive.alone(), torch.no_grad():
                lm.model(input_ids=torch.tensor([ids[:start]], device=device), **wanted)
            cache.batch_repeat_interleave(count)
        leaf = s.detach().expand(count, -1).clone().requires_grad_()
        last: list[Tensor] = []

        def put(h: Tensor, leaf: Tensor = leaf) -> Tensor:
            return torch.cat([h[:, : place - start], leaf.to(h)[:, None], h[:, place - start + 1 :]], 1)

        with lm.runner.exclusive.alone(), ExitStack() as undo, torch.enable_grad():
            undo.callback(lm.runner.hook(layer, put).remove)
            undo.callback(lm.runner.hook(lm.n_layers, lambda h, last=last: last.append(h[:, -1])).remove)
            given = torch.tensor([ids[start:]] * count, device=device)
            wanted = forward_kwargs(lm.model, use_cache=cache is not None, past_key_values=cache, logits_to_keep=1)
            lm.model(input_ids=given, **wanted)
            out = last[0][torch.arange(count), first + torch.arange(count)]
            (grad,) = torch.autograd.grad(out.sum(), [leaf])
        gradients.append(grad)
    return torch.cat(gradients), last[0][0].detach()
