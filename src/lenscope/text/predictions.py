"""Text as the predictions that count on it: states of all layers, next tokens, and what is resampled as one.

Knows: which positions of texts, rows of ids and batches of a corpus count, and the bytes of the token that follows.
Does not know: what is measured of a prediction.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import length_hint
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.distributed.processes import Group
from lenscope.errors import LenscopeError
from lenscope.models.batches import in_order
from lenscope.models.inputs import elements, is_integer, shown
from lenscope.models.language_model import LM
from lenscope.models.progress import Progress
from lenscope.models.prompts import Prompt
from lenscope.text.corpus import TokenBatch
from lenscope.text.packing import counted_positions, mark_ids, text_bytes

# A text, the ids of one row, or many rows of a corpus.
TextRows = Iterable[str | Sequence[int] | TokenBatch]

# What is resampled is kept apart up to this number, then grouped, so that memory does not grow with the text.
UNITS = 1000


@dataclass(frozen=True, eq=False)
class Row:
    """A row of T tokens and what is known of each (T,): whether it counts, the unit it is of, its bytes of text.

    `units` are numbers of documents where `kind` is "document", of texts or rows of ids where it is "row".
    """

    prompt: Prompt
    counted: np.ndarray
    kind: str
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


@dataclass
class ReadBefore:
    """What an earlier reading of a text has read: its first `rows` rows that count, and the SHA-256 of their ids.

    `counts` are the predictions of each unit of them, where that is known. `digest` is of the rows that were passed
    over since, all of them when the first predictions behind them are there; `refusal` is said of another text.
    """

    rows: int
    sha256: str
    counts: np.ndarray | None = None
    digest: Any = field(default_factory=hashlib.sha256)
    refusal: str = "rows: are not those that were read before; give the same text"


@dataclass
class TextShare:
    """The batches of a text that this process reads, every world-th of them, and what the whole text is.

    `rows` counts the rows that count of all processes, `units` their units, `digest` is the SHA-256 of their ids. With
    `evenly` all processes run the model equally often, on rows of one length, as one whose blocks are divided must.
    """

    group: Group
    evenly: bool
    rows: int = 0
    units: int = 0
    batches: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    first: Prompt | None = None

    def take(self, group: list[Row], known: dict[tuple[str, int], int]) -> None:
        """Count a batch, whoever reads it; `known` numbers its units. LenscopeError for another length."""
        self.first = group[0].prompt if self.first is None else self.first
        if self.evenly and {len(row.prompt) for row in group} != {len(self.first)}:
            raise LenscopeError(
                "rows: are of several lengths, and a model whose blocks are divided reads rows of one length; give the "
                "batches of one corpus"
            )
        numbers = _numbered(group, known)
        self.units = max(self.units, int(numbers.max()) + 1)
        self.rows, self.batches = self.rows + len(group), self.batches + 1
        self.digest.update(_bytes_of_ids(group))

    @property
    def runs_once_more(self) -> bool:
        """Whether others have read a batch more than this process, which has to run the model as often."""
        over = self.batches % self.group.world
        return self.evenly and 0 < over <= self.group.rank


def predictions(
    lm: LM,
    rows: TextRows,
    layers: tuple[int, ...],
    progress: Progress | None,
    before: ReadBefore | None = None,
    share: TextShare | None = None,
) -> Iterator[Predictions]:
    """The predictions of the text in batches whose states fit in memory together; LenscopeError where there is none.

    Of a corpus, rows without any are left out; one's own texts and rows of ids without any are refused. What was read
    `before` is passed over, and what is behind it comes in the batches of a reading from the start; LenscopeError for
    a text that begins with other rows. Of a text that several processes `share` each gets the batches of its own, with
    units as in the whole text.

    Args:
        lm: the model that predicts.
        rows: the text.
        layers: which layers are read.
        progress: called with how much of the text is read, and how much there is.
        before: what is passed over.
        share: which batches are this process's; None: all.
    """
    total, done, any_read = length_hint(rows, 0), 0, False
    known: dict[tuple[str, int], int] = {}
    passed, counts = 0, np.zeros(UNITS)

    def each() -> Iterator[Row]:
        nonlocal done
        for item, counting in counted_rows(lm, rows, 1):
            yield from counting
            done = item

    for group in in_order(each(), lambda row: len(row.prompt)):
        any_read = True
        if share is not None:
            mine = share.batches % share.group.world == share.group.rank
            share.take(group, known)
            if not mine:
                continue
        if before is not None and passed < before.rows:
            passed += len(group)
            before.digest.update(_bytes_of_ids(group))
            np.add.at(counts, _numbered(group, known), 1)
            if passed >= before.rows:
                same = passed == before.rows and before.digest.hexdigest() == before.sha256
                if not same or (before.counts is not None and not np.array_equal(before.counts, counts[: len(known)])):
                    raise LenscopeError(before.refusal)
            continue
        yield _read(lm, group, layers, known)
        if progress is not None:
            progress(done, total)
    if before is not None and passed < before.rows:
        raise LenscopeError(before.refusal)
    if share is not None and share.first is not None and share.runs_once_more:
        lm.read(share.first, layers)
    if not any_read:
        raise nothing_counts("prediction")


def nothing_counts(what: str) -> LenscopeError:
    """The error of text without a single position, or prediction, that counts."""
    return LenscopeError(
        f"rows: no {what} counts; give at least one text or row of token ids, with three tokens or more"
    )


def each_row(rows: Any) -> Any:
    """Texts, rows of ids or batches to be gone through once; LenscopeError for what is one text, or no list at all.

    A tokenizer's output is rows of the ids that its mask shows. What comes as an iterator is not read ahead.
    """
    if isinstance(rows, str | Prompt):
        raise LenscopeError("rows: is one string; give a list of texts, or of rows of token ids")
    if isinstance(rows, Iterator) or (isinstance(rows, Iterable) and not hasattr(rows, "__getitem__")):
        return rows if not isinstance(rows, set | frozenset) else elements(rows, "a list of texts")
    listed = elements(rows, "a list of texts, of rows of token ids, or of batches of a corpus")
    if any(map(is_integer, listed)):
        raise LenscopeError("rows: is one row of token ids; give a list of rows")
    return listed


def counted_rows(lm: LM, rows: TextRows, ahead: int) -> Iterator[tuple[int, list[Row]]]:
    """The rows of each item of the text that have positions that count, after the item's number.

    Of a text or row of ids those count that a corpus counts by default: not position 0, an attention sink whatever its
    token, and no mark. A position counts only where `ahead` tokens follow it. Raises LenscopeError for a text or row of
    ids without any: before anything is yielded, unless the items come as an iterator.
    """
    given = each_row(rows)
    marks = mark_ids(lm)
    if isinstance(given, list):
        # refused before the model runs: no work is lost
        for item in given:
            if not isinstance(item, TokenBatch):
                _of_item(lm, item, 0, marks, ahead)
    for number, item in enumerate(given, 1):
        if isinstance(item, TokenBatch):
            yield number, _of_corpus(lm, item, ahead)
        else:
            yield number, [_of_item(lm, item, number, marks, ahead)]


def _of_item(lm: LM, item: Any, number: int, marks: np.ndarray, ahead: int) -> Row:
    prompt = lm.prompt(item)
    counts = _followed(counted_positions(prompt.ids, marks), ahead)
    if not counts.any():
        ends = "first does" if not ahead else "first and the last do"
        raise LenscopeError(
            f"rows: {shown(item)} has no position that counts: of its tokens ({len(prompt)}) the {ends} not count, nor "
            f"do special ones; give a text of {2 + ahead} tokens or more, or leave it out"
        )
    sizes = text_bytes(prompt.text, [stop for _, stop in prompt.spans]) if isinstance(item, str) else None
    return Row(prompt, counts, "row", np.full(len(prompt), number), sizes)


def _of_corpus(lm: LM, batch: TokenBatch, ahead: int) -> list[Row]:
    counting = []
    for n, ids in enumerate(batch.ids):
        counts = _followed(batch.counted[n].numpy(), ahead)
        if counts.any():
            sizes = None if batch.bytes is None else batch.bytes[n].numpy()
            counting.append(Row(lm.prompt(ids.tolist()), counts, "document", batch.document[n].numpy(), sizes))
    return counting


def _followed(counts: np.ndarray, ahead: int) -> np.ndarray:
    """Which positions (T,) count and have `ahead` tokens behind them."""
    return counts & (np.arange(len(counts)) < len(counts) - ahead)


def _read(lm: LM, rows: list[Row], layers: tuple[int, ...], known: dict[tuple[str, int], int]) -> Predictions:
    """The predictions of some rows; `known` numbers the units, in the order in which they come."""
    tensor = lm.read([r.prompt for r in rows], layers).tensor
    at = [np.flatnonzero(r.counted) for r in rows]
    row = torch.tensor(np.repeat(np.arange(len(rows)), list(map(len, at))), device=tensor.device)
    positions = torch.tensor(np.concatenate(at), device=tensor.device)
    following = np.concatenate([np.array(r.prompt.ids)[places + 1] for r, places in zip(rows, at, strict=True)])
    sizes = [r.sizes[places + 1] for r, places in zip(rows, at, strict=True) if r.sizes is not None]
    return Predictions(
        h=tensor[row, :, positions],
        targets=torch.tensor(following, device=tensor.device),
        units=_numbered(rows, known),
        sizes=np.concatenate(sizes).astype(float) if len(sizes) == len(rows) else None,
        rows=len(rows),
        ids=_bytes_of_ids(rows),
    )


def _numbered(rows: list[Row], known: dict[tuple[str, int], int]) -> np.ndarray:
    """The unit of every prediction of some rows."""
    units = [(r.kind, unit) for r in rows for unit in r.units[r.counted].tolist()]
    return np.array([known.setdefault(unit, len(known) % UNITS) for unit in units])


def _bytes_of_ids(rows: list[Row]) -> bytes:
    return b"".join(np.array(r.prompt.ids, dtype=np.int64).tobytes() for r in rows)
