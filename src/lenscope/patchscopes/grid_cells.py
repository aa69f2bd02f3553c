"""Cells of grids: where a vector came from, where it went, and what was measured of the answer.

Knows: addresses of sources and targets, the measures of cells and their units. Does not know: how many cells there are,
how they are computed, files.
"""

from dataclasses import dataclass

# name → unit of what every cell may have; answers add "log_prob:ANSWER" and "pmi:ANSWER", in nats
MEASURES = {
    "max_probability": "probability of the top token, 0–1",
    "entropy": "nats",
    "kl": "nats, KL(unpatched ‖ patched)",
    "surprisal": "nats, of the top token under the source model's own prediction",
    "precision": "1 where the top token is the source model's own, else 0",
    "mean_log_prob": "nats per written token",
}
ANSWERS = {
    "log_prob": "nats, ln p(answer)",
    "pmi": "nats, ln p(answer | patched) - ln p(answer | unpatched)",
}


@dataclass(frozen=True)
class Source:
    """The address a vector came from; `label` alone where it came from no hidden state."""

    label: str
    model: str = ""
    text: str = ""
    token: str = ""
    position: int = -1
    layer: int = -1


@dataclass(frozen=True)
class Spot:
    """A target prompt: its text, its tokens' texts, and the positions that are patched."""

    text: str
    tokens: tuple[str, ...]
    positions: tuple[int, ...]
    below: str = "target"


@dataclass(frozen=True)
class Cell:
    """One cell of a grid."""

    source: Source
    target: Spot
    layer: int
    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    log_probs: tuple[float, ...]
    measures: dict[str, float]
    ended: str


ENDED = ("end", "stop", "length")
BELOW = ("target", "none", "source")


def unit_of(measure: str, contrast: float = 0.0) -> str:
    """The unit of a measure of cells, and of which distribution it is where patched runs were contrasted by α."""
    unit = MEASURES.get(measure) or ANSWERS[measure.split(":")[0]]
    if not contrast:
        return unit
    unit = unit.replace("| patched", "| contrasted").replace("‖ patched", "‖ contrasted")
    return f"{unit}, with contrast {contrast:g}"
