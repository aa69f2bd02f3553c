"""What the experiments on directions have in common: halves of the held-out text, layers, and how many directions.

Knows: that directions are found on one half and measured on the other, and what a repetition needs to know of it.
Does not know: how directions are found, what is measured of them.
"""

from dataclasses import replace
from typing import Any, NamedTuple

from lenscope.experiments.setting import Setting
from lenscope.models.layers import evenly_spaced
from lenscope.text.corpus import TokenBatch

# tokens of a row at most, rows of a batch
LENGTH, BATCH = 128, 8


class BasisText(NamedTuple):
    """Batches that `k` directions of each of the `layers` are found on, and batches that they are measured on."""

    finding: list[TokenBatch]
    measuring: list[TokenBatch]
    tokens: tuple[int, int]
    length: int
    layers: tuple[int, ...]
    k: int

    def inputs(self) -> dict[str, Any]:
        """What results depend on beside the setting."""
        return {"layers": list(self.layers), "k": self.k, "tokens": list(self.tokens)}

    def settings(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "tokens": list(self.tokens),
            "length": self.length,
            "directions": self.k,
            "layers": list(self.layers),
        }


def basis_text(setting: Setting, tokens: tuple[int, int], layers: int, k: int) -> BasisText:
    """So many tokens of each half of the held-out text, up to `layers` of the lens's layers, evenly spaced."""
    n_layers = setting.lm.n_layers
    numbers = evenly_spaced([n for n in setting.translators.layers(n_layers) if n < n_layers], layers)
    text = replace(setting.held_out, length=min(LENGTH, setting.corpus.length))
    finding, measuring = (list(p.batches(n, BATCH)) for p, n in zip(text.split(0.5), tokens, strict=True))
    return BasisText(finding, measuring, tokens, text.length, numbers, min(k, setting.lm.hidden_size))
