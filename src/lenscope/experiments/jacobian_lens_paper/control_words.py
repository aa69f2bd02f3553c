"""Random words that are as frequent as given ones, as controls: what a score finds of words that are not thought.

Knows: how frequent a model takes tokens to be, which words of a vocabulary are alike. Does not know: lenses, scores.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from lenscope.experiments.jacobian_lens_paper.prompt_sets import single_token_forms
from lenscope.models.language_model import LM
from lenscope.text.packing import mark_ids
from lenscope.text.predictions import TextRows, predictions

# how many words on either side of a word in frequency make the bin that its controls are drawn from
BESIDE = 32
# those of them are used whose frequency is within this factor of the word's, or the ENOUGH next ones
FACTOR, ENOUGH = 2.0, 5
# fewer words of the same number of tokens than this, and those of any number are taken
LEAST = 20
# positions whose probabilities are held together
TOGETHER = 64
NUMBER, WORD, SIGN = range(3)


def mean_prediction(lm: LM, rows: TextRows) -> np.ndarray:
    """The mean distribution (V,) that a model predicts on a text: how frequent it takes each token to be."""
    total = torch.zeros(lm.vocab_size, dtype=torch.float64)
    for batch in predictions(lm, rows, (lm.n_layers,), None):
        for h in batch.h[:, 0].split(TOGETHER):
            total += lm.unembed(h).softmax(-1).double().sum(0).cpu()
    return np.asarray(total / total.sum())


def _kind(text: str) -> int:
    return NUMBER if text.isdecimal() else WORD if text.isalpha() else SIGN


@dataclass(frozen=True, eq=False)
class ControlWords:
    """The words of a vocabulary, in order of frequency: their single-token forms, kinds and ln of frequencies (n,).

    A word is what a token that begins one spells, as it is written there; or a number, or a sign. Its frequency is the
    sum over its forms.
    """

    forms: list[tuple[int, ...]]
    kind: np.ndarray
    upper: np.ndarray
    log_frequency: np.ndarray
    frequency: np.ndarray

    @staticmethod
    def of(lm: LM, frequency: np.ndarray) -> "ControlWords":
        """The words of a model's vocabulary, whose tokens have these frequencies (V,)."""
        texts, marks = [], {*mark_ids(lm).tolist()}
        for n, token in enumerate(lm.encoder.tokens(range(lm.vocab_size))):
            text = token.strip()
            # a token without a space before it may be the middle of a word
            if n not in marks and len(text.split()) == 1 and (token[0] == " " or not text.isalpha()):
                texts.append(text)
        texts = list(dict.fromkeys(texts))
        words = [(t, ids) for t, ids in zip(texts, single_token_forms(lm, texts), strict=True) if ids]
        log = np.array([_log_frequency(frequency, ids) for _, ids in words])
        order = np.argsort(log, kind="stable")
        kind = np.array([_kind(t) for t, _ in words], dtype=int)
        upper = np.array([t[:1].isupper() for t, _ in words], dtype=bool)
        return ControlWords([words[n][1] for n in order], kind[order], upper[order], log[order], frequency)

    def draw(
        self, word: str, ids: tuple[int, ...], excluded: Collection[int], draws: int, random: np.random.Generator
    ) -> list[tuple[int, ...]]:
        """The forms of `draws` random words that are about as frequent as a word of these ids.

        They are of its kind (number, word, sign), begin with a capital where it does, and have as many single-token
        forms. They are drawn from the BESIDE next ones of these on either side in frequency, those within FACTOR of
        it, without repetition as far as there are enough. None has a token of `excluded`.
        """
        alike, log = self._alike(word, ids, excluded), _log_frequency(self.frequency, ids)
        at = int(np.searchsorted(self.log_frequency[alike], log))
        beside = alike[max(at - BESIDE, 0) : at + BESIDE]
        apart = np.abs(self.log_frequency[beside] - log)
        near = beside[np.argsort(apart, kind="stable")[: max(int((apart <= np.log(FACTOR)).sum()), ENOUGH)]]
        whole, rest = divmod(draws, len(near))
        drawn = np.concatenate([np.tile(near, whole), random.permutation(near)[:rest]])
        return [self.forms[n] for n in random.permutation(drawn)]

    def _alike(self, word: str, ids: tuple[int, ...], excluded: Collection[int]) -> np.ndarray:
        """The numbers of the words that may stand for one, in order of frequency."""
        free = np.ones(len(self.forms), dtype=bool)
        free[[n for i in {*excluded, *ids} for n in self._with_token.get(i, ())]] = False
        kind = free & (self.kind == _kind(word))
        alike = kind & (self.upper == word[:1].isupper())
        for chosen, least in ((alike & (self._tokens == len(ids)), LEAST), (alike, LEAST), (kind, 2)):
            if chosen.sum() >= least:
                return np.flatnonzero(chosen)
        return np.flatnonzero(free) if free.any() else np.arange(len(self.forms))

    @cached_property
    def _tokens(self) -> np.ndarray:
        """How many single-token forms each word has."""
        return np.array(list(map(len, self.forms)), dtype=int)

    @cached_property
    def _with_token(self) -> dict[int, list[int]]:
        """The numbers of the words that have a token among their forms."""
        numbers: dict[int, list[int]] = {}
        for n, forms in enumerate(self.forms):
            for i in forms:
                numbers.setdefault(i, []).append(n)
        return numbers

    def ratio(self, ids: Sequence[int], control: Sequence[int]) -> float:
        """The log10 of a control's frequency over that of a word."""
        return (_log_frequency(self.frequency, control) - _log_frequency(self.frequency, ids)) / float(np.log(10))


def _log_frequency(frequency: np.ndarray, ids: Sequence[int]) -> float:
    return float(np.log(np.maximum(frequency[list(ids)].sum(), 1e-30)))
