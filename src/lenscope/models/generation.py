"""Greedy continuations by transformers' own generate, as far as it gives what recomputation gives; else recomputed.

Knows: the cache, left padding, pinned decoding, and how far each moves the numbers of a given model.
Does not know: how states are read or edited (runner.py runs the passes), text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from lenscope.errors import LenscopeError
from lenscope.models.batches import Batch, Running, length_groups, pad
from lenscope.models.deviations import FAILURES, deviation
from lenscope.models.exactness import tolerance
from lenscope.models.measurements import Key
from lenscope.models.prompts import Prompt
from lenscope.models.readout import wide
from lenscope.models.residual_stream import trial_text
from lenscope.models.runner import Runner
from lenscope.models.single_tokens import single_tokens_as_texts

# tokens written to measure a cache, and to measure it across a length from which on a model may behave differently
TRIAL_TOKENS, CROSSING_TOKENS = 4, 6


@dataclass(frozen=True)
class GenerationCheck:
    """How far generating from a cache, and with left padding, moves the logits of each new token.

    As `lenscope.models.deviations.deviation`, against reading the grown prompt from its start; infinite where
    transformers fails, then `failure` says how.
    """

    cached: float
    padded: float
    failure: str = ""


def generate_greedily(runner: Runner, prompts: Sequence[Prompt], max_new_tokens: int) -> list[tuple[int, ...]]:
    """The greedy continuation of each prompt, up to an end-of-text token or `max_new_tokens`."""
    ends = end_ids(runner)
    out: list[list[int]] = [[] for _ in prompts]
    for group in length_groups(prompts, lambda short, long: _pads(runner, short, long, max_new_tokens)):
        # rows of one length stop together wherever their cache no longer gives what reading anew gives
        left = list(group)
        while left:
            start = len(prompts[left[-1]]) + len(out[left[-1]])
            new = max_new_tokens - len(out[left[-1]])
            cached = _tokens_from_cache(runner, start, new)
            if cached:
                batch = _grown(runner, prompts, out, left)
                running = Running([prompts[i] for i in left], left, len(prompts), batch)
                for i, ids in zip(left, _generate(runner, running, cached, ends), strict=True):
                    out[i] += ids
            else:
                for i in left:
                    out[i] += _recompute(runner, prompts[i], i, len(prompts), out[i], new, ends)
            left = [i for i in left if len(out[i]) < max_new_tokens and out[i][-1] not in ends]
    return [tuple(ids) for ids in out]


def check_generation(runner: Runner) -> GenerationCheck:
    """Measure, once per model, on a pair of short prompts of unequal length."""
    return runner.measured.once(("generation",), lambda: _checked(runner))


def _checked(runner: Runner) -> GenerationCheck:
    prompts = [runner.encoder.prompt(trial_text(runner.anatomy, n, row)) for n, row in ((7, 0), (4, 2))]
    try:
        # rows of one length, since some models mix them up; and one that is shorter
        equal = runner.encoder.prompt(trial_text(runner.anatomy, 7, 2))
        gaps = [_gap(runner, [prompts[0], equal]), _gap(runner, prompts[1:])]
        return GenerationCheck(max(gaps), _gap(runner, prompts))
    except LenscopeError as error:
        return GenerationCheck(float("inf"), float("inf"), str(error))


def _pads(runner: Runner, short: int, long: int, new: int) -> bool:
    """Whether prompts of `short` to `long` tokens, padded on the left, write what each writes alone.

    Not tried where they come to a length, before they end, from which on the model may behave differently.
    """
    lengths = runner.regimes.key(short, long, long - short, short + new - 1, long + new - 1)
    if not any(lengths):
        return check_generation(runner).padded <= tolerance(runner)
    if lengths[0] != lengths[3] or lengths[1] != lengths[4]:
        return False
    return _measured_gap(runner, ("left padding", *lengths), [long, short], min(new, TRIAL_TOKENS)) <= tolerance(runner)


def _tokens_from_cache(runner: Runner, start: int, new: int) -> int:
    """How many of `new` tokens may be written from the cache of a text of `start` tokens."""
    limit, regimes = tolerance(runner), runner.regimes
    # the last token that is written is not read any more
    end = start + new - 1
    if not any(regimes.key(start, end)):
        return new if check_generation(runner).cached <= limit else 0
    inside = _measured_gap(runner, ("cache", regimes.of(start)), [start], TRIAL_TOKENS)
    if not inside <= limit:
        return 0
    for cut in regimes.crossed(start, end):
        before = max(start, cut - 1)
        if not _measured_gap(runner, ("cache across", cut, cut - before), [before], CROSSING_TOKENS) <= limit:
            return cut - start + 1
    return new


def _measured_gap(runner: Runner, key: Key, lengths: Sequence[int], tokens: int) -> float:
    """As `_gap` of prompts of some lengths, measured once for each key; infinite where the model fails."""

    def gap() -> float:
        context = runner.encoder.context
        room = tokens if context is None else min(tokens, context - max(lengths))
        prompts = [runner.encoder.prompt(trial_text(runner.anatomy, n, 2 * row)) for row, n in enumerate(lengths)]
        try:
            return _gap(runner, prompts, room) if room > 0 else 0.0
        except LenscopeError:
            return float("inf")

    return runner.measured.once(key, gap)


def _gap(runner: Runner, prompts: list[Prompt], tokens: int = TRIAL_TOKENS) -> float:
    """The deviation of the logits that generate() picks tokens from, against reading the text afresh."""
    steps: list[Tensor] = []
    batch = pad(prompts, "left", runner.input_device)
    with runner.exclusive.alone():
        watch = runner.hook(runner.n_layers, lambda h: steps.append(h[:, -1].clone()))
        try:
            running = Running(prompts, range(len(prompts)), len(prompts), batch, without_edits=True)
            written = _generate(runner, running, tokens, [])
        finally:
            watch.remove()
    generated: list[Tensor] = []
    expected: list[Tensor] = []
    for row, (prompt, ids) in enumerate(zip(prompts, written, strict=True)):
        for n in range(len(ids)):
            expected.append(runner.read_plain([*prompt.ids, *ids[:n]])[-1])
            generated.append(steps[n][row])
    return deviation(runner.own_logits(torch.stack(generated)), runner.own_logits(torch.stack(expected)))


def _grown(runner: Runner, prompts: Sequence[Prompt], written: Sequence[Sequence[int]], rows: Sequence[int]) -> Batch:
    """The texts of some rows so far, prompt and what was written, padded on the left."""
    texts = [Prompt("", (*prompts[i].ids, *written[i]), (), ()) for i in rows]
    return pad(texts, "left", runner.input_device)


def _generate(runner: Runner, running: Running, max_new_tokens: int, ends: list[int]) -> list[tuple[int, ...]]:
    """transformers' greedy generate on a left-padded batch."""
    batch = running.batch
    # A config of our own in place of the checkpoint's: generate() fills whatever is left open from the latter.
    pinned = GenerationConfig(
        do_sample=False, num_beams=1, eos_token_id=ends or None, pad_token_id=(ends or [0])[0], use_cache=True
    )
    own_config = runner.model.generation_config

    def look(h: Tensor) -> None:
        # the last position of every row is a token of its text: pads stand on the left
        runner.require_finite(h[:, -1], runner.n_layers)

    try:
        with runner.running(running), runner.watching(runner.n_layers, look):
            runner.model.generation_config = pinned
            model: Any = runner.model  # its generate comes from a mixin that type checkers do not see
            try:
                with single_tokens_as_texts(runner.anatomy.blocks):
                    ids: Tensor = model.generate(batch.ids, attention_mask=batch.mask, max_new_tokens=max_new_tokens)
            finally:
                runner.model.generation_config = own_config
    except FAILURES as error:
        if isinstance(error, LenscopeError | torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise LenscopeError(f"{runner.name}: transformers cannot generate with this model ({reason})") from error
    return [_until_end(row, ends) for row in ids[:, batch.ids.shape[1] :].tolist()]


def _recompute(
    runner: Runner, prompt: Prompt, number: int, total: int, before: Sequence[int], new: int, ends: list[int]
) -> list[int]:
    """Up to `new` greedy tokens without a cache: prompt and what was written are read from the start for every one."""
    written: list[int] = []
    last: list[Tensor] = []
    while len(written) < new and not (written and written[-1] in ends):
        ids = torch.tensor([[*prompt.ids, *before, *written]], device=runner.input_device)
        # the prompt itself, without what was written: edits name its positions
        running = Running([prompt], [number], total, Batch(ids, torch.ones_like(ids), (0,), (ids.shape[1],)))
        runner.capture(running, {runner.n_layers}, lambda _, h: last.append(h[0, -1]))
        written.append(int(wide(runner.own_logits(last.pop()[None])).argmax()))
    return written


def _until_end(row: list[int], ends: list[int]) -> tuple[int, ...]:
    stop = next((n + 1 for n, i in enumerate(row) if i in ends), len(row))
    return tuple(row[:stop])


def end_ids(runner: Runner) -> list[int]:
    """The token ids that end a text."""
    ends = getattr(runner.model.generation_config, "eos_token_id", None)
    if ends is None:
        ends = getattr(runner.model.config.get_text_config(), "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
