"""Marks are no text: those around documents are found whatever the alphabet, and none counts, wherever it stands."""

import numpy as np
import pytest
import spelled
import tiny

import lenscope as ls
from lenscope.fitting.model_to_model import aligned
from lenscope.models.prompts import Encoder
from lenscope.text.packing import Marks, counted_positions, find_marks, mark_ids


def model(tokenizer):
    return ls.LM(tiny.model("llama"), tokenizer, "tiny-llama")


def test_marks_are_found_whatever_the_alphabet():
    assert find_marks(model(spelled.letters())) == Marks((1,), (1,), ())
    assert find_marks(model(spelled.letters(True))) == Marks((), (), (3,))
    assert find_marks(model(spelled.llama2(1))) == Marks((1,), (1,), ())
    assert find_marks(model(spelled.unigram())) == Marks((), (), (1,))
    assert find_marks(model(spelled.wordpiece())) == Marks((2,), (2,), (3,))


def test_tokens_with_ids_above_their_number():
    encoder = Encoder(spelled.sparse(), 320, None, "sparse")
    assert encoder.prompt("abcab").tokens == ("abc", "ab")
    assert encoder.tokens([299, 300, 311, 319]) == ["<299>", "ab", "<311>", "<319>"]
    assert encoder.token_id("abc") == 310


@pytest.fixture(scope="module")
def marked():
    """A tokenizer whose special tokens, of ends and roles, are made of text too; its unknown one is text."""
    import copy

    made = copy.deepcopy(tiny.tokenizer())
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|endoftext|>"], "unk_token": "<unk>"})
    return model(made)


@pytest.mark.parametrize("mark", ["<|endoftext|>", "<|im_start|>", "</s>", "<pad>"])
def test_marks_written_in_documents_do_not_count(marked, mark):
    text = f"The cat sat {mark}on the mat. <unk> This is {mark}{mark} a test."
    ids = marked.encoder.ids(text)
    bad = marked.encoder.token_id(mark)
    assert ids.count(bad) == 3
    for document in (text, ids):
        batch = next(ls.Corpus.open(marked, [document] * 3, length=24).batches(rows=4))
        assert (batch.ids == bad).sum() >= 3
        assert not batch.counted[batch.ids == bad].any()
        others = ~np.isin(batch.ids.numpy(), mark_ids(marked))
        others[:, 0] = False
        assert np.array_equal(batch.counted.numpy(), others)
        assert batch.counted[batch.ids == marked.encoder.token_id("<unk>")].all()


def test_which_positions_count(marked):
    ids = [5, 6, marked.encoder.token_id("<|im_start|>"), 7]
    assert counted_positions(ids, mark_ids(marked)).tolist() == [False, True, False, True]


def test_marks_in_texts_align_no_models(marked):
    text = "The cat<|im_start|> sat"
    prompt = marked.prompt(text)
    at = prompt.position("<|im_start|>")
    special = marked.encoder.spelling.special
    assert (at, at) in aligned(prompt, prompt)
    pairs = aligned(prompt, prompt, (special, special))
    assert (at, at) not in pairs
    assert len(pairs) == len(prompt) - 2
