"""A short fine-tune of a model: a copy with other weights, to see what is left of what was fitted for the original.

Knows: copies, the loss of next tokens, AdamW with a short warm-up and a linear decay.
Does not know: where text comes from, what the copy is for.
"""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from lenscope.errors import LenscopeError
from lenscope.models.language_model import LM
from lenscope.models.progress import Progress
from lenscope.models.residual_stream import forward_kwargs
from lenscope.text.corpus import TokenBatch

# the share of the steps in which the rate rises; the norm to which gradients are cut
WARM, CLIP = 0.1, 1.0


def fine_tune(
    lm: LM,
    batches: Iterable[TokenBatch],
    *,
    lr: float = 1e-4,
    name: str | None = None,
    progress: Progress | None = None,
) -> LM:
    """A copy of a model, trained on text: one step of AdamW on all weights for each batch, in their order.

    The loss is the mean cross-entropy of the next tokens of the positions that count. The rate rises to `lr` over the
    first tenth of the steps, then falls to 0 linearly; gradients are cut to norm 1; dropout stays off. The copy is in
    float32, or float64 where the model is; the original is as it was, byte for byte. Memory: 16 bytes per parameter
    (in float32) beside the original, and the logits of a batch a few times. Raises LenscopeError for text without a
    prediction, a rate that is not positive, weights that cannot be trained (quantised, offloaded), and a loss that is
    no number.

    Args:
        lm: the model, which stays as it is.
        batches: batches of a corpus, a step each.
        lr: the highest rate.
        name: the name of the copy; None: one that says what it is a copy of.
        progress: called with how much is done and how much there is.
    """
    counting = [b for b in batches if bool(b.counted[:, :-1].any())]
    if not counting or not lr > 0:
        raise LenscopeError(f"lr {lr}, {len(counting)} batches that count: give a rate above 0 and at least one batch")
    model = _copy(lm)
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.01)
    warm = max(1, round(WARM * len(counting)))
    with torch.enable_grad():
        for n, batch in enumerate(counting):
            for group in optimizer.param_groups:
                group["lr"] = lr * min((n + 1) / warm, (len(counting) - n) / (len(counting) - warm + 1))
            loss = next_token_loss(model, batch)
            if not torch.isfinite(loss):
                raise LenscopeError(
                    f"lr {lr}: the loss of step {n + 1} of {len(counting)} is NaN or infinite; give a smaller lr"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, CLIP)
            optimizer.step()
            if progress is not None:
                progress(n + 1, len(counting))
    optimizer.zero_grad(set_to_none=True)
    return LM(model, lm.tokenizer, name or f"{lm.name} fine-tuned", f"fine-tuned from {lm.source or lm.name}")


def next_token_loss(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """The mean cross-entropy in nats, a scalar with a gradient, of the next tokens of a batch's counted positions."""
    ids = batch.ids.to(next(model.parameters()).device)
    logits = model(input_ids=ids, **forward_kwargs(model, use_cache=False)).logits
    counts = batch.counted[:, :-1].to(logits.device)
    wide = logits[:, :-1][counts]
    return functional.cross_entropy(wide if wide.dtype == torch.float64 else wide.float(), ids[:, 1:][counts])


def weights_of(lm: LM) -> dict[str, Tensor]:
    """A model's parameters by name, those that share memory once."""
    return {name: p.detach() for name, p in lm.model.named_parameters()}


def with_weights(lm: LM, weights: Mapping[str, Tensor], name: str | None = None) -> LM:
    """A copy of a model, in float32 or float64, with the weights that `weights_of` gave of a fine-tuned one.

    Raises LenscopeError where names or shapes are not the model's.
    """
    model = _copy(lm)
    own = dict(model.named_parameters())
    if {n: p.shape for n, p in own.items()} != {n: w.shape for n, w in weights.items()}:
        raise LenscopeError(f"weights: their names or shapes are not those of {lm.name}; give those of a copy of it")
    with torch.no_grad():
        for key, p in own.items():
            p.copy_(weights[key])
    return LM(model, lm.tokenizer, name or f"{lm.name} fine-tuned", f"fine-tuned from {lm.source or lm.name}")


def _copy(lm: LM) -> PreTrainedModel:
    weights = list(lm.model.parameters())
    if any(p.is_meta or not p.is_floating_point() for p in weights):
        raise LenscopeError(f"{lm.name}: its weights are quantised or offloaded; load it whole, in float32 or bfloat16")
    model = copy.deepcopy(lm.model)
    return model if lm.dtype == torch.float64 else model.float()
