"""What of a model is exact: what it rounds by itself, whether padding moves its numbers, whether it looks ahead.

Knows: what each is measured with, at which lengths: measured once for all lengths between which the model's
configuration makes no difference (regimes.py).
Does not know: how prompts are run (model.py), caches (generation.py, exact_modes.py).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.models.batches import pad
from lenscope.models.deviations import deviation
from lenscope.models.edits import Running
from lenscope.models.residual_stream import PROBE_LENGTHS, probe_text, require_causal

if TYPE_CHECKING:
    from lenscope.models.language_model import LM

# A third of the largest deviation that rounding can explain, by dtype: what is beyond it is a fault and no rounding. In
# float64 that of sums in float32.
MOST = {torch.float64: 3e-6, torch.float32: 3e-4, torch.float16: 0.17, torch.bfloat16: 0.17}
# relative size of the steps by which float64 models are shaken: many roundings of float32, whose square is nothing
STEP = 1e-6


def own_rounding(lm: "LM") -> float:
    """The deviation of logits by the model's own rounding, at most that of `MOST`.

    It is measured as `lenscope.models.deviations.deviation` says.
    """
    ids = [*probe_text(lm.anatomy, 7, 0), *probe_text(lm.anatomy, 7, 2)]
    whole = lm.own_logits(lm.probe(ids))
    gaps = [deviation(lm.own_logits(lm.probe(ids[:n]))[-1:], whole[n - 1 : n]) for n in range(4, 12)]
    if lm.dtype == torch.float64:
        gaps.append(_narrower_sums(lm, ids[:7]))
    return min(max(gaps), MOST.get(lm.dtype, 3e-5))


def _narrower_sums(lm: "LM", ids: list[int]) -> float:
    """The rounding of what a float64 model computes in float32, such as a softmax; next to nothing where it does not.

    f(x + d) + f(x - d) - 2 f(x) is of the order of d² for a smooth f; rounding of size ρ in each of the three leaves
    ρ · √6 of it, whatever the processor. The median of a few steps d, as a router may change its mind at one.
    """
    x = lm.probe(ids, 0)
    truth = _from_layer_0(lm, ids, x)
    found = []
    for seed in range(3):
        d = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(x)
        d *= STEP * x.std()
        bent = _from_layer_0(lm, ids, x + d) + _from_layer_0(lm, ids, x - d) - truth
        found.append(deviation(bent, truth) / 6**0.5)
    return sorted(found)[1]


def _from_layer_0(lm: "LM", ids: list[int], x: Tensor) -> Tensor:
    """Logits (T, V) of a run that starts from the states x (T, D) at layer 0."""
    with lm.exclusive.alone():
        hook = lm.hook(0, lambda h: x[None].to(h))
        try:
            return lm.own_logits(lm.probe(ids))
        finally:
            hook.remove()


def right_padding_deviation(lm: "LM", short: int = PROBE_LENGTHS[0], long: int = PROBE_LENGTHS[1]) -> float:
    """How far padding on the right moves the logits (`lenscope.models.deviations.deviation`).

    Measured on a pair of prompts of `short` and `long` tokens, once for all lengths between which the model's
    configuration makes no difference. Above `tolerance`, prompts are read in groups of equal length.
    """
    key = ("right padding", *lm.regimes.key(short, long, long - short))
    if key not in lm.measured:
        if not any(key[1:]):
            short, long = PROBE_LENGTHS
        prompts = [lm.prompt(probe_text(lm.anatomy, n, row)) for n, row in ((long, 0), (short, 2))]
        kept: list[Tensor] = []
        running = Running(prompts, [0, 1], 2, pad(prompts, "right", lm.anatomy.ids.device), probe=True)
        try:
            lm.capture(running, {lm.n_layers}, lambda _, h: kept.append(h))
        except LenscopeError:
            # padding makes states that are not finite, where prompts alone give finite ones (else that raises)
            kept.append(torch.full_like(lm.probe(list(prompts[0].ids)), torch.nan)[None].expand(2, -1, -1))
        together = torch.cat([h[: len(p)] for h, p in zip(kept[0], prompts, strict=True)])
        alone = torch.cat([lm.probe(list(p.ids)) for p in prompts])
        lm.measured[key] = deviation(lm.own_logits(together), lm.own_logits(alone))
    found: float = lm.measured[key]
    return found


def reads_together(lm: "LM", short: int, long: int) -> bool:
    """Whether prompts of `short` to `long` tokens, padded on the right, are each as if they were read alone."""
    return right_padding_deviation(lm, short, long) <= lm.tolerance()


def require_causal_at(lm: "LM", length: int) -> None:
    """Raise LenscopeError where, at this length, a later token changes earlier states; looked at once for a range.

    Short prompts were looked at when the model was loaded.
    """
    key = ("causal", lm.regimes.of(length))
    if not key[1] or key in lm.measured:
        return
    ids = probe_text(lm.anatomy, length)
    other = [*ids[:-1], (ids[-1] + lm.anatomy.n_inputs // 2) % lm.anatomy.n_inputs]
    prompts = [lm.prompt(ids), lm.prompt(other)]

    def compare(layer: int, h: Tensor) -> None:
        require_causal(lm.model, layer, h[1, :-1], h[0, :-1])

    running = Running(prompts, [0, 1], 2, pad(prompts, "right", lm.anatomy.ids.device), probe=True)
    lm.capture(running, range(lm.n_layers + 1), compare)
    lm.measured[key] = True
