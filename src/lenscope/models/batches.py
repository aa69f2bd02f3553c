"""Which prompts run together: near in length, within a memory budget, padded only where that changes nothing.

Knows: lengths. Does not know: models, or whether padding changes a model's numbers, which it is told.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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


def by_length(prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Indices of prompts that are read together: near in length, as many as fit in memory with all their layers."""
    run: list[int] = []
    for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        if run and len(prompts[i]) * (len(run) + 1) > TOKENS_PER_RUN // 8:
            yield run
            run = []
        run.append(i)
    if run:
        yield run
