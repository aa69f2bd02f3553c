"""Text as the predictions that count on it: states of all layers, next tokens, and what is resampled as one.

Knows: which positions of texts, rows of ids and batches of a corpus predict a token, and the bytes of that token.
Does not know: what is measured of a prediction.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import length_hint
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.batches import TOKENS_PER_RUN
from lenscope.contents import Brief
from lenscope.corpus import TokenBatch
from lenscope.errors import LenscopeError
from lenscope.inputs import elements, is_integer
from lenscope.model import LM
from lenscope.packing import counted, mark_ids, text_bytes
from lenscope.prompts import Prompt

# A text, the ids of one row, or many rows of a corpus.
Rows = Iterable[str | Sequence[int] | TokenBatch]
# progress(items of the text done, items in all or 0 where not known)
Progress = Callable[[int, int], None]

# What is resampled is kept apart up to this number, then grouped, so that memory does not grow with the text.
UNITS = 1000


@dataclass(frozen=True, eq=False)
class _Row:
    """A row's prompt, its positions that count, and for each the unit it belongs to and the bytes of the next token."""

    prompt: Prompt
    positions: np.ndarray
    units: np.ndarray
    sizes: np.ndarray | None


@dataclass(frozen=True, eq=False, repr=False)
class Predictions(Brief):
    """P predictions of some rows: states (P, L, D) of the layers asked for, next tokens, units and their bytes (P,)."""

    h: Tensor
    targets: Tensor
    units: np.ndarray
    sizes: np.ndarray | None
    rows: int
    ids: bytes

    def hashed(self, digest: Any) -> Any:
        """A copy of a digest with the ids of these rows added."""
        copy = digest.copy()
        copy.update(self.ids)
        return copy


def predictions(lm: LM, rows: Rows, layers: tuple[int, ...], progress: Progress | None) -> Iterator[Predictions]:
    """The predictions of the text in batches whose states fit in memory together; rows without any are left out."""
    total, done = length_hint(rows, 0), 0
    held: list[_Row] = []
    for item, some in _rows(lm, rows):
        for row in some:
            longest = max(len(row.prompt), *(len(r.prompt) for r in held), 1)
            if held and longest * (len(held) + 1) > TOKENS_PER_RUN // 8:
                yield _read(lm, held, layers)
                held = []
                if progress is not None:
                    progress(done, total)
            held.append(row)
        done = item
    if held:
        yield _read(lm, held, layers)
        if progress is not None:
            progress(done, total)


def each_row(rows: Any) -> Any:
    """Texts, rows of ids or batches to be gone through once; LenscopeError for what is one text, or no list at all.

    A tokenizer's output is rows of the ids that its mask shows. What comes as an iterator is not read ahead.
    """
    if isinstance(rows, str | Prompt):
        raise LenscopeError("rows: is one string; give a list of texts, or of rows of token ids")
    if isinstance(rows, Iterator) or (isinstance(rows, Iterable) and not hasattr(rows, "__getitem__")):
        return rows if not isinstance(rows, set | frozenset) else elements(rows, "a list of texts")
    found = elements(rows, "a list of texts, of rows of token ids, or of batches of a corpus")
    if any(map(is_integer, found)):
        raise LenscopeError("rows: is one row of token ids; give a list of rows")
    return found


def _rows(lm: LM, rows: Rows) -> Iterator[tuple[int, list[_Row]]]:
    """The rows of each item of the text, after its number."""
    rows = each_row(rows)
    marks = mark_ids(lm)
    units: dict[tuple[str, int], int] = {}

    def unit(kind: str, number: int) -> int:
        return units.setdefault((kind, number), len(units) % UNITS)

    for number, item in enumerate(rows, 1):
        if isinstance(item, TokenBatch):
            yield number, [row for n in range(len(item.ids)) for row in _of_corpus(lm, item, n, unit)]
            continue
        prompt = lm.prompt(item)
        positions = np.flatnonzero(counted(prompt.ids, marks, skip=0)[:-1])
        size = None
        if isinstance(item, str):
            size = text_bytes(prompt.text, [stop for _, stop in prompt.spans])[positions + 1].astype(float)
        own = np.full(len(positions), unit("row", number)) if len(positions) else positions
        yield number, [_Row(prompt, positions, own, size)] if len(positions) else []


def _of_corpus(lm: LM, batch: TokenBatch, n: int, unit: Callable[[str, int], int]) -> list[_Row]:
    positions = batch.counted[n, :-1].nonzero()[:, 0].numpy()
    own = np.array([unit("document", d) for d in batch.document[n, positions].tolist()])
    size = None if batch.bytes is None else batch.bytes[n, positions + 1].numpy().astype(float)
    return [_Row(lm.prompt(batch.ids[n].tolist()), positions, own, size)] if len(positions) else []


def _read(lm: LM, rows: list[_Row], layers: tuple[int, ...]) -> Predictions:
    tensor = lm.read([r.prompt for r in rows], layers).tensor
    row = torch.tensor(np.repeat(np.arange(len(rows)), [len(r.positions) for r in rows]), device=tensor.device)
    positions = torch.tensor(np.concatenate([r.positions for r in rows]), device=tensor.device)
    ids = [np.array(r.prompt.ids, dtype=np.int64) for r in rows]
    following = np.concatenate([i[r.positions + 1] for i, r in zip(ids, rows, strict=True)])
    sizes = [r.sizes for r in rows if r.sizes is not None]
    return Predictions(
        h=tensor[row, :, positions],
        targets=torch.tensor(following, device=tensor.device),
        units=np.concatenate([r.units for r in rows]),
        sizes=np.concatenate(sizes) if len(sizes) == len(rows) else None,
        rows=len(rows),
        ids=b"".join(i.tobytes() for i in ids),
    )
