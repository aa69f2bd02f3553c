"""Derangements: every item takes the place of another one, of another group, so that none keeps its own.

Knows: in which order groups stand in a ring, and how far an item looks on so that it meets another group.
Does not know: what items and groups are; it is given their random order where that comes from elsewhere.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import torch

from lenscope.errors import LenscopeError


def derange(groups: Sequence[Hashable], seed: int = 0) -> list[int]:
    """For each of N items the index of another one whose group differs, no item taken twice.

    Items in a random order of groups, largest group first, each take the one that is as far on as that group is large.
    Raises LenscopeError where a group has more than half of the items.
    """
    members: dict[Hashable, list[int]] = {}
    for n in torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist():
        members.setdefault(groups[n], []).append(n)
    largest = max(map(len, members.values()), default=0)
    if 2 * largest > len(groups) or not groups:
        raise LenscopeError(
            f"{largest} of {len(groups)} items share one group (such as an answer), so they cannot all be exchanged "
            "with items of another group; give items of which at most half share a group"
        )
    order = [n for group in sorted(members.values(), key=len, reverse=True) for n in group]
    return shift_ring(np.array(order), largest).tolist()


def shift_ring(order: np.ndarray, steps: int) -> np.ndarray:
    """For each of N items the one that stands `steps` places on in a ring, (N,).

    `order` (N,) names the items as they stand. Where those of a group stand together, each of its n items meets one of
    another group for n to N - n steps.
    """
    taken = np.empty(len(order), dtype=np.int64)
    taken[order] = np.roll(order, -steps)
    return taken
