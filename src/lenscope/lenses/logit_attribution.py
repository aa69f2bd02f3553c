"""Direct logit attribution: what each part of a model adds to one token's logit at one position.

Knows: that the last state is a sum of what embedding, attentions, heads and MLPs add, and what of it survives scales.
Does not know: how additions and heads are found, how a norm's denominator is held (models), how results look.
"""

from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lenscope.errors import LenscopeError
from lenscope.lenses.attribution_results import LogitAttribution
from lenscope.models.attention_heads import HeadProjection, find_heads
from lenscope.models.batches import Running
from lenscope.models.held_readout import hold_readout
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.prompts import Position
from lenscope.models.provenance import provenance
from lenscope.models.sublayer_states import BlockPass, require_real_sums, watching_blocks


@torch.no_grad()
def attribute_logit(
    lm: LM,
    prompt: PromptLike,
    token: str | int,
    position: Position = -1,
    *,
    against: str | int | None = None,
    heads: bool = False,
) -> LogitAttribution:
    """Split a token's logit into what the embedding, each block's attention and MLP, and biases add to it.

    This is direct logit attribution (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Wang et
    al. 2023, arXiv 2211.00593): the last state is the sum of what was added to the stream, and the final norm, with its
    denominator held at the value of this run, and the head are linear. What a part does through later blocks, which
    read it, counts as theirs. Parts sum to the logit before any soft cap, but for `rounding`, by which the model's own
    stream is not the sum of what was added.

    Raises LenscopeError where blocks add something else than attention and an MLP, the readout is no chain of norm and
    linear head, tokens or position do not exist, and within `edit`; with `heads` also where heads cannot be read apart.

    Args:
        lm: the model.
        prompt: a text, token ids or a Prompt.
        token: the token whose logit is split, a text or an id.
        position: where it is predicted: an index, or a substring of the prompt, whose last token it is.
        against: another token, whose logit is taken off: the parts of the difference of both.
        heads: whether each attention is split into its heads too, and the bias of its projection.
    """
    if lm.runner.editing:
        raise LenscopeError("inside edit() or ablated(): logits are attributed of a model as it is; leave the block")
    chosen = [lm.encoder.token_id(one) for one in (token, *([] if against is None else [against]))]
    if len(set(chosen)) < len(chosen):
        raise LenscopeError(f"against {against!r}: is the token itself; give another one")
    one = lm.prompt(prompt)
    place = one.position(position)
    read = _AddedAt(lm, place, find_heads(lm.runner) if heads else ())
    read.run(Running.of_prompts([one], lm.runner.input_device))
    held = hold_readout(lm.runner, read.final, torch.tensor(chosen))
    sign = torch.tensor([1.0, -1.0][: len(chosen)], dtype=torch.float64)

    def logits(parts: list[Tensor]) -> np.ndarray:
        """What each of parts (…, D) of the last state adds to the logit, or to the difference of two."""
        stacked = torch.stack(parts)
        return (held.parts(stacked.flatten(0, -2)) @ sign).reshape(stacked.shape[:-1]).numpy()

    ids = sorted({*one.ids, *chosen})
    return LogitAttribution(
        text=one.text,
        ids=one.ids,
        model=lm.name,
        position=place,
        token=chosen[0],
        against=chosen[1] if len(chosen) > 1 else None,
        logit=float(held.logits @ sign),
        embedding=float(logits([read.embedding])[0]),
        attention=logits(read.attention),
        mlp=logits(read.mlp),
        bias=float(held.bias @ sign),
        heads=logits(read.heads) if heads else None,
        head_bias=logits(read.head_bias) if heads else None,
        soft_cap=held.soft_cap,
        capped=float(held.capped @ sign),
        vocabulary=dict(zip(ids, lm.encoder.tokens(ids), strict=True)),
        provenance=provenance(lm),
    )


class _AddedAt:
    """What was added to the stream at one position of a prompt, as parts (D) of its last state, in float64."""

    def __init__(self, lm: LM, position: int, projections: tuple[HeadProjection, ...]) -> None:
        self.lm, self.position, self.projections = lm, position, projections
        self.embedding = self.final = torch.empty(0)
        self.attention: list[Tensor] = []
        self.mlp: list[Tensor] = []
        self.heads: list[Tensor] = []
        self.head_bias: list[Tensor] = []
        self._inputs: dict[int, Tensor] = {}
        self._before: Tensor | None = None

    def run(self, running: Running) -> None:
        """Run the model on a prompt alone, and read."""
        runner = self.lm.runner

        def final(_: int, h: Tensor) -> None:
            self.final = h[0, self.position].clone()

        def look(run: BlockPass) -> None:
            require_real_sums(runner, run, running.batch.mask)
            self._take(run)

        with watching_blocks(runner, range(1, runner.n_layers + 1), look), ExitStack() as undo:
            for number, one in enumerate(self.projections):
                module = runner.anatomy.blocks[number].get_submodule(one.module)
                hook = partial(self._take_input, number)
                undo.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            runner.capture(running, {runner.n_layers}, final)

    def _take_input(self, number: int, module: nn.Module, args: Any, kwargs: Any) -> None:
        z = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        # of one prompt, whether its tokens have an axis of their own or stand in one with the rows
        self._inputs[number] = z.detach().reshape(-1, z.shape[-1])[self.position].clone()

    def _take(self, run: BlockPass) -> None:
        given, name = run.given[0, self.position], self.lm.name
        if self._before is None:
            self.embedding = _in_float64(given)
        elif not torch.equal(given, self._before.to(given.device)):
            raise LenscopeError(
                f"{name}: what block {run.layer - 1} reads is not what the block before it gave; logits cannot be "
                "attributed to parts of its stream"
            )
        self._before = run.output[0, self.position]
        if run.recipe.keep != 1:
            # what was added before is scaled with the stream
            for parts in (self.attention, self.mlp, self.heads, self.head_bias):
                parts[:] = [part * run.recipe.keep for part in parts]
            self.embedding = self.embedding * run.recipe.keep
        for parts, additions in ((self.attention, run.recipe.attention), (self.mlp, run.recipe.mlp)):
            added = [_in_float64(run.outputs[one.module][0, self.position]) * one.factor for one in additions]
            parts.append(torch.stack(added).sum(0))
        if self.projections:
            by_head, bias = self.projections[run.layer - 1].parts(self._inputs[run.layer - 1])
            self._require_heads(run.layer, by_head, bias)
            self.heads.append(by_head)
            self.head_bias.append(bias)

    def _require_heads(self, layer: int, by_head: Tensor, bias: Tensor) -> None:
        """Raise LenscopeError where heads and bias do not sum to what attention added, but for products' rounding."""
        added = self.attention[-1]
        gap = (by_head.sum(0) + bias - added).abs().max()
        rounding = {torch.float64: 1e-6, torch.float32: 1e-4}.get(self.lm.dtype, 5e-2)
        if not gap <= rounding * (by_head.abs().sum(0) + bias.abs()).max():
            raise LenscopeError(
                f"{self.lm.name}: the heads of block {layer - 1} do not sum to what its attention adds to this prompt; "
                "attention and MLP can be read, heads cannot"
            )


def _in_float64(h: Tensor) -> Tensor:
    return h.detach().to("cpu", torch.float64)
