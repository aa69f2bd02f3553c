"""Documents become rows of tokens, and rows become states."""

from lenscope.text.corpus import Corpus
from lenscope.text.topic_vectors import CenteredVectors, LabelledToken, labelled_states, topic_vectors

__all__ = [
    "CenteredVectors",
    "Corpus",
    "LabelledToken",
    "labelled_states",
    "topic_vectors",
]
