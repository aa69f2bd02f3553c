"""Text ↔ ids ↔ positions, padding, and what is said when a person names a place that is not there."""

import re

import pytest
import tiny
import torch

from lenscope.errors import LenscopeError
from lenscope.models.batches import pad
from lenscope.models.prompts import Encoder

TEXT = "The cat sat on the mat."


@pytest.fixture(scope="module")
def encoder():
    return Encoder(tiny.tokenizer(), 320, 64, "tiny")


def test_tokens_join_to_the_text(encoder):
    for text in (TEXT, "naïve café", "日本語 🦊", " leading", "two  spaces\n\nlines\t"):
        prompt = encoder.prompt(text)
        assert encoder.decode([i for i, s in zip(prompt.ids, prompt.spans, strict=True) if s != (0, 0)]) == text
        assert len(prompt.tokens) == len(prompt.ids) == len(prompt.spans)


def test_bytes_that_are_no_character_are_shown_as_bytes(encoder):
    assert "".join(encoder.prompt("a 🦊").tokens) == "a <F0><9F><A6><8A>"
    assert encoder.prompt("<s>").tokens == ("<s>",)


def test_positions_by_index_slice_and_substring(encoder):
    prompt = encoder.prompt(TEXT)
    n = len(prompt)
    assert prompt.position(0) == 0
    assert prompt.position(-1) == n - 1
    assert prompt.positions(slice(-2, None)) == (n - 2, n - 1)
    assert prompt.positions([0, "mat", -1]) == (0, prompt.position("mat"), n - 1)
    end = TEXT.index("cat") + 3
    a, b = prompt.spans[prompt.position("cat")]
    assert a < end <= b


def test_a_substring_names_its_last_token_even_when_bytes_are_split(encoder):
    prompt = encoder.prompt("a🦊b")
    assert prompt.position("🦊") == prompt.position("b") - 1


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (99, r"position 99: the prompt's positions are 0–\d+ or -\d+–-1"),
        ("dog", "position 'dog': not in the prompt 'The cat sat on the mat.'"),
        ("at", r"position 'at': occurs 3 times in the prompt; say which by its position: \d+ or \d+ or \d+"),
        ("", "position '': not in the prompt"),
        (slice(50, 60), "positions 50:60: none of the prompt's"),
        ([], "positions: the list is empty"),
        (1.5, "give an integer or a substring|object is not iterable"),
    ],
)
def test_places_that_are_not_there(encoder, at, message):
    with pytest.raises((LenscopeError, TypeError), match=message):
        encoder.prompt(TEXT).positions(at)


def test_prompts_that_cannot_be_read(encoder):
    with pytest.raises(LenscopeError, match="the prompt is empty"):
        encoder.prompt("")
    with pytest.raises(LenscopeError, match="the prompt is empty"):
        encoder.prompt([])
    with pytest.raises(LenscopeError, match=r"the prompt has 65 tokens: tiny reads at most 64"):
        encoder.prompt([20] * 65)
    # also those that a tokenizer, which counts in 32 bits, cannot even look up
    for ids in ([-1], [3, -5], [10**12], [2**63]):
        bad = next(i for i in ids if not 0 <= i < 320)
        with pytest.raises(LenscopeError, match=f"token {bad}: tiny has token ids 0–319"):
            encoder.prompts(ids)
    with pytest.raises(LenscopeError, match=r"token 320: tiny has token ids 0–319"):
        encoder.prompt([1, 320])


def test_tokens_by_text_and_id(encoder):
    assert encoder.token_id(5) == 5
    one = encoder.prompt("a").ids[-1]
    assert encoder.token_id("a") == one
    with pytest.raises(LenscopeError, match=r"is \d tokens"):
        encoder.token_id("zqzq")
    # the command line, where ids are texts, has the same line
    with pytest.raises(LenscopeError) as raised:
        encoder.token_id("zqzq")
    assert re.search(r"; give one of them(, or ' zqzq', which is one)?$", str(raised.value))
    with pytest.raises(LenscopeError) as raised:
        encoder.token_id("")
    assert str(raised.value) == (
        "token '': is no token of tiny; give the text of one, with the space before it where it has one"
    )
    with pytest.raises(LenscopeError, match="token ids 0–319"):
        encoder.token_id(320)


def test_chat_uses_the_template_once(encoder):
    prompt = encoder.chat("hello")
    assert "hello" in prompt.text
    assert prompt.ids == encoder.chat([{"role": "user", "content": "hello"}]).ids
    bos = encoder.tokenizer.bos_token_id
    assert list(prompt.ids).count(bos) <= 1
    with pytest.raises(LenscopeError, match="no chat template"):
        Encoder(None, 320, None, "bare").chat("hello")


def test_ids_without_a_tokenizer():
    bare = Encoder(None, 320, None, "bare")
    assert bare.prompt([3, 4]).tokens == ("<3>", "<4>")
    with pytest.raises(LenscopeError, match="without a tokenizer"):
        bare.prompt("text")


def test_padding_left_and_right(encoder):
    prompts = [encoder.prompt([11, 12, 13]), encoder.prompt([14])]
    right = pad(prompts, "right", torch.device("cpu"))
    left = pad(prompts, "left", torch.device("cpu"))
    assert right.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert left.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert left.ids[1, 2] == right.ids[1, 0] == 14
    assert left.before == (0, 2)
    assert right.before == (0, 0)
    assert right.padded
