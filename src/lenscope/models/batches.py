"""Which prompts run together: near in length, within a memory budget, padded only where that changes nothing.

Knows: lengths, padding, what is said of a batch that is running.
Does not know: models, or whether padding changes a model's numbers: whoever asks for groups knows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.models.prompts import Prompt


@dataclass(frozen=True, repr=False)
class Batch(Brief):
    """Prompts padded to one length: ids (B, T), mask (B, T), and per row how many pads stand before and its length."""

    ids: Tensor
    mask: Tensor
    before: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def padded(self) -> bool:
        """Whether any row is padded at all."""
        return len(set(self.lengths)) > 1


# Padded tokens that run through the model at once: bounds the activations of long lists of prompts.
TOKENS_PER_RUN = 8192
# Of so many parts of them the states at all layers are held at once.
PARTS = 8

Item = TypeVar("Item")


def length_groups(prompts: Sequence[Prompt], together: Callable[[int, int], bool]) -> Iterator[list[int]]:
    """Indices of prompts that run together: near in length, and of equal length unless `together` allows more.

    `together(a, b)` says whether prompts of a to b tokens, padded to one length, are each as if they ran alone.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    group: list[int] = []
    for i in order:
        length = len(prompts[i])
        full = length * (len(group) + 1) > TOKENS_PER_RUN
        shortest = len(prompts[group[0]]) if group else length
        if group and (full or (length != shortest and not together(shortest, length))):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def pad(prompts: Sequence[Prompt], side: str, device: torch.device) -> Batch:
    """Stack prompts, padded on the "right" (reading: no position moves) or the "left" (generating)."""
    length = max(len(p) for p in prompts)
    before = tuple(length - len(p) if side == "left" else 0 for p in prompts)
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    mask = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, (prompt, start) in enumerate(zip(prompts, before, strict=True)):
        ids[row] = prompt.ids[-1]  # pads are masked; a real id keeps models with a small vocabulary in range
        ids[row, start : start + len(prompt)] = torch.tensor(prompt.ids)
        mask[row, start : start + len(prompt)] = 1
    return Batch(ids.to(device), mask.to(device), before, tuple(len(p) for p in prompts))


@dataclass
class Running:
    """The batch that a model is running: its prompts, their numbers among all that were asked for, and the padding.

    To runs `without_edits`, which measure the model itself, no edit applies. `blocks` are the `with` blocks of edits
    that are open in the thread or task that runs the batch: those of others do not apply to it. `passes` counts forward
    passes: during generation only the first one, or any that feeds the prompt again, covers the prompt's positions.
    """

    prompts: Sequence[Prompt]
    numbers: Sequence[int]
    total: int
    batch: Batch
    without_edits: bool = False
    passes: int = 0
    blocks: tuple[Any, ...] = ()

    @classmethod
    def of_prompts(cls, prompts: Sequence[Prompt], device: torch.device, *, without_edits: bool = False) -> "Running":
        """All the prompts that were asked for, to be read: padded on the right."""
        batch = pad(prompts, "right", device)
        return cls(prompts, range(len(prompts)), len(prompts), batch, without_edits)

    @classmethod
    def of_ids(cls, ids: Tensor) -> "Running":
        """Rows of token ids (B, T) without padding, to which no edit applies."""
        prompts = [Prompt("", tuple(row), (), ()) for row in ids.tolist()]
        batch = Batch(ids, torch.ones_like(ids), (0,) * len(ids), (ids.shape[1],) * len(ids))
        return cls(prompts, range(len(ids)), len(ids), batch, without_edits=True)

    def covers_prompt(self, length: int) -> bool:
        """Whether a pass over `length` tokens holds the prompt."""
        return self.passes == 1 or 1 < length >= self.batch.ids.shape[1]


def rows_per_run(length: int) -> int:
    """How many rows of `length` tokens run through the model at once."""
    return max(1, TOKENS_PER_RUN // length)


def in_order(items: Iterable[Item], length: Callable[[Item], int], most: int | None = None) -> Iterator[list[Item]]:
    """Items that are read together, in their order: as many as fit in memory, padded, with all their layers.

    These are `most` tokens, by default what a pass reads. No item is taken from `items` before those in front of it are
    needed.
    """
    most = TOKENS_PER_RUN // PARTS if most is None else most
    group: list[Item] = []
    longest = 0
    for item in items:
        longest = max(longest, length(item))
        if group and longest * (len(group) + 1) > most:
            yield group
            group, longest = [], length(item)
        group.append(item)
    if group:
        yield group


def by_length(prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Indices of prompts that are read together: near in length, as many as fit in memory with all their layers."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    return in_order(order, lambda i: len(prompts[i]))
