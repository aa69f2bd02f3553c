"""Greedy continuations of many prompts that begin alike, such as few-shot prompts: what they share is read once.

Knows: which prompts go on from one prefix, and when that gives what reading each of them gives.
Does not know: how prefixes are kept (prefix_cache.py), how a token is chosen (token_choice_and_end.py), what is asked.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lenscope.engine import exact_modes
from lenscope.engine.cache_layout import cache_layout
from lenscope.engine.prefix_cache import Prefixes
from lenscope.engine.staircase import Staircase
from lenscope.engine.token_choice_and_end import TokenChooser
from lenscope.models.language_model import LM, Continuation
from lenscope.models.progress import Progress
from lenscope.models.prompts import Prompt

# prompts that go on from one prefix together; with fewer of them it is not worth its own run
MOST_PROMPTS, FEWEST_PROMPTS = 128, 4
# tokens of a prefix that are worth sharing
FEWEST_SHARED_TOKENS = 8


@torch.no_grad()
def continue_prompts(
    lm: LM, prompts: Sequence[str | Prompt], max_new_tokens: int = 20, progress: Progress | None = None
) -> list[Continuation]:
    """As `lm.generate` of a list: the same tokens, sooner where prompts are equal up to their last line.

    A prefix is read once where this model's cache was measured to give the same numbers as reading anew.
    """
    many = [lm.prompt(p) for p in prompts]
    written: dict[int, tuple[int, ...]] = {}
    longest = max(map(len, many), default=0)
    # what lm.generate refuses it is left to refuse
    fits = max_new_tokens > 0 and (lm.context is None or longest + max_new_tokens <= lm.context)
    groups = [
        g for g in _groups_of_prompts(many) if fits and not lm.runner.editing and _shares(lm, many, g, max_new_tokens)
    ]
    prefixes = Prefixes(lm)
    for group in groups:
        written.update(
            zip(group, _continue_together(lm, [many[i] for i in group], max_new_tokens, prefixes), strict=True)
        )
        if progress is not None:
            progress(len(written), len(many))
    rest = [i for i in range(len(many)) if i not in written]
    for at in range(0, len(rest), MOST_PROMPTS):
        part = rest[at : at + MOST_PROMPTS]
        texts: list[str | Prompt] = [many[i] for i in part]
        continuations = lm.generate(texts, max_new_tokens)
        written.update({i: one.ids for i, one in zip(part, continuations, strict=True)})
        if progress is not None:
            progress(len(written), len(many))
    return [
        Continuation(p, written[i], tuple(lm.encoder.tokens(written[i])), lm.encoder.decode(written[i]))
        for i, p in enumerate(many)
    ]


def _groups_of_prompts(prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Prompts with the same text up to the last line, and as many tokens."""
    groups: dict[tuple[str, int], list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault((prompt.text[: prompt.text.rfind("\n") + 1], len(prompt)), []).append(i)
    for members in groups.values():
        for at in range(0, len(members), MOST_PROMPTS):
            yield members[at : at + MOST_PROMPTS]


def _shares(lm: LM, prompts: Sequence[Prompt], group: Sequence[int], new: int) -> bool:
    """Whether reading what a group has in common once is worth it, and exact at its lengths."""
    common = _common_prefix(prompts, group)
    if len(group) < FEWEST_PROMPTS or common < FEWEST_SHARED_TOKENS:
        return False
    return exact_modes.fastest_exact_mode(lm, common, len(prompts[group[0]]), new) == "cascade"


def _common_prefix(prompts: Sequence[Prompt], group: Sequence[int]) -> int:
    """How many tokens the prompts of a group share at their beginning, at most all but one."""
    table = np.array([prompts[i].ids for i in group])
    same = (table == table[0]).all(0)[:-1]
    return int(np.argmin(same)) if not same.all() else len(same)


def _continue_together(lm: LM, prompts: Sequence[Prompt], new: int, prefixes: Prefixes) -> list[tuple[int, ...]]:
    """The greedy continuations of prompts of one length, after their common prefix."""
    start = _common_prefix(prompts, range(len(prompts)))
    count, length = len(prompts), len(prompts[0])
    cache = prefixes.shared(prompts[0].ids, start, count, length - start + new)
    alone = np.zeros(count, dtype=np.int64)
    runner = Staircase(lm, cache, alone, alone, cache_layout(lm), _nothing)
    writer = TokenChooser(lm, count, new, (), 0.0, 1.0, 0)
    ids = torch.tensor([p.ids[start:] for p in prompts], device=lm.runner.input_device)
    written: list[list[int]] = [[] for _ in prompts]
    alive = np.arange(count)
    for step in range(new):
        tokens, _, ended = writer.choose(runner.run(ids)[:, 0], alive, step)
        for at, token in zip(alive.tolist(), tokens.tolist(), strict=True):
            written[at].append(token)
        going_on = np.flatnonzero(~ended)
        if not len(going_on) or step == new - 1:
            break
        alive = alive[going_on]
        runner.grow(going_on, tokens[going_on])
        ids = torch.from_numpy(tokens[going_on])[:, None].to(ids.device)
    return [tuple(one) for one in written]


def _nothing(layer: int, h: Tensor, rows: np.ndarray, fed: int) -> None:
    """No row is patched."""
