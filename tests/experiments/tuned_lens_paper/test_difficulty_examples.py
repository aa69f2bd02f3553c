"""Examples of the experiment on difficulty: within documents, of known kinds, with baselines counted by hand."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_training import TEXTS, small

import lenscope as ls
from lenscope.experiments.tuned_lens_paper import difficulty_examples as tokens
from lenscope.text.corpus import TokenBatch


def test_kinds_of_tokens():
    kinds = {
        ("x", " the"): "function words",
        ("x", "The"): "word continuations",
        ("\n", "The"): "function words",
        ("x", " theory"): "word starts",
        (" the", "ory"): "word continuations",
        ("-", "ory"): "word starts",
        (" in", " 12"): "numbers",
        ("a", ","): "punctuation and other",
        ("a", "<F0>"): "punctuation and other",
        (".", "\n\n"): "white space",
    }
    assert {pair: tokens.token_kind(*pair) for pair in kinds} == kinds


def test_examples_are_within_documents():
    held = ls.Corpus.open(small(), TEXTS[:20])
    found = tokens.next_token_examples(held, 256)
    every = [
        row
        for b in held.batches(None)
        for row in zip(*(t.tolist() for t in (b.ids, b.document, b.counted)), strict=True)
    ]
    assert len(every) > 16
    wanted = []
    for ids, document, counted in (every[k * len(every) // 8] for k in range(8)):
        for at in range(31):
            if counted[at] and counted[at + 1] and document[at] == document[at + 1]:
                wanted.append((ids[at], ids[at + 1], document[at]))
    assert list(zip(found.before.tolist(), found.target.tolist(), found.document.tolist(), strict=True)) == wanted
    assert [(ids[p], ids[p + 1]) for ids, at in found.rows for p in at] == [w[:2] for w in wanted]
    assert len({w[2] for w in wanted}) > 1
    with pytest.raises(ls.LenscopeError):
        tokens.next_token_examples(ls.Corpus.open(small(), ["a"]), 256)


def test_no_example_predicts_a_mark_or_another_document():
    """Where documents end with a mark of their own, or where nothing stands between them."""
    ids = torch.arange(10, 18)[None]
    document = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]])
    counted = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 1]], dtype=torch.bool)
    zero = torch.zeros(1, 8)
    batch = TokenBatch(torch.tensor([0]), ids, document, zero.bool(), counted, None, 1, None)
    held = SimpleNamespace(lm=small(), length=8, name="made up", batches=lambda tokens: iter([batch]))
    assert tokens.next_token_examples(held, 8).rows == [(ids[0].tolist(), [1, 5, 6])]


def test_baselines_count_tokens_and_pairs():
    text = ls.Corpus.open(small(), TEXTS[:6])
    known = tokens.count_tokens(text, 10_000)
    rows = [row for batch in text.batches(None) for row in batch.ids.tolist()]
    flat = [i for row in rows for i in row]
    pairs = [p for row in rows for p in pairwise(row)]
    a, b = pairs[5]
    new, other = [i for i in range(300) if i not in flat][:2]
    before, target = np.array([a, other]), np.array([b, new])
    p = [(flat.count(t) + 1) / (len(flat) + 300) for t in (b, new)]
    mixed = [
        -np.log((pairs.count((a, b)) + k * p[0]) / (flat.count(a) + k)) - np.log(k * p[1] / k) for k in (10, 100, 1000)
    ]
    single, double = tokens.counting_surprisals(known, before, target)
    assert single == pytest.approx(-np.log(p).mean(), abs=1e-12)
    assert double == pytest.approx(min(mixed) / 2, abs=1e-12)
