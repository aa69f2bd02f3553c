"""Texts of a few words, and covariances of their stored states by numpy."""

import numpy as np
import torch

WORDS = ["the", "cat", "sat", "mat", "France", "Paris", "capital", "test", "this", "is", "number", "zebra", "quick"]


def sentences(count=40, seed=0, words=120):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, words)) for _ in range(count)]


def stored(lm, batches):
    """By hooks on the transformers model: the states (P, L, D) of every position that counts and predicts a token."""
    found = []
    blocks = lm.model.model.layers
    for batch in batches:
        kept: list[torch.Tensor] = []
        hooks = [blocks[0].register_forward_pre_hook(lambda _, args, kept=kept: kept.append(args[0]))]
        hooks += [
            b.register_forward_hook(lambda _m, _a, out, kept=kept: kept.append(out if torch.is_tensor(out) else out[0]))
            for b in blocks
        ]
        with torch.no_grad():
            lm.model(batch.ids)
        for hook in hooks:
            hook.remove()
        counted = batch.counted.clone()
        counted[:, -1] = False
        found.append(torch.stack([h[counted] for h in kept], 1))
    return torch.cat(found).numpy()


def covariance(x):
    """By numpy, of states (P, L, D)."""
    return np.stack([np.cov(x[:, n].T, bias=True) for n in range(x.shape[1])])


def cosines(matrices):
    size = [np.linalg.norm(m) for m in matrices]
    return np.array([[np.trace(a.T @ b) / s / t for b, t in zip(matrices, size, strict=True)]
                     for a, s in zip(matrices, size, strict=True)])  # fmt: skip


def zeroed(m, top):
    """Without its largest eigencomponents, all of them computed."""
    values, vectors = np.linalg.eigh(m)
    values[len(values) - top :] = 0
    return vectors @ np.diag(values) @ vectors.T
