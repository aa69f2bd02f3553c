"""Scores of words that are not said, from ranks written by hand."""

import numpy as np

from lenscope.experiments.jacobian_lens_paper.thought_scores import KS, ThoughtScores


def scores_of(rank, random_hits=None):
    """Scores of ranks (F, N, L, W) alone; nothing of controls."""
    rank = np.asarray(rank, dtype=np.int32)
    f, n, layers, _ = rank.shape
    at = np.zeros((f, n, layers, len(KS))) if random_hits is None else random_hits
    nothing = np.zeros((f, n, layers))
    return ThoughtScores(rank, at, at.max(2), nothing, at * 0, at.max(2) * 0, nothing)
