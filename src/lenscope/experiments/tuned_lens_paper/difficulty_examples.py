"""Places of text as examples of next-token prediction, by the kind of the next token; what counting alone predicts.

Knows: which places are examples, kinds of tokens, frequencies of tokens and pairs. Does not know: models' predictions.
"""

from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from lenscope.errors import LenscopeError
from lenscope.text.corpus import Corpus

# function words of English
WORDS = """
    a about after all also although an and any are as at be because been before being between both but
    by can could did do does each for from had has have he her him his how i if in into is it its may
    might more most must no nor not of on one only or other our out over she should since so some such
    than that the their them then there these they this those through to under up was we were what when
    where which while who whom will with would you your
"""
FUNCTION_WORDS = frozenset(WORDS.split())
# times as much text as is taken
LOOKED_AT = 64


class Examples(NamedTuple):
    """N places of held-out text: rows of ids and the places in each; per place the token, the next, document, task."""

    rows: list[tuple[list[int], list[int]]]
    before: np.ndarray
    target: np.ndarray
    document: np.ndarray
    task: np.ndarray


def next_token_examples(held: Corpus, tokens: int) -> Examples:
    """Places of about so many tokens of held-out text whose next token is of the same document.

    The rows are spread evenly over the text, up to 64 times as much of it, so that they are of many documents.
    """
    lm = held.lm
    names = lm.encoder.tokens(range(lm.encoder.vocab_size))
    wanted = -(-tokens // held.length)
    batches = list(islice(held.batches(None), -(-wanted * LOOKED_AT // 8)))
    ids, document, counted = (torch.cat([getattr(b, name) for b in batches]) for name in ("ids", "document", "counted"))
    inside = counted[:, :-1] & counted[:, 1:] & (document[:, :-1] == document[:, 1:])
    rows, triples = [], []
    for n in sorted({k * len(ids) // wanted for k in range(wanted)}):
        at = inside[n].nonzero()[:, 0]
        if len(at):
            rows.append((ids[n].tolist(), at.tolist()))
            triples.append(torch.stack([ids[n, at], ids[n, at + 1], document[n, at]]))
    if not triples:
        raise LenscopeError(f"{held.name}: the held-out part has no text to measure on; give more text")
    before, target, unit = torch.cat(triples, 1).numpy()
    task = np.array([token_kind(names[b], names[t]) for b, t in zip(before, target, strict=True)])
    return Examples(rows, before, target, unit, task)


def token_kind(before: str, token: str) -> str:
    """The task that predicting a token is, by its text and that of the token before."""
    word = token.strip()
    if not word:
        return "white space"
    if word.isdecimal():
        return "numbers"
    if not word.isalpha():
        return "punctuation and other"
    if token[0].isspace() or not before[-1:].isalpha():
        return "function words" if word.lower() in FUNCTION_WORDS else "word starts"
    return "word continuations"


class Counts(NamedTuple):
    """How often tokens (V,) and pairs occur in text: `pairs` first · V + second, in order, and `times`."""

    tokens: np.ndarray
    pairs: np.ndarray
    times: np.ndarray


def count_tokens(text: Corpus, tokens: int) -> Counts:
    """Of the first rows of a text, about so many tokens or all there are."""
    size = text.lm.vocab_size
    rows = islice(text.batches(None), -(-tokens // (8 * text.length)))
    ids = np.concatenate([batch.ids.numpy() for batch in rows])
    pairs, times = np.unique(ids[:, :-1] * size + ids[:, 1:], return_counts=True)
    return Counts(np.bincount(ids.reshape(-1), minlength=size), pairs, times)


def counting_surprisals(known: Counts, before: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Mean surprisal, in nats, of next tokens by their frequency, and by the token before.

    Frequencies with one occurrence added; those behind a token mixed with them as if those had been seen 10, 100 or
    1000 times: whichever does best here.
    """
    size = len(known.tokens)
    p = (known.tokens[target] + 1) / (known.tokens.sum() + size)
    wanted = before * size + target
    at = np.searchsorted(known.pairs, wanted).clip(max=len(known.pairs) - 1)
    times = np.where(known.pairs[at] == wanted, known.times[at], 0)
    bigram = min(float(-np.log((times + k * p) / (known.tokens[before] + k)).mean()) for k in (10, 100, 1000))
    return float(-np.log(p).mean()), bigram
