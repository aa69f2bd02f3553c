"""Whether a text says an answer, and how much it has in common with a reference: words, Rouge, cosines of embeddings.

Knows: what counts as the same word, where an answer may begin. Does not know: where texts come from.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import log
from typing import NamedTuple

import numpy as np

from lenscope.errors import LenscopeError
from lenscope.models.language_model import LM
from lenscope.models.offloaded import whole_weight

# texts → unit vectors (N, D), a row of zeros where a text has none
Embed = Callable[[Sequence[str]], np.ndarray]

# a token of rank r is taken to make up 1 / (r ln V) of all text, and weighs a / (a + that) (Arora et al. 2017, §3)
COMMON = 1e-3


# Scripts that put no spaces between words (Han, Kana, Thai, Lao, Burmese, Khmer, Tibetan …), as letters and digits of a
# pattern, and one whose particles are joined to words (Hangul).
UNSPACED = (
    r"\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u2e80-\u2fdf\u3005-\u3007"
    r"\u3021-\u303c\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff"
    r"\U0001b000-\U0001b16f\U00020000-\U000323af"
)
HANGUL = r"\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"
JOINED = rf"[{UNSPACED}{HANGUL}]"
# A letter or digit of a script that puts spaces between words; an answer in it may stand beside a letter of another.
LETTER = rf"(?!{JOINED})\w"


def _marks(first: int, last: int) -> str:
    return "".join(re.escape(chr(c)) for c in range(first, last) if unicodedata.category(chr(c)) in ("Mn", "Mc"))


# Marks that are part of the letter before them: accents, vowel signs.
MARK = rf"[{_marks(0x300, 0x3130)}{_marks(0xA8E0, 0xAC00)}{_marks(0xFE00, 0xFE30)}]"
# What is no word at all.
NONE = rf"(?!{MARK})[\W_]"
WORDS = re.compile(rf"[{UNSPACED}](?:{MARK})*|(?:(?![{UNSPACED}])[^\W_]{MARK}*)+")
# Marks of stress, which no script counts as part of a letter.
STRESS = "\u0300\u0301"
# Characters that only say how a text is set: soft hyphens, joiners, variation selectors.
UNSEEN = {"\u00ad", "\u200b", "\u2060", "\ufeff", *map(chr, range(0xFE00, 0xFE10))}


class Rouge(NamedTuple):
    """F1 of single words, and of the longest common subsequence of words (Lin 2004, without stemming)."""

    rouge1: float
    rougeL: float


def mentions(text: str, answers: str | Sequence[str]) -> bool:
    """Whether a text has any of the answers in it, as whole words; case, accents and kinds of blanks do not count."""
    plain = _compared_form(text)
    return any(re.search(_pattern(answer), plain) for answer in _answers(answers))


def starts(text: str, answers: str | Sequence[str]) -> bool:
    """Whether a text begins with any of the answers, as `mentions`, after blanks, quotes and an article."""
    plain = re.sub(rf"^{NONE}+", "", _compared_form(text))
    patterns = (_pattern(_opened(answer)) for answer in _answers(answers))
    return any(re.match(rf"(?:(?:the|an?) )?{NONE}*{pattern}", plain) for pattern in patterns)


def rouge(text: str, reference: str) -> Rouge:
    """How much a text and a reference have in common, 0–1; LenscopeError for a reference without a word."""
    text_words, wanted = compared_words(text), compared_words(reference)
    if not wanted:
        raise LenscopeError(f"reference {reference!r}: it has no word; give a description")
    if not text_words:
        return Rouge(0.0, 0.0)
    share = 2 / (len(text_words) + len(wanted))
    return Rouge(
        share * (Counter(text_words) & Counter(wanted)).total(), share * _common_subsequence(text_words, wanted)
    )


def compared_words(text: str) -> list[str]:
    """The words of a text, as they are compared: letters and digits, case and accents aside.

    In a script without spaces between words each character is one, as the reference code of Rouge for Chinese has it.
    """
    return WORDS.findall(_compared_form(text))


def embedder(lm: LM) -> Embed:
    """Texts as unit vectors (N, D): the mean of a model's input embeddings, rare tokens weighing more.

    Embeddings are centred over the vocabulary, and weigh a / (a + p) (Arora et al. 2017), p from a token's rank in the
    vocabulary, whose first tokens are the most common in vocabularies made by merging or pruning. Words in common and
    words of like use make two texts alike; their order does not count. Any two short texts are alike to some degree
    (cosines about .6 with SmolLM2): what counts is how much more a text is like its own reference than like others.
    """
    table = whole_weight(lm.model, lm.model.get_input_embeddings())
    middle = table.float().mean(0)

    def embed(texts: Sequence[str]) -> np.ndarray:
        embedded = np.zeros((len(texts), table.shape[1]))
        for n, text in enumerate(texts):
            ids = [*lm.encoder.ids_behind(" " + text.strip())] if text.strip() else []
            if ids:
                common = 1 / ((np.array(ids) + 1.0) * log(len(table)))
                vectors = (table[ids].float() - middle).double().cpu().numpy()
                embedded[n] = (COMMON / (COMMON + common)) @ vectors
        size = np.linalg.norm(embedded, axis=1, keepdims=True)
        return np.asarray(embedded / np.where(size > 0, size, 1))

    return embed


def text_similarity(texts: Sequence[str], references: Sequence[str], embed: Embed) -> np.ndarray:
    """The cosine of each text and its reference (N,), 0 for an empty text; LenscopeError if they are not as many."""
    if len(texts) != len(references):
        raise LenscopeError(f"{len(texts)} texts, {len(references)} references: give one reference for each text")
    return np.asarray((embed(texts) * embed(references)).sum(1))


def _answers(answers: str | Sequence[str]) -> list[str]:
    given = [answers] if isinstance(answers, str) else list(answers)
    plain = [_compared_form(answer).strip() for answer in given]
    if not plain or not all(plain):
        raise LenscopeError(f"answers {given!r}: give at least one, none of them empty")
    return plain


def _opened(answer: str) -> str:
    """An answer without the marks that it opens with, which `starts` passes over."""
    return re.sub(r"^[\W_]+(?=\w)", "", answer)


@lru_cache(maxsize=65_536)
def _compared_form(text: str) -> str:
    """A text as it is compared: case, kinds of blanks and quotes, width and the accents of Latin letters aside.

    Other marks make other letters (バ is no ハ, कि no क), so they stay, in the one form that NFKC gives them.
    """
    bare: list[str] = []
    for c in unicodedata.normalize("NFKD", text.casefold()):
        if unicodedata.combining(c) and bare and (c in STRESS or _folds(bare[-1])):
            continue
        if c not in UNSEEN:
            bare.append(c)
    whole = unicodedata.normalize("NFKC", "".join(bare))
    return " ".join(whole.replace("’", "'").split())


def _folds(letter: str) -> bool:
    """Whether marks on a letter are accents that a text may leave out: those of Latin and Greek."""
    return "a" <= letter <= "z" or unicodedata.name(letter, "").startswith(("LATIN", "GREEK"))


def _pattern(answer: str) -> str:
    """An answer as a pattern that finds it as whole words.

    A word ends where no letter follows; where its script puts no spaces between words, or joins particles to them, it
    may end anywhere but within a letter.
    """
    before = "" if _joined(answer[0]) else rf"(?<!{LETTER})"
    behind = rf"(?!{MARK})" if _joined(answer[-1]) else rf"(?!{LETTER}|{MARK})"
    return f"{before}{re.escape(answer)}{behind}"


def _joined(letter: str) -> bool:
    return re.match(JOINED, letter) is not None


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for a in first:
        before = 0
        for n, b in enumerate(second, 1):
            before, row[n] = row[n], before + 1 if a == b else max(row[n], row[n - 1])
    return row[-1]
