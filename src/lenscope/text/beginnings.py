"""Beginnings of texts: the first tokens that a fit reads of each, and which texts fit, select and measure.

Knows: how much of a text is tokenized for its first tokens, how texts are parted at random.
Does not know: what is fitted to them, documents of a corpus and their rows (packing.py).
"""

import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

from lenscope.errors import LenscopeError
from lenscope.models.language_model import LM
from lenscope.models.prompts import Encoder, Prompt

T = TypeVar("T")
# characters of text per token that are tokenized at most, so that books are not tokenized for their first page
CHARACTERS = 8


class Beginnings:
    """The first tokens of texts for one model: `length`, or as many as the model reads, if these are fewer."""

    def __init__(self, lm: LM, length: int) -> None:
        # without a context, since texts are cut here
        self.encoder = Encoder(lm.tokenizer, lm.encoder.vocab_size, None, lm.name)
        self.characters, self.most = CHARACTERS * length, min(length, lm.context or length)

    def of(self, text: str) -> Prompt:
        """The beginning of a text, beside the text that was tokenized for it."""
        whole = self.encoder.prompt(text[: self.characters])
        return Prompt(whole.text, whole.ids[: self.most], whole.tokens[: self.most], whole.spans[: self.most])


def check_texts(texts: Iterable[str]) -> None:
    """Raise LenscopeError for one string where texts are wanted."""
    if isinstance(texts, str):
        raise LenscopeError("texts: is one string; give a list of texts")


def part_texts(texts: Sequence[T], held: int, draw: random.Random) -> tuple[list[T], list[T], list[T]]:
    """Texts to fit, to select with, and to measure with, at random: `held` are not fitted, half of which select."""
    order = draw.sample(texts, len(texts))
    return order[held:], order[: held // 2], order[held // 2 : held]
