"""A model's own samples against a loop over the plain transformers model that recomputes everything."""

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from small_corpora import EOS, joined

import lenscope as ls
from lenscope.text.corpus import Corpus


def by_hand(lm, prompt, uniform, length):
    """Temperature 1 on the plain transformers model, everything recomputed for every token."""
    ids = list(prompt)
    for u in uniform:
        if len(ids) == length:
            break
        with torch.no_grad():
            p = lm.model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
        ids.append(int((p.cumsum(0) <= u * p.sum()).sum()))
    return ids


def test_samples_are_drawn_from_the_model(lm64):
    corpus = Corpus.open(lm64, length=24, seed=5)
    (batch,) = corpus.batches(3 * 24)
    assert batch.ids.shape == (3, 24)
    assert (batch.ids[:, 0] == EOS).all()
    assert batch.digest is None
    assert batch.bytes is None
    for n, row in enumerate(batch.ids.tolist()):
        uniform = np.random.default_rng((5, 0, 2**32, n)).random(28)[4:]
        assert row == by_hand(lm64, [EOS], uniform, 24)
    assert len(set(map(tuple, batch.ids.tolist()))) == 3


def test_samples_go_on_with_a_new_text_after_an_end(lm64, monkeypatch):
    module = importlib.import_module("lenscope.text.model_samples")
    ends = list(range(3, 120))
    monkeypatch.setattr(module.generation, "end_ids", lambda runner: ends)
    rows = module.sample(lm64, [0, 1, 2, 3], 24, (1, 7), (5,))
    assert (rows[:, :2] == [1, 7]).all()
    seen = 0
    for n, row in enumerate(rows.tolist()):
        uniform, at = np.random.default_rng((5, n)).random(28)[4:], 2
        while at < 24:
            expected = by_hand(lm64, row[:at], uniform[at - 2 : at - 1], 24)[-1]
            assert row[at] == expected
            at += 1
            if expected in ends and at < 24:
                assert row[at : at + 2] == [1, 7][: 24 - at]
                seen += 1
                at += 2
    assert seen > 4


def test_samples_of_a_model_without_a_start_begin_with_random_tokens(lm64):
    module = importlib.import_module("lenscope.text.model_samples")
    rows = module.sample(lm64, [0, 1, 7], 12, (), (5,))
    for n, row in zip((0, 1, 7), rows.tolist(), strict=True):
        uniform = np.random.default_rng((5, n)).random(16)
        assert row[:4] == [int(u * tiny.VOCAB) for u in uniform[:4]]
        assert row == by_hand(lm64, row[:4], uniform[4:], 12)


def test_samples_resume_divide_and_split(lm64):
    corpus = Corpus.open(lm64, length=12)
    whole = joined(corpus.batches(7 * 12, rows=2))
    assert whole[-1] == list(range(7))
    fresh = [Corpus.open(lm64, length=12) for _ in range(3)]  # none remembers what another sampled
    assert joined(fresh[2].batches(7 * 12, rows=2, start=3))[0] == whole[0][36:]
    shares = [list(fresh[r].batches(7 * 12, rows=2, rank=r, world=2)) for r in range(2)]
    assert len(shares[0]) == len(shares[1])
    rows = {int(n): ids.tolist() for s in shares for b in s for n, ids in zip(b.row, b.ids, strict=True)}
    assert [i for n in sorted(rows) for i in rows[n]] == whole[0]
    train, held = corpus.split(0.1)
    assert len({tuple(joined(c.batches(24))[0]) for c in (corpus, train, held)}) == 3
    with pytest.raises(ls.LenscopeError, match="samples of tiny-llama: have no end; give the number of tokens to read"):
        corpus.batches()
    assert json.loads(json.dumps(corpus.provenance()))["data"] == "samples of tiny-llama"


def test_samples_tell_where_texts_begin(lm64):
    batch = next(Corpus.open(lm64, length=64).batches(640))
    again = batch.ids == EOS
    assert torch.equal(batch.begins, again)
    assert again[:, 1:].any(), "no text ended: the test sees nothing"
    assert not batch.counted[again].any()
    assert batch.counted[:, 1:].float().mean() > 0.9
    numbers = batch.document[batch.begins]
    assert len(numbers.unique()) == len(numbers)


def test_samples_need_no_tokenizer():
    lm = ls.LM(tiny.model("llama"), None, "ids only")
    (batch,) = Corpus.open(lm, length=8).batches(8)
    assert batch.ids.shape == (1, 8)
    assert batch.ids[0, 0] == 1  # the configuration's BOS


def test_what_was_sampled_is_not_sampled_again(lm64, monkeypatch):
    module = importlib.import_module("lenscope.text.corpus")
    calls, sample = [], module.sample

    def counted(lm, numbers, *rest):
        calls.append(list(numbers))
        return sample(lm, numbers, *rest)

    monkeypatch.setattr(module, "sample", counted)
    corpus = Corpus.open(lm64, length=16, seed=2)
    held_out = corpus.split(0.5)[1]
    first = torch.cat([b.ids for b in held_out.batches(48, 2)])
    assert calls == [[0, 1, 2]]
    again = torch.cat([b.ids for b in corpus.split(0.5)[1].batches(80, 1)])
    assert calls == [[0, 1, 2], [3, 4]]
    assert torch.equal(again[:3], first)
    assert torch.equal(again, torch.cat([b.ids for b in held_out.batches(80, 5)]))
    assert torch.equal(again[1::2], torch.cat([b.ids for b in held_out.batches(80, 1, rank=1, world=2)]))
    assert len(calls) == 2
    other = next(corpus.batches(48, 3)).ids
    assert calls[2:] == [[0, 1, 2]]
    assert not torch.equal(other, first)
    assert next(replace(held_out, length=8).batches(8)).ids.shape == (1, 8)
    assert len(calls) == 4
