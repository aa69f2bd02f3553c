"""Attention knockout: what an answer loses when some positions may not attend to others.

Knows: which attention is barred in which blocks, and what may not be.
Does not know: how keys are hidden from queries (engine/hidden_keys.py), how rows are run, what effects are saved as.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from lenscope.errors import LenscopeError
from lenscope.interventions.effects import Effects, TracedPrompt, effect_measures
from lenscope.interventions.prompt_cells import (
    Answers,
    Places,
    Prompts,
    answer_or_next_token,
    answers_after_prompt,
    answers_after_rows,
    as_effects,
    cell_layers,
    joined_tokens,
    layer_windows,
    one_for_each,
    positions_of,
    replacing_rows,
)
from lenscope.models.language_model import LM


@torch.no_grad()
def attention_knockout(
    lm: LM,
    prompts: Prompts,
    keys: Places = None,
    answers: Answers = None,
    *,
    queries: Places = -1,
    layers: Sequence[int] | None = None,
    window: int | None = None,
) -> Effects:
    """Hide positions from others in a window of blocks, and see what the answer loses (Geva et al. 2023).

    `keys` are hidden from `queries` (by default the last position, and the tokens of a longer answer after it) all at
    once, a substring meaning all its tokens; None: every position by itself. Layer l stands for the block between
    layers l - 1 and l, the centre of a window of `window` blocks, cut off at the ends: by default a fifth of all
    blocks, an odd number (9 of 48). `effect` is the change of the probability against the clean run; the paper's change
    in per cent is 100 · (exp(log_effect) - 1).

    Raises LenscopeError where a query would see nothing, or where the model's attention cannot be told what to hide.

    Args:
        lm: the model.
        prompts: one prompt or several.
        keys: positions that are hidden together; None: every position by itself.
        answers: what is scored; None: the model's own next token.
        queries: positions that they are hidden from.
        layers: the centres of windows, 1…n_layers; None: all.
        window: how many blocks a window has; None: a fifth of all.
    """
    batched, many = lm.encoder.prompts(prompts)
    n = lm.n_layers
    wide_by = max(1, n // 5 - (n // 5 + 1) % 2) if window is None else window
    numbers = cell_layers(lm, layers, 1)
    low, high = layer_windows(numbers, wide_by, 1, n)
    traced = []
    each = (one_for_each(value, many, batched) for value in (keys, answers, queries))
    for prompt, hidden, answer, looking in zip(many, *each, strict=True):
        marked = positions_of(prompt, looking)
        places = [(p,) for p in range(max(marked) + 1)] if hidden is None else [positions_of(prompt, hidden)]
        edges = [_edges(place, marked, len(prompt)) for place in places]
        parts = [
            (i * len(places) + j, low[i] - 1, high[i], *edge)
            for i in range(len(numbers))
            for j in range(len(places))
            for edge in edges[j]
        ]
        ids = answer_or_next_token(lm, prompt, answer)
        none = np.zeros(0, dtype=np.int64)
        run = replacing_rows(prompt, len(numbers) * len(places), torch.zeros(1, lm.hidden_size), none, none, none, none)
        lp = answers_after_rows(lm, replace(run, hidden_keys=np.array(parts)), [ids]).reshape(
            len(numbers), len(places), 1
        )
        base = answers_after_prompt(lm, prompt, [ids])
        about = TracedPrompt(prompt.text, prompt.tokens, tuple(places), joined_tokens(lm, ids), marked=marked)
        traced.append((about, effect_measures(lp, base), {"clean": np.exp(base[0]), "clean_log_prob": base[0]}))
    return as_effects(lm, "attention knockout", numbers, traced, {"window": wide_by})


def _edges(keys: Sequence[int], queries: Sequence[int], length: int) -> list[tuple[int, int, int]]:
    """(first query, query after the last, key) of what is barred; -1: the last position and all that follow it."""
    edges = []
    for q in queries:
        barred = [k for k in keys if k <= q]
        # the token before is in every window of local attention; without both, a query might see nothing
        if q in barred and (q == 0 or q - 1 in barred):
            if q == 0:
                raise LenscopeError("keys [0]: position 0 would see nothing at all; leave it visible to itself")
            raise LenscopeError(
                f"keys {[q - 1, q]}: position {q} would see neither itself nor position {q - 1}; leave one of them "
                "visible"
            )
        edges += [(q, -1 if q == length - 1 else q + 1, k) for k in barred]
    if not edges:
        raise LenscopeError(f"keys {list(keys)}: come after the queries {list(queries)}, which never see them")
    return edges
