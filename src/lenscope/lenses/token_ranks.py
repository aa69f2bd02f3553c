"""Ranks of chosen tokens through the layers: what curves of pinned tokens are drawn from.

Knows: what is held of each token. Does not know: models, how ranks are counted, how they are drawn.
"""

from dataclasses import dataclass

import numpy as np

from lenscope.contents import Brief


@dataclass(frozen=True, eq=False, repr=False)
class TokenRanks(Brief):
    """Of n chosen tokens at every layer and position of a prompt: rank and log-probability, (n, L, P) each.

    `rank` counts the tokens that are strictly more probable, `log_prob` is ln p in nats. `ids` (n,) are the tokens,
    `vocabulary` has their texts.
    """

    ids: tuple[int, ...]
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    rank: np.ndarray
    log_prob: np.ndarray
    vocabulary: dict[int, str]
    model: str
    lens: str

    def __repr__(self) -> str:
        size = f"{len(self.layers)} layers × {len(self.positions)} positions"
        return f"TokenRanks({[self.vocabulary[i] for i in self.ids]}: {size}, {self.lens})"
