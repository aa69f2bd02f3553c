"""Greedy continuations by transformers' own generate, as far as it gives what recomputation gives; else recomputed.

Knows: the cache, left padding, pinned decoding, and how far each moves the numbers of a given model.
Does not know: how states are read or edited (model.py runs the passes), text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from lenscope.anatomy import deviation
from lenscope.edits import Running
from lenscope.errors import LenscopeError
from lenscope.prompts import Batch, Prompt, pad
from lenscope.readout import FAILURES

if TYPE_CHECKING:
    from lenscope.model import LM

PROBE_TOKENS = 4


@dataclass(frozen=True)
class Checked:
    """How far generating from a cache, and with left padding, moves the logits of each new token.

    As `lenscope.anatomy.deviation`, against reading the grown prompt from its start; infinite where transformers
    fails, then `failure` says how.
    """

    cached: float
    padded: float
    failure: str = ""


def write(lm: "LM", prompts: Sequence[Prompt], max_new_tokens: int) -> list[tuple[int, ...]]:
    """The greedy continuation of each prompt, up to an end-of-text token or `max_new_tokens`."""
    ends = end_ids(lm)
    out: list[tuple[int, ...]] = [()] * len(prompts)
    tolerance = lm.tolerance()
    if check(lm).cached > tolerance:
        for i, prompt in enumerate(prompts):
            out[i] = _recompute(lm, prompt, i, len(prompts), max_new_tokens, ends)
        return out
    for group in lm.groups(prompts, lambda: check(lm).padded <= tolerance):
        some = [prompts[i] for i in group]
        running = Running(some, group, len(prompts), pad(some, "left", lm.anatomy.ids.device))
        for i, ids in zip(group, _generate(lm, running, max_new_tokens, ends), strict=True):
            out[i] = ids
    return out


def check(lm: "LM") -> Checked:
    """Measure, once per model, on a pair of prompts of unequal length."""
    if lm.generation_checked is None:
        rows = lm.anatomy.ids.tolist()
        prompts = [lm.prompt(rows[0]), lm.prompt(rows[2][:4])]
        try:
            alone = [_gap(lm, [p]) for p in prompts]
            lm.generation_checked = Checked(max(alone), _gap(lm, prompts))
        except LenscopeError as error:
            lm.generation_checked = Checked(float("inf"), float("inf"), str(error))
    return lm.generation_checked


def _gap(lm: "LM", prompts: list[Prompt]) -> float:
    """The deviation of the logits that generate() picks tokens from, against reading the text afresh."""
    steps: list[Tensor] = []
    watch = lm.hook(lm.n_layers, lambda h: steps.append(h[:, -1].clone()))
    batch = pad(prompts, "left", lm.anatomy.ids.device)
    try:
        written = _generate(
            lm, Running(prompts, range(len(prompts)), len(prompts), batch, probe=True), PROBE_TOKENS, []
        )
    finally:
        watch.remove()
    found: list[Tensor] = []
    expected: list[Tensor] = []
    for row, (prompt, ids) in enumerate(zip(prompts, written, strict=True)):
        for n in range(len(ids)):
            expected.append(lm.probe([*prompt.ids, *ids[:n]])[-1])
            found.append(steps[n][row])
    return deviation(lm.own_logits(torch.stack(found)), lm.own_logits(torch.stack(expected)))


def _generate(lm: "LM", running: Running, max_new_tokens: int, ends: list[int]) -> list[tuple[int, ...]]:
    """transformers' greedy generate on a left-padded batch."""
    batch = running.batch
    # A config of our own in place of the checkpoint's: generate() fills whatever is left open from the latter.
    pinned = GenerationConfig(
        do_sample=False, num_beams=1, eos_token_id=ends or None, pad_token_id=(ends or [0])[0], use_cache=True
    )
    kept, lm.model.generation_config = lm.model.generation_config, pinned
    try:
        with lm.running(running):
            model: Any = lm.model  # its generate comes from a mixin that type checkers do not see
            ids: Tensor = model.generate(batch.ids, attention_mask=batch.mask, max_new_tokens=max_new_tokens)
    except FAILURES as error:
        if isinstance(error, LenscopeError | torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise LenscopeError(f"{lm.name}: transformers cannot generate with this model ({reason})") from error
    finally:
        lm.model.generation_config = kept
    return [_until_end(row, ends) for row in ids[:, batch.ids.shape[1] :].tolist()]


def _recompute(
    lm: "LM", prompt: Prompt, number: int, total: int, max_new_tokens: int, ends: list[int]
) -> tuple[int, ...]:
    """Greedy without a cache: the prompt and what was written are read from the start for every token."""
    written: list[int] = []
    kept: list[Tensor] = []
    while len(written) < max_new_tokens and not (written and written[-1] in ends):
        ids = torch.tensor([[*prompt.ids, *written]], device=lm.anatomy.ids.device)
        # the prompt itself, without what was written: edits name its positions
        running = Running([prompt], [number], total, Batch(ids, torch.ones_like(ids), (0,), (ids.shape[1],)))
        lm.capture(running, {lm.n_layers}, lambda _, h: kept.append(h[0, -1]))
        written.append(int(lm.unembed(kept.pop()).argmax()))
    return tuple(written)


def _until_end(row: list[int], ends: list[int]) -> tuple[int, ...]:
    stop = next((n + 1 for n, i in enumerate(row) if i in ends), len(row))
    return tuple(row[:stop])


def end_ids(lm: "LM") -> list[int]:
    """The token ids that end a text."""
    ends = getattr(lm.model.generation_config, "eos_token_id", None)
    if ends is None:
        ends = getattr(lm.model.config.get_text_config(), "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
