"""Random words are of the same kind and frequency as the words that they stand for, and none of these."""

import numpy as np
import pytest
import torch

import lenscope as ls
from lenscope.experiments.jacobian_lens_paper import control_words
from lenscope.experiments.jacobian_lens_paper.control_words import NUMBER, SIGN, WORD, ControlWords, mean_prediction


def pool_of(words, frequency):
    """Words with one token each: n is that of the n-th; each is (kind, begins with a capital)."""
    log = np.log(frequency)
    order = np.argsort(log, kind="stable")
    kind, upper = np.array([w[0] for w in words]), np.array([w[1] for w in words])
    return ControlWords([(int(n),) for n in order], kind[order], upper[order], log[order], frequency)


def test_controls_are_as_frequent_as_the_word():
    random = np.random.default_rng(0)
    frequency = 10 ** random.uniform(-7, -1, 2000)
    pool = pool_of([(WORD, False)] * 2000, frequency)
    for token in range(0, 2000, 97):
        drawn = pool.draw("word", (token,), {token}, 20, random)
        assert len(drawn) == len(set(drawn)) == 20
        assert (token,) not in drawn
        ratios = [pool.ratio((token,), control) for control in drawn]
        assert all(abs(r) <= np.log10(control_words.FACTOR) for r in ratios)
        assert ratios == pytest.approx([np.log10(frequency[c[0]] / frequency[token]) for c in drawn])
    # neighbours on either side: the mean is not shifted
    shifts = [np.mean([pool.ratio((t,), c) for c in pool.draw("word", (t,), {t}, 50, random)]) for t in range(500)]
    assert abs(np.mean(shifts)) < 0.01


def test_controls_are_of_the_words_kind_and_case():
    random = np.random.default_rng(1)
    kinds = [(WORD, False)] * 100 + [(WORD, True)] * 100 + [(NUMBER, False)] * 10 + [(SIGN, False)] * 30
    frequency = random.uniform(1, 1.9, len(kinds))
    pool = pool_of(kinds, frequency)
    expected = {"word": range(100), "Word": range(100, 200), "7": range(200, 210), "+": range(210, 240)}
    for word, tokens in expected.items():
        own = tokens[3]
        drawn = [c[0] for c in pool.draw(word, (own,), {own}, 30, random)]
        assert {*drawn} <= {*tokens} - {own}
    # of nine numbers each is drawn three or four times
    numbers = [c[0] for c in pool.draw("7", (203,), {203}, 30, random)]
    assert {numbers.count(n) for n in set(numbers)} == {3, 4}
    assert len(set(numbers)) == 9


def test_controls_have_as_many_forms_and_none_that_is_excluded():
    random = np.random.default_rng(2)
    forms = [(3 * n, 3 * n + 1) if n % 2 else (3 * n,) for n in range(100)]
    frequency = np.ones(300)
    pool = ControlWords(forms, np.full(100, WORD), np.zeros(100, bool), np.zeros(100), frequency)
    excluded = {i for n in range(1, 41, 2) for i in forms[n][:1]}
    drawn = pool.draw("word", (1000 % 300, 7), excluded, 20, random)
    assert {len(ids) for ids in drawn} == {2}
    assert not {i for ids in drawn for i in ids} & excluded
    # too few of two forms: those of one are taken too
    few = {i for n in range(1, 91, 2) for i in forms[n][:1]}
    assert {len(ids) for ids in pool.draw("word", (1, 7), few, 40, random)} == {1, 2}


def test_the_same_draws_come_of_the_same_seed():
    pool = pool_of([(WORD, False)] * 300, np.linspace(1, 2, 300))
    one, same, other = (pool.draw("w", (5,), {5}, 20, np.random.default_rng(s)) for s in (0, 0, 1))
    assert one == same != other


def test_the_words_of_a_vocabulary(lm):
    frequency = np.linspace(1, 2, lm.vocab_size)
    pool = ControlWords.of(lm, frequency)
    assert len(pool.forms) > 20
    assert (np.diff(pool.log_frequency) >= 0).all()
    tokens = lm.encoder.tokens(range(lm.vocab_size))
    for n, ids in enumerate(pool.forms):
        texts = {tokens[i].strip().lower() for i in ids}
        assert len(texts) == 1
        assert pool.log_frequency[n] == pytest.approx(np.log(frequency[list(ids)].sum()))
        (text,) = texts
        assert pool.kind[n] == (NUMBER if text.isdecimal() else WORD if text.isalpha() else SIGN)


def test_frequencies_are_the_models_mean_prediction(lm64):
    rows = [[5, 6, 7, 8], [9, 10, 11]]
    frequency = mean_prediction(lm64, rows)
    expected = []
    for row in rows:
        with torch.no_grad():
            p = lm64.model(torch.tensor([row])).logits[0].softmax(-1)
        # not at the first position, nor where nothing follows
        expected += list(p[1:-1])
    assert frequency == pytest.approx(torch.stack(expected).mean(0).numpy(), rel=1e-6)
    assert frequency.sum() == pytest.approx(1)
    with pytest.raises(ls.LenscopeError):
        mean_prediction(lm64, [])
