"""Many documents and few predictions of each, in groups of documents that are resampled together.

Knows: which positions go on counting, who is in which group, intervals from sums per group.
Does not know: what is measured.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch

from lenscope.errors import LenscopeError
from lenscope.text.corpus import Corpus, TokenBatch


def rows_of(corpus: Corpus, tokens: int) -> list[TokenBatch]:
    """The first rows of a corpus, one a batch, up to `tokens` tokens or all it has; LenscopeError if it has none."""
    rows: list[TokenBatch] = []
    try:
        for batch in corpus.batches(tokens, 1):
            rows.append(batch)
    except LenscopeError:
        if not rows:
            raise
    return rows


def thinned(batches: Iterable[TokenBatch], every: int) -> list[TokenBatch]:
    """The same rows, with every so many-th position counting: neighbours say much the same, documents do not."""
    rows = []
    for batch in batches:
        place = torch.arange(batch.ids.shape[1]) + batch.row[:, None]
        rows.append(replace(batch, counted=batch.counted & (place % every == 0)))
    return rows


def by_document(batches: Iterable[TokenBatch], groups: int) -> list[list[TokenBatch]]:
    """The batches of each group of documents, in which only these count; documents join the groups in turn.

    There are no more groups than documents, and none is empty.
    """
    listed = list(batches)
    turn: dict[int, int] = {}
    for batch in listed:
        for number in batch.document[:, :-1][batch.counted[:, :-1]].tolist():
            turn.setdefault(number, len(turn) % groups)
    by_group: list[list[TokenBatch]] = [[] for _ in range(min(groups, len(turn)))]
    for batch in listed:
        group = torch.tensor([[turn.get(d, -1) for d in row] for row in batch.document.tolist()])
        for n, part in enumerate(by_group):
            counted = batch.counted & (group == n)
            if counted[:, :-1].any():
                part.append(replace(batch, counted=counted))
    return by_group


def predicted(batches: Iterable[TokenBatch]) -> tuple[int, int | None]:
    """How many tokens the counted positions predict, and of how many bytes (None: not known)."""
    tokens, size = 0, 0
    known = True
    for batch in batches:
        counted = batch.counted[:, :-1]
        tokens += int(counted.sum())
        known = known and batch.bytes is not None
        size += 0 if batch.bytes is None else int(batch.bytes[:, 1:][counted].sum())
    return tokens, size if known else None
