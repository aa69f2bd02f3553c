"""Scores of words that are not said, by hand: ranks, hits, controls, other prompts."""

from dataclasses import replace

import affine_lens
import numpy as np
import pytest
import torch
from thoughts_by_hand import scores_of

import lenscope as ls
from lenscope.experiments.jacobian_lens_paper import thought_scores
from lenscope.experiments.jacobian_lens_paper.prompt_sets import ThoughtPrompt
from lenscope.experiments.jacobian_lens_paper.thought_scores import KS, ScoredWords, score_words
from lenscope.text.packing import after_document_mark


def item(name, ids, controls=((),), words=None, prompt="the cat"):
    words = words or tuple(f"{name}{n}" for n in range(len(ids)))
    return ScoredWords(ThoughtPrompt(name, "set", prompt, tuple(words)), tuple(words), tuple(ids), tuple(controls))


def test_the_published_score_is_of_each_words_best_layer():
    scores = scores_of([[
        [[0, 20], [50, 4], [7, 9]],
        [[10, -1], [10, -1], [10, -1]],
    ]])  # fmt: skip
    assert KS == (1, 5, 10)
    # best ranks 0 and 4 of the one prompt, 10 of the other's single word, which is the eleventh
    assert scores.best()[0].tolist() == [[0.5, 1, 1], [0, 0, 0]]
    assert scores.hits()[0, 0].tolist() == [[0.5, 0.5, 0.5], [0, 0.5, 0.5], [0, 0, 1]]
    assert scores.hits()[0, 1].tolist() == [[0, 0, 0]] * 3
    assert scores_of([[[[9]]]]).best()[0].tolist() == [[0, 0, 1]]


def test_a_prompt_is_scored_by_hand(monkeypatch):
    monkeypatch.setattr(thought_scores, "KS", (1, 2))
    # logits of 8 tokens at 2 layers
    z = torch.tensor([[8.0, 7, 6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6, 7, 8]])
    one = item("a", [(0, 6), (3,)], [((1,), (7,)), ((4, 5), (3,))])
    read = thought_scores._read_prompt(z, one, [(0, 6), (3,), (7,)], "lens")
    # the best form counts: token 0 first, then token 6, of which one token is more probable
    assert read.rank.tolist() == [[0, 3], [1, 4]]
    # random words: at layer 0 token 1 is within 2, at layer 1 token 7 within 1; the other word's are not
    assert read.random_hits.tolist() == [[0, 0.25], [0.25, 0.25]]
    assert read.random_best.tolist() == [0.25, 0.5]
    # of (0, 6): above tokens 1 and 7 at layer 0, above 1 and below 7 at layer 1; of (3,): above 4, 5 and equal to
    # itself at layer 0, below and equal at layer 1
    assert read.graded.tolist() == [(1 + 1 + 1 + 0.5) / 4, (1 + 0 + 0 + 0.5) / 4]
    assert read.set_hits.tolist() == [
        [[True, True], [False, False], [False, False]],
        [[False, True], [False, False], [True, True]],
    ]
    log = z.log_softmax(-1).numpy()
    assert read.set_log == pytest.approx(np.stack([log[0, [0, 3, 7]], log[1, [6, 3, 7]]]))


def test_logits_that_are_no_numbers_are_refused():
    z = torch.tensor([[1.0, float("nan")]])
    with pytest.raises(ls.LenscopeError, match="lens x: gives logits that are not finite on 'a'"):
        thought_scores._read_prompt(z, item("a", [(0,)], [((1,),)]), [(0,)], "x")


def test_words_are_scored_on_other_prompts_of_their_set(monkeypatch):
    monkeypatch.setattr(thought_scores, "KS", (1,))
    # three prompts with a word each, the first two with the same one; one layer
    hits = np.array([[[1, 0]], [[1, 0]], [[1, 1]]], dtype=bool)[..., None]
    logs = np.array([[[-1.0, -9]], [[-2.0, -8]], [[-3.0, -1]]])
    items = [item("a", [(0,)], words=("cat",)), item("b", [(0,)], words=("Cat",)), item("c", [(1,)], words=("mat",))]
    nothing = np.zeros((1, 1))
    read = [
        thought_scores._PromptReading(nothing.astype(np.int32), nothing, nothing[0], nothing[0], hits[n], logs[n])
        for n in range(3)
    ]
    rank, _, _, _, other_hits, other_best, specific = thought_scores._lens_scores(items, read, {(0,): 0, (1,): 1})
    assert rank.shape == (3, 1, 1)
    # cat on the prompt of mat; mat on both of cat
    assert other_hits[:, 0, 0].tolist() == [1, 1, 0]
    assert other_best[:, 0].tolist() == [1, 1, 0]
    # cat is less probable there; mat less on both
    assert specific[:, 0].tolist() == [1, 1, 1]
    alone = thought_scores._lens_scores(items[:2], read[:2], {(0,): 0, (1,): 1})
    assert np.isnan(alone[4]).all()
    assert np.isnan(alone[5]).all()
    assert np.isnan(alone[6]).all()


def test_ranks_are_those_of_the_lens(lm64):
    """What one prompt's words are ranked by `Lens.ranks`, which counts on its own."""
    f = affine_lens.affine(lm64)
    f = replace(f, weights={pair: (a.double(), b.double()) for pair, (a, b) in f.weights.items()})
    lenses = {"logit lens": ls.Lens(lm64), "tuned": ls.Lens(lm64, f)}
    texts = ["the cat sat", "on the mat\nParis is", "the capital of France"]
    items = [
        item(f"p{n}", [(20 + n, 40), (60 + n,)], [((30,), (31,)), ((32, 33), (34,))], prompt=text)
        for n, text in enumerate(texts)
    ]
    items[1] = replace(items[1], prompt=replace(items[1].prompt, at_line_end=True))
    layers = (1, 3)
    states = thought_scores.states_read(lm64, [one.prompt for one in items], layers)
    calls = []
    scores = score_words(lenses, items, states, layers, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (6, 6)
    for f_number, lens in enumerate(lenses.values()):
        for n, one in enumerate(items):
            prompt = after_document_mark(lm64, [one.prompt.prompt])[0]
            at = max(i for i, t in enumerate(prompt.tokens) if "\n" in t) if n == 1 else len(prompt) - 1
            every = [i for ids in one.ids for i in ids]
            ranks = lens.ranks(prompt, every, layers, at).rank[:, :, 0]
            assert scores.rank[f_number, n, :, 0].tolist() == ranks[:2].min(0).tolist()
            assert scores.rank[f_number, n, :, 1].tolist() == ranks[2].tolist()
    assert scores.best().shape == (2, 3, len(KS))
    assert np.isfinite(scores.other_hits).all()
