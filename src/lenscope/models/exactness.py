"""Which fast ways are exact for a model: what it rounds by itself, how far a way may deviate, whether padding does.

Knows: what each is measured with, at which lengths: measured once for all lengths between which the model's
configuration makes no difference (length_regimes.py).
Does not know: how prompts are run (runner.py), caches (generation.py, engine).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.models.batches import Running
from lenscope.models.deviations import FAILURES, TOLERANCE, deviation
from lenscope.models.measurements import Key
from lenscope.models.residual_stream import TRIAL_LENGTHS, trial_text
from lenscope.models.runner import Runner

# A third of the largest deviation that rounding can explain, by dtype: what is beyond it is a fault and no rounding. In
# float64 that of sums in float32.
LARGEST_ROUNDING = {torch.float64: 3e-6, torch.float32: 3e-4, torch.float16: 0.17, torch.bfloat16: 0.17}
# The size, relative to the states, of the random perturbation by which the rounding of a float64 model is estimated:
# large against the rounding of float32 (6e-8), and small enough that terms of second order (1e-12) vanish beside it.
PERTURBATION = 1e-6


def tolerance(runner: Runner) -> float:
    """The deviation up to which two ways of running a model count as the same.

    The dtype's own, or three times what the model rounds by itself, if that is more (`own_rounding`).
    """
    rounding = runner.measured.once(("own rounding",), lambda: own_rounding(runner))
    return max(TOLERANCE.get(runner.dtype, 1e-4), 3 * rounding)


def is_exact(runner: Runner, key: Key, measure: Callable[[], float]) -> bool:
    """Whether a faster way of running gives this model's own numbers: its `measured_deviation` is within tolerance."""
    return measured_deviation(runner, key, measure) <= tolerance(runner)


def measured_deviation(runner: Runner, key: Key, measure: Callable[[], float]) -> float:
    """How far a faster way of running deviates from the model's own numbers; infinite where the way fails.

    `measure` gives it, once for each `key`: the way's name, then the ranges of the lengths that it holds for. Running
    out of memory is no failure of a way, and raised.
    """

    def deviation_or_failure() -> float:
        try:
            return measure()
        except FAILURES as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return float("inf")

    return runner.measured.once(key, deviation_or_failure)


def own_rounding(runner: Runner) -> float:
    """The deviation of logits by the model's own rounding, at most that of `LARGEST_ROUNDING`.

    It is measured as `lenscope.models.deviations.deviation` says.
    """
    ids = [*trial_text(runner.anatomy, 7, 0), *trial_text(runner.anatomy, 7, 2)]
    whole = runner.own_logits(runner.read_plain(ids))
    gaps = [deviation(runner.own_logits(runner.read_plain(ids[:n]))[-1:], whole[n - 1 : n]) for n in range(4, 12)]
    if runner.dtype == torch.float64:
        gaps.append(_narrower_sums(runner, ids[:7]))
    return min(max(gaps), LARGEST_ROUNDING.get(runner.dtype, 3e-5))


def _narrower_sums(runner: Runner, ids: list[int]) -> float:
    """The rounding of what a float64 model computes in float32, such as a softmax; next to nothing where it does not.

    f(x + d) + f(x - d) - 2 f(x) is of the order of d² for a smooth f; rounding of size ρ in each of the three leaves
    ρ · √6 of it, whatever the processor. The median of a few steps d, as a router may change its mind at one.
    """
    x = runner.read_plain(ids, 0)
    truth = _from_layer_0(runner, ids, x)
    gaps = []
    for seed in range(3):
        d = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(x)
        d *= PERTURBATION * x.std()
        bent = _from_layer_0(runner, ids, x + d) + _from_layer_0(runner, ids, x - d) - truth
        gaps.append(deviation(bent, truth) / 6**0.5)
    return sorted(gaps)[1]


def _from_layer_0(runner: Runner, ids: list[int], x: Tensor) -> Tensor:
    """Logits (T, V) of a run that starts from the states x (T, D) at layer 0."""
    with runner.exclusive.alone():
        hook = runner.hook(0, lambda h: x[None].to(h))
        try:
            return runner.own_logits(runner.read_plain(ids))
        finally:
            hook.remove()


def right_padding_deviation(runner: Runner, short: int = TRIAL_LENGTHS[0], long: int = TRIAL_LENGTHS[1]) -> float:
    """How far padding on the right moves the logits (`lenscope.models.deviations.deviation`).

    Measured on a pair of prompts of `short` and `long` tokens, once for all lengths between which the model's
    configuration makes no difference. Above `tolerance`, prompts are read in groups of equal length.
    """
    regimes = runner.regimes.key(short, long, long - short)
    lengths = (short, long) if any(regimes) else TRIAL_LENGTHS
    return runner.measured.once(("right padding", *regimes), lambda: _padded_deviation(runner, *lengths))


def _padded_deviation(runner: Runner, short: int, long: int) -> float:
    prompts = [runner.encoder.prompt(trial_text(runner.anatomy, n, row)) for n, row in ((long, 0), (short, 2))]
    states: list[Tensor] = []
    running = Running.of_prompts(prompts, runner.input_device, without_edits=True)
    try:
        runner.capture(running, {runner.n_layers}, lambda _, h: states.append(h))
    except LenscopeError:
        # padding makes states that are not finite, where prompts alone give finite ones (else that raises)
        states.append(torch.full_like(runner.read_plain(list(prompts[0].ids)), torch.nan)[None].expand(2, -1, -1))
    together = torch.cat([h[: len(p)] for h, p in zip(states[0], prompts, strict=True)])
    alone = torch.cat([runner.read_plain(list(p.ids)) for p in prompts])
    return deviation(runner.own_logits(together), runner.own_logits(alone))


def reads_together(runner: Runner, short: int, long: int) -> bool:
    """Whether prompts of `short` to `long` tokens, padded on the right, are each as if they were read alone.

    Of streamed weights that is not measured, which would read them a dozen times: batches share their reading anyway.
    """
    if runner.stream is not None:
        return False
    return right_padding_deviation(runner, short, long) <= tolerance(runner)
