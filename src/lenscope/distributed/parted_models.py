"""What a model whose weights are divided among processes keeps of the whole one: who it is, and decisions alike.

Knows: how its weights are hashed part by part, that all processes measure and decide the same, when it ends.
Does not know: how weights are divided (sharding.py, tensor_parallel.py), how messages are sent (processes.py).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lenscope.distributed.processes import Group
from lenscope.models.constituents import Part
from lenscope.models.identity import digest_of, keep_hashes
from lenscope.models.language_model import LM


def keep_identity(lm: LM, group: Group) -> None:
    """From now on a model is known by what it is now, whole or in parts; each process hashes some of its weights."""

    def digests(parts: Mapping[str, Part], dtype: torch.dtype | None) -> dict[str, bytes]:
        own: dict[str, bytes] = {}
        for n, (name, part) in enumerate(parts.items()):
            # all processes bring a weight together, one after the other
            whole = whole_tensor(part) if isinstance(part, Tensor) else part
            if n % group.world == group.rank:
                own[name] = digest_of(whole, dtype)
        every = group.gathered(own)
        return {name: every[n % group.world][name] for n, name in enumerate(parts)}

    keep_hashes(lm.model, digests)


def whole_tensor(t: Tensor) -> Tensor:
    """A tensor of which each process has a part, or none but this one, as a whole."""
    whole: Any = t.detach()
    return whole.full_tensor() if hasattr(whole, "full_tensor") else whole


@contextmanager
def together(lm: LM, group: Group) -> Iterator[None]:
    """Within the block all processes go by what the first one measures of a model; after it nobody can run it."""
    lm.runner.measured.agreed = group.from_first
    try:
        yield
    finally:
        lm.runner.measured.agreed = None
        lm.runner.exclusive.ended = (
            f"{lm.name}: its weights were divided among processes, which have parted; load it again"
        )
