"""Whatever is given as a prompt, a position, a layer or an option is read as it was meant, or refused in one line."""

import contextlib
from collections.abc import Sequence

import hypothesis
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lenscope.cli.options import parse_amount, parse_indices, parse_positions, resolve_layers
from lenscope.errors import LenscopeError
from lenscope.models.layers import check_layers
from lenscope.models.prompts import Encoder, Prompt

hypothesis.settings.register_profile("lenscope", deadline=None, derandomize=True, max_examples=60, database=None)
hypothesis.settings.load_profile("lenscope")

N_LAYERS = 4


def spaced_words() -> PreTrainedTokenizerFast:
    """As Llama-2's: every text gets a space before it, and spaces are letters of tokens; all else is unknown."""
    letters = [chr(c) for c in range(33, 127)]
    vocabulary = {t: n for n, t in enumerate(["<unk>", "<s>", "</s>", "▁", *letters, "▁t", "▁th", "▁the"])}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def pieces() -> PreTrainedTokenizerFast:
    """As BERT's: lower case, no spaces kept, pieces of words begin with ##."""
    letters = [chr(c) for c in range(97, 123)]
    vocabulary = {t: n for n, t in enumerate(["[UNK]", *letters, *(f"##{c}" for c in letters), "the", "##at"])}
    raw = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")


BYTES = Encoder(tiny.tokenizer(), 320, 64, "tiny")
ENCODERS = {
    "bytes": BYTES,
    "spaced": Encoder(spaced_words(), 200, 64, "spaced"),
    "pieces": Encoder(pieces(), 100, 64, "pieces"),
    "none": Encoder(None, 320, 64, "bare"),
}

texts = st.text(min_size=1, max_size=12) | st.text("the cat sat.", min_size=1, max_size=20)
integers = st.integers(-30, 30) | st.integers()
scalars = (
    st.none() | st.booleans() | integers | st.floats() | st.text(st.characters(), max_size=6) | st.binary(max_size=6)
)


@st.composite
def arrays(draw):
    """Arrays and tensors of any kind and small shape."""
    shape = draw(st.sampled_from([(), (0,), (3,), (1, 3), (2, 2)]))
    values = np.full(shape, draw(st.integers(-3, 300)))
    kind = draw(st.sampled_from(["int64", "int32", "uint8", "float32", "bool", "complex64", "object", "str"]))
    if kind in ("object", "str"):
        return values.astype(kind)
    made = values.astype(kind)
    return draw(st.sampled_from([made, torch.from_numpy(made)]))


anything = st.recursive(
    scalars | arrays() | st.just(object()) | st.just(...) | st.just(slice("a", "b")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=2)
        | st.sets(st.integers(-3, 300) | st.text(max_size=3), max_size=3)
        | st.lists(inner, max_size=3).map(iter)
    ),
    max_leaves=6,
)
# the same number as Python, numpy and torch have it
kinds_of_int = st.sampled_from(
    [int, np.int64, np.int32, np.uint8, lambda n: torch.tensor(n), lambda n: np.array(n, np.int64)]
)


def one_line(error: BaseException) -> bool:
    return isinstance(error, LenscopeError) and bool(str(error).strip()) and "\n" not in str(error)


@contextlib.contextmanager
def allowed():
    """Nothing but one line of LenscopeError may come out."""
    try:
        yield
    except LenscopeError as error:
        if not one_line(error):
            raise AssertionError(f"not one line: {error!r}") from error


@st.composite
def prompts(draw) -> Prompt:
    encoder = ENCODERS[draw(st.sampled_from(["bytes", "spaced", "none"]))]
    if encoder.tokenizer is None:
        return encoder.prompt(draw(st.lists(st.integers(0, 319), min_size=1, max_size=12)))
    text = draw(texts)
    hypothesis.assume(text.strip())
    return encoder.prompt(text)


# -- prompts


@given(st.sampled_from(sorted(ENCODERS)), anything)
def test_whatever_is_given_as_a_prompt_is_one_or_is_refused(name, given):
    encoder = ENCODERS[name]
    with allowed():
        made = encoder.prompt(given)
        assert isinstance(made, Prompt)
        assert len(made.ids) == len(made.tokens) == len(made.spans) > 0
        assert all(type(i) is int and 0 <= i < encoder.vocab_size for i in made.ids)
        # what is read as ids was given as integers, not as truths, fractions, bytes or the keys of a dictionary
        assert not isinstance(given, dict | set | bytes | bool | int | float | None)
        if isinstance(given, list | tuple):
            assert not any(isinstance(i, bool | float | np.bool_) for i in given)


@given(anything)
def test_whatever_is_given_as_prompts_is_some_or_is_refused(lm, given):
    with allowed():
        batched, many = lm.encoder.prompts(given)
        assert many
        assert batched or len(many) == 1
        assert not isinstance(given, dict | set | bytes)


@given(st.lists(st.integers(0, 319), min_size=1, max_size=8), kinds_of_int)
def test_ids_are_the_same_whatever_integers_they_are(ids, kind):
    ids = [i % 256 for i in ids]
    wanted = BYTES.prompt(ids)
    assert BYTES.prompt([kind(i) for i in ids]) == wanted
    for dtype in (np.int64, np.uint8, np.int32):
        assert BYTES.prompt(np.array(ids, dtype)) == wanted
        assert BYTES.prompt(torch.from_numpy(np.array(ids, dtype))) == wanted
    assert BYTES.prompt(tuple(ids)) == wanted
    assert wanted.ids == tuple(ids)


@given(texts)
def test_tokens_and_spans_cover_the_text(text):
    prompt = BYTES.prompt(text)
    assert BYTES.decode([i for i, (a, b) in zip(prompt.ids, prompt.spans, strict=True) if b > a]) == text
    covered = {n for a, b in prompt.spans for n in range(a, b)}
    assert covered == set(range(len(text)))
    assert list(prompt.spans) == sorted(prompt.spans)
    spaced = ENCODERS["spaced"].prompt(text)
    assert {n for a, b in spaced.spans for n in range(a, b)} >= {
        n for n, c in enumerate(text) if c.isascii() and c > " "
    }
    assert all(0 <= a <= b <= len(text) for a, b in spaced.spans)


@given(st.text(st.characters(), max_size=8), st.sampled_from(["bytes", "spaced", "pieces"]))
def test_no_text_is_too_strange_to_be_read_or_refused(text, name):
    """Half a surrogate pair, control characters, what the tokenizer drops."""
    with allowed():
        prompt = ENCODERS[name].prompt(text)
        assert len(prompt) == len(prompt.tokens) == len(prompt.spans)
    with allowed():
        assert type(ENCODERS[name].token_id(text)) is int
    with allowed():
        assert isinstance(BYTES.chat(text), Prompt)


@given(st.sampled_from(["bytes", "spaced"]), st.integers(0, 319))
def test_a_token_as_it_is_shown_names_its_id(name, number):
    encoder = ENCODERS[name]
    hypothesis.assume(number < len(encoder.tokenizer) and number > 2)
    (token,) = encoder.tokens([number])
    if name == "bytes" and token.startswith("<"):
        return  # bytes that are no character
    assert encoder.token_id(token) == number
    assert encoder.token_id(number) == encoder.token_id(np.int64(number)) == number
    with pytest.raises(LenscopeError):
        encoder.token_id(number - encoder.vocab_size - 1)


# -- positions


@given(prompts(), integers, kinds_of_int)
def test_a_position_is_counted_from_either_end(prompt, at, kind):
    n = len(prompt)
    try:
        named = kind(at)
    except (OverflowError, RuntimeError):
        hypothesis.reject()
    if -n <= at < n:
        assert prompt.position(at) == at % n
        assert prompt.position(named) == prompt.position(int(named))
        assert prompt.positions(named) == (prompt.position(int(named)),)
        assert prompt.positions([named, at]) == (prompt.position(int(named)), at % n)
        assert prompt.positions(np.array([at])) == prompt.positions(torch.tensor([at])) == (at % n,)
    else:
        for call in (prompt.position, prompt.positions, lambda a: prompt.positions([0, a])):
            with pytest.raises(LenscopeError, match=r"position .*: the prompt's positions are 0"):
                call(at)


bounds = st.none() | st.integers(-15, 15) | st.integers(-15, 15).map(np.int64)


@given(prompts(), bounds, bounds, st.none() | st.integers(-3, 3))
def test_a_slice_of_positions_is_one_of_a_tuple(prompt, start, stop, step):
    try:
        wanted = tuple(range(len(prompt)))[slice(start, stop, step)]
    except ValueError:
        wanted = ()
    if wanted:
        assert prompt.positions(slice(start, stop, step)) == wanted
    else:
        with pytest.raises(LenscopeError) as error:
            prompt.positions(slice(start, stop, step))
        assert one_line(error.value)


@given(prompts(), anything)
def test_whatever_is_given_as_a_place_is_one_or_is_refused(prompt, given):
    n = len(prompt)
    with allowed():
        found = prompt.positions(given)
        assert type(found) is tuple
        assert found
        assert all(type(p) is int and 0 <= p < n for p in found)
        assert not isinstance(given, dict | bytes | bool | float)
    with allowed():
        assert 0 <= prompt.position(given) < n
        assert isinstance(given, str) or not isinstance(given, Sequence)


@given(texts, st.data())
def test_a_substring_names_the_token_its_last_character_is_in(text, data):
    prompt = BYTES.prompt(text)
    start = data.draw(st.integers(0, len(text) - 1))
    part = text[start : data.draw(st.integers(start + 1, len(text)))]
    ends = [n + len(part) for n in range(len(text)) if text.startswith(part, n)]
    wanted = []
    for end in ends:
        inside = [i for i, (a, b) in enumerate(prompt.spans) if a < end <= b]
        wanted.append(inside[-1])
    assert prompt.every(part) == tuple(sorted({*wanted}))
    if len({*wanted}) == 1:
        assert prompt.position(part) == wanted[0]
    else:
        with pytest.raises(LenscopeError, match="times in the prompt"):
            prompt.position(part)
    with pytest.raises(LenscopeError, match="not in the prompt"):
        prompt.every(text + "?")


def test_what_the_tokenizer_drops_is_no_place():
    """Not that of the token before it either."""
    prompt = ENCODERS["pieces"].prompt("the at")
    with pytest.raises(LenscopeError, match="the tokenizer drops it"):
        prompt.position(" ")


@given(prompts(), st.text(st.characters(), max_size=4))
def test_every_occurrence_is_a_place_or_is_refused(prompt, part):
    with allowed():
        found = prompt.every(part)
        assert found == tuple(sorted({*found}))
        assert part in prompt.text


# -- layers


@given(integers, kinds_of_int)
def test_a_layer_is_counted_from_either_end(layer, kind):
    try:
        named = kind(layer)
    except (OverflowError, RuntimeError):
        hypothesis.reject()
    number = int(named)
    for layers in (number, named, [named], (named,), np.array([number]), [0, named]):
        if -N_LAYERS - 1 <= number <= N_LAYERS:
            found = check_layers(layers, N_LAYERS, "tiny")
            assert found[-1] == number % (N_LAYERS + 1)
            assert all(type(n) is int for n in found)
        else:
            with pytest.raises(LenscopeError, match=r"layer .*: tiny has layers 0–4"):
                check_layers(layers, N_LAYERS, "tiny")


@given(bounds, bounds, st.none() | st.integers(-3, 3))
def test_a_slice_of_layers_is_one_of_a_tuple(start, stop, step):
    try:
        wanted = tuple(range(N_LAYERS + 1))[slice(start, stop, step)]
    except ValueError:
        wanted = ()
    with allowed():
        assert check_layers(slice(start, stop, step), N_LAYERS, "tiny") == wanted
    if not wanted:
        with pytest.raises(LenscopeError):
            check_layers(slice(start, stop, step), N_LAYERS, "tiny")


@given(anything)
def test_whatever_is_given_as_layers_is_some_or_is_refused(given):
    with allowed():
        found = check_layers(given, N_LAYERS, "tiny")
        assert found
        assert all(type(n) is int and 0 <= n <= N_LAYERS for n in found)
        assert not isinstance(given, dict | bytes | str | bool | float)


@given(anything, anything)
def test_whatever_states_are_indexed_with_gives_states_or_is_refused(lm, layer, position):
    states = lm.read("the cat")
    with allowed():
        assert states[layer, position].shape[-1] == lm.hidden_size


# -- the command line's options

ranges = st.tuples(bounds, bounds, st.none() | st.integers(1, 9)).map(
    lambda t: ":".join("" if n is None else str(n) for n in (t if t[2] is not None else t[:2]))
)
written = st.lists(st.integers(-40, 40).map(str) | ranges, min_size=1, max_size=4)
near = st.text("-0123456789:,. xkM_٣²\t\n\u2028", max_size=8) | st.text(st.characters(), max_size=6)


@given(written)
def test_layers_and_ranges_are_read_as_they_are_written(parts):
    found = parse_indices(",".join(parts), "layers")
    assert len(found) == len(parts)
    for part, one in zip(parts, found, strict=True):
        if ":" in part:
            assert range(50)[one] == range(50)[slice(*(int(n) if n else None for n in part.split(":")))]
        else:
            assert one == int(part)
    with allowed():
        assert all(type(n) is int for n in resolve_layers(found, N_LAYERS))


@given(near | st.sampled_from(["9" * 5000, "-" + "1" * 5000, "1:" + "2" * 5000, "", ",", ":", "1,,2", "--1", "1:2:0"]))
def test_whatever_is_written_as_layers_or_places_is_read_or_refused(text):
    with allowed():
        found = parse_indices(text, "layers")
        assert found
        assert all(isinstance(n, int | slice) for n in found)
        resolve_layers(found, N_LAYERS)
    with allowed():
        where = parse_positions(text)
        with allowed():
            BYTES.prompt("the cat sat").positions(where)


@given(st.integers(1, 10**9), st.sampled_from(["", "k", "K", "m", "M"]))
def test_amounts_are_whole_numbers(value, unit):
    size = {"": 1, "k": 10**3, "m": 10**6}[unit.lower()]
    assert parse_amount(f"{value}{unit}", "tokens") == value * size
    assert parse_amount(f"{value:_}{unit}", "tokens") == value * size


@given(near | st.sampled_from(["9" * 400, "9" * 5000, "1." + "0" * 400, "1e9", "nan", "inf", "0", "-1", "1_", "_1"]))
def test_whatever_is_written_as_an_amount_is_one_or_is_refused(text):
    with allowed():
        assert parse_amount(text, "tokens") >= 1
