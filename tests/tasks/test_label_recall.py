"""Labels found by embeddings of a tiny model's states: means, ranks, ties and the choice of a layer, by hand."""

import numpy as np
import pytest
from plain_hooks import run_with_hooks

from lenscope.errors import LenscopeError
from lenscope.tasks.label_recall import label_search, same_words, text_states
from lenscope.text.packing import find_marks

LABELS = ["The cat", "France", "a test of the mat", "Paris is", "a tokenizer", "capital"]


def test_a_label_is_its_own_words_and_no_others():
    assert same_words("  the CAT.", "The cat")
    assert same_words("Café", "cafe")
    assert not same_words("the cat sat", "The cat")
    assert not same_words("", "The cat")
    assert not same_words(" - ", "-")


def test_embeddings_are_means_of_the_texts_own_tokens(lm64):
    found = text_states(lm64, ["a test of the mat", "  ", "France"], [2, 4])
    mark = find_marks(lm64).document
    for n, text in ((0, "a test of the mat"), (2, "France")):
        ids = [*mark, *lm64.encoder.ids_behind(" " + text)]
        states = run_with_hooks(lm64.model, [ids])[0][[2, 4], 0, len(mark) :]
        # float64; texts are read side by side
        assert found[n] == pytest.approx(states.mean(1).numpy(), abs=1e-9)
    assert (found[1] == 0).all()


def test_ranks_by_hand(lm64):
    search = label_search(lm64, LABELS, [2, 4])
    assert search.ranks(LABELS, LABELS).tolist() == [[0, 0]] * 6
    texts = ["a cat", "", "Paris", "The cat"]
    own = ["The cat", "France", "France", "capital"]
    states = {text: text_states(lm64, [text], [2, 4])[0] for text in {*texts, *LABELS} - {""}}
    center = np.mean([states[label] for label in LABELS], 0)
    found = search.ranks(texts, own)
    for n, (text, label) in enumerate(zip(texts, own, strict=True)):
        for at in range(2):
            if not text:
                assert found[n, at] == 5
                continue
            a = states[text][at] - center[at]
            near = {m: a @ (b := states[m][at] - center[at]) / np.linalg.norm(a) / np.linalg.norm(b) for m in LABELS}
            assert found[n, at] == sum(value > near[label] for value in near.values())
    assert found[3].min() > 0


def test_the_layer_is_the_one_whose_ranks_are_best(lm64):
    search = label_search(lm64, LABELS, [0, 4])
    texts, own = ["cat The", "the mat of a test", "is Paris"], ["The cat", "a test of the mat", "Paris is"]
    ranks = search.ranks(texts, own)
    # before the first block the order of words does not count
    assert search.chosen_layer(texts, own) == int((1 / (ranks + 1)).mean(0).argmax())
    assert (ranks[:, 0] == 0).all()
    assert label_search(lm64, LABELS).layers == (2, 4)


@pytest.mark.parametrize(
    ("labels", "said"),
    [(["a"], "1, 1 of them different"), (["a", "a"], "2, 1 of them different"), (["a", " "], "label ' ': has no word")],
)
def test_lists_without_different_labels_are_refused(lm64, labels, said):
    with pytest.raises(LenscopeError, match=said):
        label_search(lm64, labels)


def test_labels_that_are_not_searched_are_told(lm64):
    search = label_search(lm64, LABELS, [2])
    with pytest.raises(LenscopeError, match="label 'dog': is none of the 6 that are searched"):
        search.ranks(["a"], ["dog"])
    with pytest.raises(LenscopeError, match="1 texts, 2 labels"):
        search.ranks(["a"], ["France", "capital"])
