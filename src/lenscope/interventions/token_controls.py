"""Controls of edits along tokens' directions: as long at every place, in directions that have nothing to do with them.

Knows: random directions, tokens as frequent as others, how a control is given the sizes of its edit.
Does not know: what edits do to an answer (token_edit_effects.py).
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.interventions.token_edits import ROWS, TokenEdit, projected, strongest_tokens
from lenscope.models.inputs import integer
from lenscope.models.language_model import LM
from lenscope.models.prompts import Encoder, Prompt

CONTROLS = ("random", "random token")
# How many tokens of a kind on either side are as frequent, and from how many on a kind has enough of them.
WITHIN, ENOUGH = 500, 32
# of each tokenizer, whose texts take a second to make
_known_kinds: WeakKeyDictionary[Encoder, list[np.ndarray]] = WeakKeyDictionary()
# the last tables of neighbours, by count and seed: those of a large vocabulary take a tenth of a second each
_known_tables: WeakKeyDictionary[Encoder, dict[tuple[int, int], Tensor]] = WeakKeyDictionary()
_TABLES = 8


def control_edit(edit: TokenEdit, control: str = "random", *, seed: int = 0) -> TokenEdit:
    """Give an edit as long as `edit` was at every layer and position of each prompt, along other directions.

    Run the prompts with `edit` first: the lengths are those that it had in its own run. "random" is one direction for
    all layers, drawn from a normal distribution; where k directions are taken out, a random span of k. "random token"
    are directions of other tokens: where one is swapped for another, from one other token to another one; where k are
    taken out of a state, the span of k others. Others are tokens of the same kind (a space in front, letters, a
    capital) whose id is at most 500 of that kind away: vocabularies are mostly ordered by frequency. What is taken out
    of a state is its part in the span, at the length of what `edit` took out.

    Args:
        edit: what `swap_tokens`, `steer_token` or `ablate_tokens` gave, after it ran on the prompts.
        control: "random" or "random token".
        seed: fixes what is drawn.

    Raises LenscopeError for another control, and, when it runs, for a prompt that `edit` has not run on.
    """
    if control not in CONTROLS:
        raise LenscopeError(f"control {control!r}: there are {' and '.join(map(repr, CONTROLS))}")
    name = f"{control} in place of {edit.name}"
    span = _spans(edit, control, integer(seed, "seed")) if edit.k is not None else None
    along = _directions(edit, control, integer(seed, "seed")) if span is None else None

    def change(layer: int, prompt: Prompt, h: Tensor, places: list[int]) -> tuple[Tensor, Tensor]:
        amounts = edit.at(layer, prompt).amounts.to(h)
        if along is not None:
            return amounts[:, None] * along(layer).to(h), amounts
        assert span is not None
        removed = torch.cat([projected(part, span(layer, part)) for part in h[places].split(ROWS)])
        lengths = removed.norm(dim=-1).clamp_min(torch.finfo(h.dtype).tiny)
        return -(amounts / lengths)[:, None] * removed, amounts

    return TokenEdit(edit.lens, edit.directions, name, edit.layers, edit.positions, [], change, edit.k)


def _directions(edit: TokenEdit, control: str, seed: int) -> Callable[[int], Tensor]:
    """The unit direction (D,) of a layer that takes the place of the edit's."""
    lm = edit.lens.lm
    if control == "random":
        drawn = _drawn_tokens(lm, 1, seed)[0]
        return lambda layer: drawn
    others = _other_tokens(lm, edit.tokens, seed)

    @cache
    def along(layer: int) -> Tensor:
        units = edit.directions.unit(others, layer)
        vector = units[-1] - units[0] if len(units) > 1 else units[0]
        return vector / vector.norm()

    return along


def _spans(edit: TokenEdit, control: str, seed: int) -> Callable[[int, Tensor], Tensor]:
    """k directions (N, k, D) of a layer for states (N, D)."""
    lm, k = edit.lens.lm, edit.k
    assert k is not None
    if control == "random":
        drawn = _drawn_tokens(lm, k, seed)
        return lambda layer, h: drawn.to(h).expand(len(h), -1, -1)
    others = neighbours(lm, k, seed)

    def span(layer: int, h: Tensor) -> Tensor:
        ids = strongest_tokens(edit.lens, h, layer, k).cpu()
        chosen = others[torch.arange(k), ids].flatten()
        return edit.directions.unit(chosen, layer).view(len(h), k, -1).to(h)

    return span


def _drawn_tokens(lm: LM, k: int, seed: int) -> Tensor:
    """k unit vectors (k, D) from a normal distribution."""
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randn(k, lm.hidden_size, generator=draw, dtype=torch.float64)
    return vectors / vectors.norm(dim=-1, keepdim=True)


def _other_tokens(lm: LM, tokens: Sequence[int], seed: int) -> Tensor:
    """As many other tokens, as frequent, no two the same."""
    for attempt in range(100):
        others = neighbours(lm, len(tokens), seed * 100 + attempt)[torch.arange(len(tokens)), torch.tensor(tokens)]
        if len({*others.tolist(), *tokens}) == 2 * len(tokens):
            return others
    raise LenscopeError(f"{lm.name}: has no other tokens as frequent as those of the edit; take the control 'random'")


def neighbours(lm: LM, count: int, seed: int) -> Tensor:
    """For each token of the vocabulary `count` others, (count, V): of its kind, near in id, drawn by a seed.

    All of them go the same way along the vocabulary, so what a token's neighbours are depends on no prompt.
    """
    tables = _known_tables.setdefault(lm.encoder, {})
    if (count, seed) not in tables:
        tables[count, seed] = _table_of_neighbours(lm, count, seed)
        if len(tables) > _TABLES:
            del tables[next(iter(tables))]
    return tables[count, seed]


def _table_of_neighbours(lm: LM, count: int, seed: int) -> Tensor:
    random, table = np.random.default_rng(seed), np.zeros((count, lm.vocab_size), dtype=np.int64)
    kinds = _known_kinds.get(lm.encoder)
    if kinds is None:
        kinds = _known_kinds[lm.encoder] = _control_kinds(lm)
    for ids in kinds:
        reach = min(WITHIN, (len(ids) - 1) // 2)
        steps = np.concatenate([np.arange(-reach, 0), np.arange(1, reach + 1)])
        drawn = random.choice(steps, count, replace=len(steps) < count)
        table[:, ids] = ids[(np.arange(len(ids)) + drawn[:, None]) % len(ids)]
    commonest = max(kinds, key=len)
    marks = np.setdiff1d(np.arange(lm.vocab_size), np.concatenate(kinds))
    if len(marks):
        table[:, marks] = table[:, commonest[np.searchsorted(commonest, marks) % len(commonest)]]
    return torch.from_numpy(table)


def _control_kinds(lm: LM) -> list[np.ndarray]:
    """The ids of each kind, ascending, none special: by the space in front, letters alone, a capital first.

    Kinds of few tokens are one kind.
    """
    spelling = lm.encoder.spelling
    if spelling is None:
        return [np.arange(lm.vocab_size)]
    kinds: dict[tuple[bool, ...], list[int]] = defaultdict(list)
    for n, text in enumerate(lm.encoder.tokens(range(lm.vocab_size))):
        if n not in spelling.special:
            bare = text.strip()
            kinds[text[:1].isspace(), bare.isalpha(), bare[:1].isupper()].append(n)
    sizes = sorted(kinds.values(), key=len)
    enough = [ids for ids in sizes if len(ids) >= ENOUGH]
    few = [n for ids in sizes if len(ids) < ENOUGH for n in ids]
    if len(few) < ENOUGH and enough:
        few += enough.pop()
    return [np.array(sorted(ids)) for ids in (*enough, few) if ids]
