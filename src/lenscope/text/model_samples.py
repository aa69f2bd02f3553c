"""Text that a model writes itself: rows of tokens drawn at temperature 1, each by its own random numbers.

Knows: how rows are started, drawn together on the model's cache, and go on after an end of text.
Does not know: what the rows are for.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lenscope.engine import sweep
from lenscope.engine.patched_rows import PatchedRows
from lenscope.measures.streamed import WHOLE_ROWS_BYTES
from lenscope.models import generation
from lenscope.models.language_model import LM

# Tokens that a row starts with where a model has no token to start a text: drawn from the whole vocabulary.
STARTERS = 4


def sample(lm: LM, numbers: Sequence[int], length: int, first: tuple[int, ...], seed: Sequence[int]) -> np.ndarray:
    """Rows (N, length) of token ids, drawn from the model's own distribution (temperature 1, the whole vocabulary).

    A row starts with `first`, or with 4 random tokens where that is empty. After a token that ends a text `first`
    follows again, unless it is such a token itself. Row n is fixed by `seed` and `numbers[n]` alone, up to rounding:
    where two tokens' probabilities meet, the rows that are drawn together can decide.

    Args:
        lm: the model that writes.
        numbers: the rows' numbers (N,).
        length: tokens of a row.
        first: the tokens that a row starts with.
        seed: numbers that fix all rows.
    """
    drawn = np.stack([np.random.default_rng((*seed, n)).random(STARTERS + length) for n in numbers])
    known = lm.encoder.vocab_size
    starts = [first or tuple((u[:STARTERS] * known).astype(int).tolist()) for u in drawn]
    starts = [s[:length] for s in starts]
    targets = dict.fromkeys(starts)
    place = {s: n for n, s in enumerate(targets)}
    shown = len(starts[0])
    out = np.zeros((len(numbers), length), dtype=np.int64)
    out[:, :shown] = starts
    if shown == length:
        return out
    ends = np.array([i for i in generation.end_ids(lm.runner) if i not in first], dtype=np.int64)
    # how many tokens of `first` are still to be written
    due = np.zeros(len(numbers), dtype=np.int64)

    def choose(h: Tensor, which: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ids = _draw(lm, h, drawn[which, STARTERS + step])
        if first:
            again = due[which] > 0
            ids = np.where(again, np.array(first)[-due[which]], ids)
            due[which] = np.where(again, due[which] - 1, len(first) * np.isin(ids, ends))
        out[which, shown + step] = ids
        return ids, np.zeros(len(ids)), np.zeros(len(ids), dtype=bool)

    nothing = np.zeros(0, dtype=np.int64)
    plan = PatchedRows(
        prompts=tuple(lm.prompt(s) for s in targets),
        target=np.array([place[s] for s in starts]),
        vectors=torch.zeros(0, lm.hidden_size, dtype=lm.dtype),
        row=nothing,
        layer=nothing,
        position=nothing,
        vector=nothing,
        op=nothing,
        ops=(),
    )
    for _ in sweep.generate(lm, plan, choose, length - shown):
        pass
    return out


def _draw(lm: LM, h: Tensor, uniform: np.ndarray) -> np.ndarray:
    """One token per state h (n, D): where the cumulated probability exceeds a uniform number."""
    ids = []
    group = max(1, WHOLE_ROWS_BYTES // (8 * lm.vocab_size))
    for part, u in zip(h.split(group), torch.from_numpy(uniform).split(group), strict=True):
        total = lm.unembed(part)[:, : lm.encoder.vocab_size].double().softmax(-1).cumsum(-1)
        at = torch.searchsorted(total, u[:, None].to(total) * total[:, -1:], right=True)
        ids.append(at[:, 0].clamp_max(total.shape[1] - 1).cpu().numpy())
    return np.concatenate(ids)
