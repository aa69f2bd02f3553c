"""Measures of predictions: pure functions of log-probabilities.

Knows: definitions, units (nats) and edge cases. Every function takes log-probabilities with the vocabulary last,
(..., V), and returns one number per leading index.
Does not know: models, layers, prompts. These are the oracles that the measures of streamed.py are tested against.
"""

import math

import torch
from torch import Tensor


def entropy(log_p: Tensor) -> Tensor:
    """H(p) = -Σ p ln p in nats, (..., V) → (...)."""
    return -_expect(log_p, log_p)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """D_KL(p ‖ q) = Σ p (ln p - ln q) in nats, (..., V) → (...).

    With p the model's final distribution and q a lens's, this is the tuned lens's loss (Belrose et al. 2023, Eq. 9).
    """
    return _expect(log_p, log_p - log_q)


def js(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Jensen–Shannon divergence ½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p + q) / 2, in nats: 0 … ln 2, (..., V) → (...)."""
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (kl(log_p, log_m) + kl(log_q, log_m)) / 2


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """½ Σ |p - q|: 0 … 1, the largest difference in the probability of any event, (..., V) → (...)."""
    return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2


def max_probability(log_p: Tensor) -> Tensor:
    """The probability of the most probable token, (..., V) → (...)."""
    return log_p.amax(-1).exp()


def surprisal(log_p: Tensor, token: Tensor) -> Tensor:
    """-ln p(token) in nats, (..., V) and (...) → (...).

    With the text's next token this is the cross-entropy of one prediction; with p the source model's distribution and
    the token a Patchscope's choice it is the surprisal of Ghandeharioun et al. 2024, §4.1.
    """
    return -log_p.gather(-1, token.unsqueeze(-1)).squeeze(-1)


def rank(log_p: Tensor, token: Tensor) -> Tensor:
    """How many tokens are strictly more probable than `token`: 0 is the top, (..., V) and (...) → (...)."""
    return (log_p > log_p.gather(-1, token.unsqueeze(-1))).sum(-1)


def precision(log_p: Tensor, token: Tensor, k: int = 1) -> Tensor:
    """Precision@k: 1.0 where `token` is among the k most probable, else 0.0, (..., V) and (...) → (...).

    Precision@1 with `token` the final distribution's top-1 is that of Ghandeharioun et al. 2024, §4.1.
    """
    return (rank(log_p, token) < k).to(log_p.dtype)


def prediction_depth(top1: Tensor) -> Tensor:
    """The first index from which on the top-1 token is the last one's, (L, ...) ids → (...).

    0 where it never changes, L - 1 where the last layer alone decides (Belrose et al. 2023, §4.3; Baldock et al. 2021).
    """
    agrees = (top1 == top1[-1:]).flip(0).to(torch.int64)
    return len(top1) - agrees.cumprod(0).sum(0)


def _expect(log_p: Tensor, values: Tensor) -> Tensor:
    # where p is 0, 0 · ln 0 is 0 by convention, not NaN
    return torch.where(log_p == -torch.inf, 0.0, log_p.exp() * values).sum(-1)
