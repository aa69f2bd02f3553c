"""A corpus: text, or what a model writes itself, as full rows of token ids; the same rows for the same seed.

Knows: the order of documents, which of them are held out, which rows make a batch and which of those a rank takes.
Does not know: where documents lie (documents.py), how they become rows (packing.py), how a model writes
(model_samples.py).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from math import ceil
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.models.generation import end_ids
from lenscope.models.identity import model_hash
from lenscope.models.language_model import LM
from lenscope.text.document_files import Document
from lenscope.text.documents import Data, Documents, find_documents
from lenscope.text.model_samples import sample
from lenscope.text.packing import KNOWN, TOKEN, find_marks, mark_ids, pack, tokenizer_identity, written

LENGTH = 512
# Rows that a model writes together.
WRITTEN = 128
# Rows that a model has written and that are not sampled again when a corpus is read again.
REMEMBERED = 16_384
# Rows that are put in another order together: a long document gives many, and steps on one document alone are biased.
MIXED = 512


@dataclass(frozen=True, eq=False, repr=False)
class TokenBatch(Brief):
    """B full rows of T tokens of a corpus; B is 0 only where another rank has the last rows.

    `row` (B,) numbers the rows in the whole corpus, whatever the rank; a reading resumes at `next_row`. All others are
    (B, T): `ids` int64; `document` int64, a number per document read, over all epochs; `begins` bool, the first token
    of a document; `counted` bool, the positions to fit or evaluate on, without the first `skip` of a row and all marks:
    those between documents, and special tokens in a document, also where its text spells one out; `bytes` int64, the
    UTF-8 bytes of text that each token stands for, which add up to those of the text, or None where that is unknown
    (documents of token ids, tokenizers without offsets).
    `digest` is the SHA-256 of the ids of every row of the corpus before `next_row`, of all ranks, so that two readings
    can be told to be of the same text; None for a model's own samples.
    """

    row: Tensor
    ids: Tensor
    document: Tensor
    begins: Tensor
    counted: Tensor
    bytes: Tensor | None
    next_row: int
    digest: str | None


@final
@dataclass(frozen=True, eq=False)
class Corpus:
    """Text as rows of equally many tokens, for fitting and measuring lenses. Make one with `Corpus.open`.

    The text is read from files or data sets, or the model writes it itself. Documents are put in an order that `seed`
    and the epoch fix, tokenized, joined, and cut into rows, so that every row is full; 512 rows at a time are mixed, so
    that neighbours are seldom of one document. Tokens after the last full row are left out.

    Documents are kept apart by marks. A document begins with the special tokens that the tokenizer puts before a text
    (BOS), and ends with those that it puts behind; where it puts none, a document begins with the token that stood
    between documents when the model was trained: `<|endoftext|>` if the vocabulary has it, else EOS, else BOS. A row
    that begins within a document begins with the tokenizer's BOS again, if it has one, since such models read text only
    behind it. Attention is not cut at documents, as in the reference recipe (Belrose et al. 2023: documents joined by
    EOS, cut into chunks). The state of such a mark is an attention sink wherever it stands, so marks do not count in
    measurements.

    Measured on 2,048 tokens of mixed text: SmolLM2-135M-Instruct predicts 0.09–0.12 nats better with `<|endoftext|>`
    between documents than with its BOS, its EOS or nothing; Gemma-3-270M 0.32 nats better with a BOS before every row
    than only before documents; and in layer 15 of SmolLM2 a mark's state is 100 times as long as others.
    """

    lm: LM
    documents: Documents | None
    length: int
    skip: int
    seed: int
    epochs: int
    part: tuple[float, float] = (0.0, 1.0)
    # rows that the model has written, shared by all parts
    _sampled: dict[Any, np.ndarray] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        return f"Corpus({self.name}, rows of {self.length} tokens, seed {self.seed})"

    @staticmethod
    def open(
        lm: LM,
        data: Data | None = None,
        *,
        field: str = "text",
        length: int | None = None,
        skip: int = 1,
        seed: int = 0,
        epochs: int = 1,
    ) -> "Corpus":
        """A corpus in a model's tokens, of whatever `find_documents` knows; without `data` of the model's own samples.

        `length` tokens a row, by default 512 or the model's context; `skip` positions at the start of a row are not
        counted (they are attention sinks, with states of another size). The text is read `epochs` times, each time in
        another order. Raises LenscopeError for data that cannot be read or is empty, and numbers out of range.

        Args:
            lm: the model whose tokens the rows are of.
            data: the text; None: what the model itself writes.
            field: the field or column of the text.
            length: tokens of a row; None: 512, or as many as the model reads.
            skip: how many positions of a row do not count at its start.
            seed: fixes whatever is drawn.
            epochs: how often the text is read.
        """
        most = lm.context or LENGTH
        length = min(LENGTH, most) if length is None else length
        if not 2 <= length <= (lm.context or length):
            raise LenscopeError(f"length {length}: {lm.name} reads 2–{lm.context or 'any number of'} tokens a row")
        if not 0 <= skip < length:
            raise LenscopeError(f"skip {skip}: rows have {length} positions; give 0–{length - 1}")
        if seed < 0 or epochs < 1:
            raise LenscopeError(f"seed {seed}, epochs {epochs}: give a seed from 0 on, and at least 1 epoch")
        return Corpus(lm, None if data is None else find_documents(data, field), length, skip, seed, epochs)

    @property
    def name(self) -> str:
        """What the text is called: as it was given, or whose samples it is."""
        return f"samples of {self.lm.name}" if self.documents is None else self.documents.name

    def split(self, held_out: float) -> tuple["Corpus", "Corpus"]:
        """The corpus without, and with only, a fraction of its documents: those whose text hashes low with the seed.

        A document has its part whatever else the corpus holds, and equal texts are in the same one. Either can be
        split again. Of a model's own samples both parts are samples, of different random numbers; a corpus, its parts
        among it, remembers what was sampled, and does not sample it again.
        """
        if not 0 < held_out < 1:
            raise LenscopeError(f"held_out {held_out}: give a fraction of the documents between 0 and 1, such as 0.1")
        low, high = self.part
        middle = low + held_out * (high - low)
        return replace(self, part=(middle, high)), replace(self, part=(low, middle))

    def batches(
        self, tokens: int | None = None, rows: int = 8, *, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[TokenBatch]:
        """Batches of `rows` rows, until `tokens` tokens (in full rows, rounded up) have been read; None: all there are.

        Of `world` ranks each takes every world-th row, row n going to rank n % world, and all make the same number of
        batches; `tokens` counts the rows of all. `start` is the row to begin at, such as a batch's `next_row`: what
        comes before is tokenized once more but not returned (430,000 tokens a second on one core with SmolLM2's
        tokenizer); every rank tokenizes all rows.

        A corpus that ends before `tokens` raises LenscopeError, after the rows that it has; so does one without a
        single row, and one of the model's own samples, which have no end, without `tokens`.

        Args:
            tokens: how many tokens are read; None: all.
            rows: rows of a batch.
            start: the row to begin with.
            rank: which of the processes this is.
            world: how many processes share the rows.
        """
        if rows < 1 or not 0 <= rank < world or start < 0 or (tokens is not None and tokens < 1):
            raise LenscopeError(
                f"tokens {tokens}, rows {rows}, start {start}, rank {rank} of {world}: give positive numbers, "
                f"a start from 0 on, and a rank 0–{world - 1}"
            )
        wanted = None if tokens is None else ceil(tokens / self.length)
        if self.documents is not None:
            return self._read(wanted, rows, start, rank, world)
        if wanted is None:
            raise LenscopeError(f"{self.name}: have no end; give the number of tokens to read")
        return self._write(wanted, rows, start, rank, world)

    def digest(self, tokens: int) -> str | None:
        """The SHA-256 of the ids of all rows that reading `tokens` tokens gives, as in the last batch; None of samples.

        Raises LenscopeError as `batches` does, before a model has run.
        """
        if self.documents is None:
            return None
        digest = None
        # one batch after the other: all of them would be 61 bytes a token
        for batch in self.batches(tokens, 256):
            digest = batch.digest
        return digest

    def provenance(self) -> dict[str, Any]:
        """What the rows came from, as JSON values: sources with their SHA-256, tokenizer, marks, and every setting."""
        if self.documents is None:
            source: dict[str, Any] = {"data": self.name, "model_hash": model_hash(self.lm.model), "temperature": 1.0}
        else:
            source = self.documents.about()
        settings = {"length": self.length, "skip": self.skip, "seed": self.seed, "epochs": self.epochs}
        marks = find_marks(self.lm)
        return {
            **source,
            **settings,
            "part": list(self.part),
            "row_begins_with": list(marks.row),
            "document_begins_with": list(marks.document),
            "document_ends_with": list(marks.end),
            "tokenizer": tokenizer_identity(self.lm.encoder),
        }

    def _read(self, wanted: int | None, rows: int, start: int, rank: int, world: int) -> Iterator[TokenBatch]:
        digest = hashlib.sha256()
        held: list[tuple[int, np.ndarray]] = []
        done = 0
        for row in _mixed(pack(self.lm, self._documents(), self.length), self.seed):
            if done == wanted:
                break
            digest.update(row[TOKEN].tobytes())
            if done >= start and done % world == rank:
                held.append((done, row))
            done += 1
            if done > start and (done - start) % (rows * world) == 0:
                yield self._batch(held, done, digest.hexdigest())
                held = []
        if done > start and (done - start) % (rows * world):
            yield self._batch(held, done, digest.hexdigest())
        if done < (wanted or 1):
            raise self._too_short(done, wanted)

    def _write(self, wanted: int, rows: int, start: int, rank: int, world: int) -> Iterator[TokenBatch]:
        marks = find_marks(self.lm)
        special = [*mark_ids(self.lm).tolist(), *end_ids(self.lm.runner)]
        # which model writes, as it is now
        writer = model_hash(self.lm.model) or id(self.lm.model)
        seed = (self.seed, *(round(share * 2**32) for share in self.part))
        steps = [range(a, min(a + rows * world, wanted)) for a in range(start, wanted, rows * world)]
        together = max(1, WRITTEN // rows)
        for group in (steps[n : n + together] for n in range(0, len(steps), together)):
            mine = [[n for n in step if n % world == rank] for step in group]
            numbers = [n for step in mine for n in step]
            known = {n: self._sampled.get((writer, seed, self.length, n)) for n in numbers}
            new = [n for n, row in known.items() if row is None]
            fresh = dict(zip(new, sample(self.lm, new, self.length, marks.document, seed) if new else (), strict=True))
            ids = iter([fresh[n] if row is None else row for n, row in known.items()])
            if len(self._sampled) < REMEMBERED:
                self._sampled.update({(writer, seed, self.length, n): row for n, row in fresh.items()})
            for step, numbers in zip(group, mine, strict=True):
                held = [(n, written(next(ids), n, marks.document, special)) for n in numbers]
                yield self._batch(held, step.stop, None)

    def _batch(self, rows: list[tuple[int, np.ndarray]], next_row: int, digest: str | None) -> TokenBatch:
        tables = np.zeros((len(rows), KNOWN, self.length), dtype=np.int64)
        for n, (_, table) in enumerate(rows):
            tables[n] = table
        ids, document, begins, mark, size = torch.from_numpy(tables).unbind(1)
        counted = mark == 0
        counted[:, : self.skip] = False
        number = torch.tensor([n for n, _ in rows], dtype=torch.long)
        known = None if (size < 0).any() else size
        return TokenBatch(number, ids, document, begins.bool(), counted, known, next_row, digest)

    def _too_short(self, done: int, wanted: int | None) -> LenscopeError:
        low, high = self.part
        which = "" if self.part == (0.0, 1.0) else f" in this part ({high - low:.3g} of the documents)"
        if not done:
            return LenscopeError(
                f"{self.name}: less than one row of {self.length} tokens{which}; give more text or a smaller length"
            )
        has = done * self.length
        enough = ceil(self.epochs * (wanted or 1) / done)
        return LenscopeError(
            f"{self.name}: ends after {has} tokens ({done} rows of {self.length}, epochs {self.epochs}){which}, and "
            f"{(wanted or 1) * self.length} were wanted; give more text, ask for {has}, or read it in {enough} epochs"
        )

    def _documents(self) -> Iterator[Document]:
        assert self.documents is not None
        low, high = self.part
        for epoch in range(self.epochs):
            for document in self.documents.read(self.seed, epoch):
                if self.part == (0.0, 1.0) or low <= _place(document, self.seed) < high:
                    yield document


def _mixed(rows: Iterator[np.ndarray], seed: int) -> Iterator[np.ndarray]:
    """The rows, some at a time in an order that the seed fixes."""
    random = np.random.default_rng(seed)
    while held := list(islice(rows, MIXED)):
        for n in random.permutation(len(held)):
            yield held[n]


def _place(document: Document, seed: int) -> float:
    """A number 0…1 that the text and the seed fix."""
    content = document.encode() if isinstance(document, str) else np.array(document, dtype=np.int64).tobytes()
    digest = hashlib.blake2b(content, digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big") / 2**64


def overlap(fitted: Any, here: dict[str, Any]) -> bool:
    """Whether two parts of text, by their provenance, have documents in common: a lens's, and what measures it."""
    if not isinstance(fitted, dict) or not fitted.get("sources"):
        return False
    known = {source.get("sha256") for source in here.get("sources", ())}
    low, high = fitted.get("part", (0.0, 1.0))
    apart = fitted.get("seed") == here["seed"] and (here["part"][1] <= low or high <= here["part"][0])
    return not apart and any(source.get("sha256") in known for source in fitted["sources"])
