"""Packing: documents as token ids, joined and cut into full rows, with what is known of every token.

Knows: the special tokens between documents, tokenizing in bulk, how many bytes of text a token stands for.
Does not know: where documents come from, which of them are wanted, who takes which row.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lenscope.errors import LenscopeError
from lenscope.models.generation import end_ids
from lenscope.models.language_model import LM
from lenscope.models.prompts import Encoder, Prompt
from lenscope.models.spelling import BETWEEN
from lenscope.text.document_files import Document

# Characters that are tokenized together, and that one document may have before it is tokenized in parts.
CHARACTERS_TOGETHER = 1 << 19
# what is known of a token: its id, the number of its document, whether it begins it, whether it is a mark, its bytes
TOKEN, DOCUMENT, BEGINS, MARK, BYTES = range(5)
KNOWN = 5


@dataclass(frozen=True)
class Marks:
    """The special tokens around text: what `document`s and `row`s begin with, and what documents `end` with."""

    row: tuple[int, ...]
    document: tuple[int, ...]
    end: tuple[int, ...]


def pack(lm: LM, documents: Iterable[Document], length: int) -> Iterator[np.ndarray]:
    """Full rows (5, length) of what is known of each token, of documents tokenized, joined and cut."""
    marks = find_marks(lm)
    return _full_rows(_token_tables(lm.encoder, documents, marks, mark_ids(lm)), length, marks.row)


def mark_ids(lm: LM) -> np.ndarray:
    """The ids of all tokens that are no text: those around documents, and the special tokens of the tokenizer."""
    marks = find_marks(lm)
    special = end_ids(lm.runner) if lm.encoder.spelling is None else lm.encoder.spelling.special
    return np.array(sorted({*marks.row, *marks.document, *marks.end, *special}), dtype=np.int64)


def counted_positions(ids: Sequence[int] | np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Which positions of a row of ids (T,) count in a fit or a measurement: not the first one, and no mark.

    Their states are attention sinks, of another size than all others (SmolLM2-135M, layer 15: 100 times as long).
    """
    known = ~np.isin(np.asarray(ids), marks)
    known[:1] = False
    return known


def _token_tables(
    encoder: Encoder, documents: Iterable[Document], marks: Marks, special: np.ndarray
) -> Iterator[np.ndarray]:
    """What is known (5, N) of the tokens of all documents, of some documents at once."""
    waiting: list[Document] = []
    size = count = 0
    for document in documents:
        waiting.append(document)
        size += len(document)
        if size >= CHARACTERS_TOGETHER:
            yield _token_table(encoder, waiting, count, marks, special)
            count, size, waiting = count + len(waiting), 0, []
    if waiting:
        yield _token_table(encoder, waiting, count, marks, special)


def _token_table(
    encoder: Encoder, documents: list[Document], first: int, marks: Marks, special: np.ndarray
) -> np.ndarray:
    texts = [part for d in documents if isinstance(d, str) for part in _document_parts(d)]
    tokenized = iter(_tokenized(encoder, texts))
    tables = []
    for n, document in enumerate(documents):
        if isinstance(document, str):
            parts = [next(tokenized) for _ in _document_parts(document)]
            ids, size = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        else:
            ids = np.array(document, dtype=np.int64)
            size = np.full(len(ids), -1)
        if not len(ids):
            continue
        before, behind = np.array(marks.document, dtype=np.int64), np.array(marks.end, dtype=np.int64)
        if not isinstance(document, str) and document[: len(before)] == marks.document:
            before = before[:0]
        table = np.zeros((KNOWN, len(before) + len(ids) + len(behind)), dtype=np.int64)
        table[TOKEN] = np.concatenate([before, ids, behind])
        table[DOCUMENT] = first + n
        table[BEGINS, 0] = 1
        table[MARK] = 1
        inside = slice(len(before), len(before) + len(ids))
        table[MARK, inside] = np.isin(ids, special)
        table[BYTES, inside] = size
        tables.append(table)
    joint = np.concatenate(tables, 1) if tables else np.zeros((KNOWN, 0), dtype=np.int64)
    known = encoder.vocab_size
    bad = joint[TOKEN][(joint[TOKEN] < 0) | (joint[TOKEN] >= known)]
    if len(bad):
        raise LenscopeError(
            f"token {bad[0]}: {encoder.name} has token ids 0–{known - 1}; is this another model's tokenizer?"
        )
    return joint


def find_marks(lm: LM) -> Marks:
    """The special tokens that a model's text is joined with."""
    tokenizer, known = lm.tokenizer, lm.encoder.vocab_size
    if tokenizer is None:
        config = lm.model.config.get_text_config()
        named = [getattr(config, name, None) for name in ("bos_token_id", "eos_token_id")]
        ids = [i for i in (*named, *end_ids(lm.runner)) if isinstance(i, int) and 0 <= i < known]
        return Marks((), tuple(ids[:1]), ())
    before, behind = _around(lm)
    if before or behind:
        return Marks(before, before, behind)
    named = [tokenizer.get_vocab().get(BETWEEN), tokenizer.eos_token_id, tokenizer.bos_token_id]
    ids = [i for i in named if i is not None and 0 <= i < known]
    return Marks((), tuple(ids[:1]), ())


def _around(lm: LM) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that a tokenizer puts before and behind a text."""
    spelling = lm.encoder.spelling
    for text, plain in [] if spelling is None else spelling.anchors:
        whole = list(lm.tokenizer(text, verbose=False)["input_ids"])
        for n in range(len(whole)):
            if whole[n : n + len(plain)] == plain:
                return tuple(whole[:n]), tuple(whole[n + len(plain) :])
    raise LenscopeError(f"{lm.name}: its tokenizer changes texts beyond adding special tokens; give token ids")


def tokenizer_identity(encoder: Encoder) -> dict[str, Any] | None:
    """A tokenizer's class, origin and SHA-256, of everything that decides its ids; None where there is none."""
    tokenizer = encoder.tokenizer
    if tokenizer is None:
        return None
    if tokenizer.is_fast:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        # set anew by every call
        content.pop("truncation", None)
        content.pop("padding", None)
    else:
        content = tokenizer.get_vocab()
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {"class": type(tokenizer).__name__, "name": tokenizer.name_or_path, "sha256": digest}


def _full_rows(tables: Iterable[np.ndarray], length: int, lead: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Full rows (5, length); one that does not begin with a document begins with `lead`."""
    held = np.zeros((KNOWN, 0), dtype=np.int64)
    for table in tables:
        held = np.concatenate([held, table], 1)
        at = 0
        while at < held.shape[1]:
            led = 0 if held[BEGINS, at] else len(lead)
            if at + length - led > held.shape[1]:
                break
            row = np.zeros((KNOWN, length), dtype=np.int64)
            row[:, led:] = held[:, at : at + length - led]
            row[TOKEN, :led] = lead[:led]
            row[DOCUMENT, :led] = row[DOCUMENT, led]
            row[MARK, :led] = 1
            yield row
            at += length - led
        held = held[:, at:]


def written(ids: np.ndarray, number: int, first: tuple[int, ...], special: list[int]) -> np.ndarray:
    """What is known of a row that the model wrote itself."""
    row = np.zeros((KNOWN, len(ids)), dtype=np.int64)
    row[TOKEN] = ids
    row[BEGINS] = ids == first[0] if first else 0
    row[BEGINS, 0] = 1
    # numbers that no other row has
    row[DOCUMENT] = number * len(ids) + row[BEGINS].cumsum() - 1
    row[MARK] = np.isin(ids, special)
    row[BYTES] = -1
    return row


def _tokenized(encoder: Encoder, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per text its token ids and the bytes of text that each stands for (-1: not known)."""
    if not texts:
        return []
    if encoder.tokenizer is None:
        raise LenscopeError(f"{encoder.name} was loaded without a tokenizer: give documents as lists of token ids")
    fast = encoder.tokenizer.is_fast
    tokenized = encoder.tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=fast, verbose=False
    )
    ids = [np.array(one, dtype=np.int64) for one in tokenized["input_ids"]]
    if not fast:
        return [(one, np.full(len(one), -1)) for one in ids]
    spans = tokenized["offset_mapping"]
    return [
        (one, text_bytes(text, [end for _, end in span])) for one, text, span in zip(ids, texts, spans, strict=True)
    ]


def text_bytes(text: str, ends: Sequence[int]) -> np.ndarray:
    """The UTF-8 bytes (N,) from the end of one token to the end of the next, the last one's to the end of the text."""
    if not len(ends):
        return np.zeros(0, dtype=np.int64)
    # marks that are not in the text have an end of 0
    last = np.maximum.accumulate(np.array(ends, dtype=np.int64))
    last[-1] = len(text)
    if not text.isascii():
        code = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        size = 1 + (code >= 0x80).astype(np.int64) + (code >= 0x800) + (code >= 0x10000)
        last = np.concatenate([[0], size.cumsum()])[last]
    return np.diff(last, prepend=0)


def _document_parts(text: str) -> list[str]:
    """A very long document in parts, cut behind a line or before a word, to be tokenized one by one."""
    parts = []
    while len(text) > CHARACTERS_TOGETHER:
        half = CHARACTERS_TOGETHER // 2
        cut = (
            text.rfind("\n", half, CHARACTERS_TOGETHER) + 1
            or max(0, text.rfind(" ", half, CHARACTERS_TOGETHER))
            or CHARACTERS_TOGETHER
        )
        parts.append(text[:cut])
        text = text[cut:]
    return [*parts, text]


def after_document_mark(lm: LM, texts: Sequence[str]) -> list[Prompt]:
    """Texts as prompts behind what begins a document in the model's training.

    The first position of all is an attention sink in many models, whatever its token: a name of one token that stood
    there would not be read as a name.
    """
    mark = find_marks(lm).document
    return [lm.prompt([*mark, *lm.encoder.ids(text)]) for text in texts]
