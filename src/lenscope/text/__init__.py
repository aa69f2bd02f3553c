"""Documents become rows of tokens, and rows become states."""

from lenscope.text.corpus import Corpus

__all__ = ["Corpus"]
