"""Activation patching: what a state of one prompt's run does to an answer in the run of another.

Knows: which positions of two prompts stand for each other, and what part of the way an answer recovers.
Does not know: how rows are run, what effects are saved as.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lenscope.errors import LenscopeError
from lenscope.interventions.effects import Effects, TracedPrompt, base_run_totals, effect_measures
from lenscope.interventions.prompt_cells import (
    Answers,
    Prompts,
    answer_or_next_token,
    answers_after_prompt,
    answers_after_rows,
    as_effects,
    cell_layers,
    joined_tokens,
    layer_windows,
    one_for_each,
    replacing_rows,
)
from lenscope.models.language_model import LM
from lenscope.models.prompts import Position, Positions, Prompt

# below so many nats between the clean and the corrupted run, what was recovered is rounding
LEAST_NATS = 0.01


@torch.no_grad()
def activation_patching(
    lm: LM,
    clean: Prompts,
    corrupted: Prompts,
    answers: Answers = None,
    alternatives: Answers = None,
    *,
    layers: Sequence[int] | None = None,
    positions: Positions | Sequence[tuple[Position, Position]] | None = None,
    window: int = 1,
) -> Effects:
    """Write states of a clean prompt's run into a corrupted prompt's run, and see which restore the answer (denoising).

    Each cell writes the clean run's state at one layer and position over the corrupted run's (at `window` layers around
    it, cut off at the ends). Swap the prompts for noising. The tokens of the two must align one to one; else give
    `positions` as pairs (clean, corrupted), a substring naming its last token.

    `recovered` is the part of the way from the corrupted to the clean run, of ln p(answer), or of ln p(answer) - ln
    p(alternative) (between single tokens: their logits' difference) where `alternatives` are given; NaN where the two
    runs are less than 0.01 nats apart. Raises LenscopeError where prompts of unequal length are given without pairs.

    Args:
        lm: the model.
        clean: the prompts whose states are written.
        corrupted: the prompts whose runs are patched, one for each clean one.
        answers: what is scored; None: the clean run's own next token.
        alternatives: what answers are compared with; None: nothing.
        layers: the layers of cells; None: all.
        positions: where states are written, or pairs (clean, corrupted); None: everywhere.
        window: how many layers around a cell's are patched.
    """
    batched, many = lm.encoder.prompts(clean)
    _, others = lm.encoder.prompts(corrupted)
    if len(many) != len(others):
        raise LenscopeError(f"{len(many)} clean and {len(others)} corrupted prompts: give one of each to a pair")
    numbers = cell_layers(lm, layers, 0)
    low, high = layer_windows(numbers, window, 0, lm.n_layers)
    traced = []
    for prompt, other, answer, second in zip(
        many, others, one_for_each(answers, many, batched), one_for_each(alternatives, many, batched), strict=True
    ):
        pairs = _position_pairs(prompt, other, positions)
        asked = [answer_or_next_token(lm, prompt, a) for a in ([answer] if alternatives is None else [answer, second])]
        states = lm.read(prompt).tensor[0]
        parts = []
        for n, (a, b) in enumerate((low[i], high[i]) for i in range(len(numbers)) for _ in pairs):
            source, target = pairs[n % len(pairs)]
            parts += [(n, at, target, at * len(prompt) + source) for at in range(a, b + 1)]
        rows = replacing_rows(other, len(numbers) * len(pairs), states.flatten(0, 1), *np.array(parts).T)
        lp = answers_after_rows(lm, rows, asked).reshape(len(numbers), len(pairs), -1)
        whole, base = answers_after_prompt(lm, prompt, asked), answers_after_prompt(lm, other, asked)
        measures = effect_measures(lp[..., :1], base[:1])
        totals = base_run_totals(whole[0], base[:1])
        now, full, none = lp[..., 0], whole[0], base[0]
        if alternatives is not None:
            now, full, none = lp[..., 0] - lp[..., 1], whole[0] - whole[1], base[0] - base[1]
            measures["difference"] = now
            totals |= {"clean_difference": full, "corrupted_difference": none}
        apart = full - none
        measures["recovered"] = (now - none) / apart if abs(apart) >= LEAST_NATS else np.full_like(now, np.nan)
        answered, rival = [*(joined_tokens(lm, ids) for ids in asked), ""][:2]
        about = TracedPrompt(
            other.text, other.tokens, tuple((b,) for _, b in pairs), answered, rival, other=prompt.text
        )
        traced.append((about, measures, totals))
    return as_effects(lm, "activation patching", numbers, traced, {"window": window})


def _position_pairs(clean: Prompt, corrupted: Prompt, positions: Any) -> list[tuple[int, int]]:
    """Pairs of positions, of the clean and of the corrupted prompt."""
    several = positions if isinstance(positions, list | tuple) else []
    if several and all(isinstance(p, tuple) and len(p) == 2 for p in several):
        return [(clean.position(a), corrupted.position(b)) for a, b in several]
    if len(clean) != len(corrupted):
        raise LenscopeError(
            f"the clean prompt has {len(clean)} tokens, the corrupted one {len(corrupted)}: give positions as pairs "
            "(clean, corrupted), or prompts of equal length"
        )
    return [(p, p) for p in corrupted.positions(positions)]
