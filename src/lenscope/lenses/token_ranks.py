"""Ranks of chosen tokens through the layers: what curves of pinned tokens are drawn from.

Knows: what is held of each token. Does not know: models, how ranks are counted, how they are drawn.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lenscope.contents import Brief
from lenscope.display.payload import packed, vocabulary_payload
from lenscope.files.parquet_tables import columns_frame


@dataclass(frozen=True, eq=False, repr=False)
class TokenRanks(Brief):
    """Ranks and log-probabilities of chosen tokens at every layer and position. `Lens.ranks` makes it.

    Attributes:
        ids: the chosen tokens, (n,).
        rank: how many tokens are strictly more probable, (n, L, P).
        log_prob: ln p in nats, (n, L, P).
        layers: the layers that were read.
        positions: the positions that were read.
        vocabulary: the text of every id.
    """

    ids: tuple[int, ...]
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    rank: np.ndarray
    log_prob: np.ndarray
    vocabulary: dict[int, str]
    model: str
    lens: str

    def to_dataframe(self) -> Any:
        """A row for each token, layer and position: its rank and its ln p.

        It is a data frame of pandas, or of polars where only that is installed; LenscopeError without both.
        """
        token, layer, position = np.indices(self.rank.shape).reshape(3, -1)
        names = {"token_id": np.array(self.ids)[token], "token": [self.vocabulary[self.ids[n]] for n in token]}
        places = {"layer": np.array(self.layers)[layer], "position": np.array(self.positions)[position]}
        return columns_frame({**names, **places, "rank": self.rank.reshape(-1), "log_prob": self.log_prob.reshape(-1)})

    def __repr__(self) -> str:
        size = f"{len(self.layers)} layers × {len(self.positions)} positions"
        return f"TokenRanks({[self.vocabulary[i] for i in self.ids]}: {size}, {self.lens})"

    def page_data(self) -> dict[str, Any]:
        """What a page shows of it, as JSON values: arrays are packed as `lenscope.display.payload` says."""
        head = {
            "kind": "ranks",
            "ids": list(self.ids),
            "layers": list(self.layers),
            "positions": list(self.positions),
            "vocabulary": vocabulary_payload(self.vocabulary),
            "model": self.model,
            "lens": self.lens,
        }
        return packed(head, {"rank": self.rank.astype(np.int32), "log_prob": self.log_prob.astype(np.float32)})
