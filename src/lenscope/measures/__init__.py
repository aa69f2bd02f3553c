"""What distributions over a vocabulary are compared by; they are never stored whole."""

from lenscope.measures.definitions import (
    entropy,
    js,
    kl,
    max_probability,
    precision,
    prediction_depth,
    rank,
    surprisal,
    total_variation,
)

__all__ = [
    "entropy",
    "js",
    "kl",
    "max_probability",
    "precision",
    "prediction_depth",
    "rank",
    "surprisal",
    "total_variation",
]
