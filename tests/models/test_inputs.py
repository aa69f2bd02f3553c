"""What a person gives as a prompt, a position or a layer, of any library: what was meant, or one line."""

import copy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import lenscope as ls
from lenscope.errors import LenscopeError
from lenscope.models.layers import check_layers
from lenscope.models.prompts import Encoder

TEXT = "The cat sat"


def test_one_prompt_in_many_forms(lm):
    ids = lm.prompt(TEXT).ids
    padded = {"input_ids": [*ids, 0, 0], "attention_mask": [1] * len(ids) + [0, 0]}
    left = {"input_ids": torch.tensor([0, *ids]), "attention_mask": torch.tensor([0, *[1] * len(ids)])}
    for given in (
        TEXT, TEXT.encode(), bytearray(TEXT.encode()), np.str_(TEXT), lm.prompt(TEXT), list(ids), np.array(ids),
        torch.tensor(ids), np.array(ids, dtype=np.uint16), [np.int64(i) for i in ids], [torch.tensor(i) for i in ids],
        (i for i in ids), pa.array(ids), lm.tokenizer(TEXT), padded, left, range(10, 14), memoryview(TEXT.encode()),
    ):  # fmt: skip
        batched, (one,) = lm.encoder.prompts(given)
        assert not batched
        assert one.ids == (ids if not isinstance(given, range) else (10, 11, 12, 13))
    assert lm.prompt(torch.tensor([ids])).ids == ids
    assert lm.prompt(lm.tokenizer(TEXT, return_tensors="pt")).ids == ids


def test_several_prompts_in_many_forms(lm):
    texts = [TEXT, "on the mat."]
    ids = [lm.prompt(t).ids for t in texts]
    together = lm.tokenizer(texts, padding=True, return_tensors="pt")
    assert together["attention_mask"].min() == 0 or len(ids[0]) == len(ids[1])
    for given in (
        texts, np.array(texts), pa.array(texts), pa.chunked_array([texts]), (t for t in texts), tuple(texts),
        [t.encode() for t in texts], together, lm.tokenizer(texts), [lm.tokenizer(t) for t in texts],
        [list(i) for i in ids], [np.array(i) for i in ids],
    ):  # fmt: skip
        batched, many = lm.encoder.prompts(given)
        assert batched
        assert [p.ids for p in many] == ids
    batched, many = lm.encoder.prompts(np.array([[5, 6], [7, 8]]))
    assert batched
    assert [p.ids for p in many] == [(5, 6), (7, 8)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "None: is of type NoneType; give a text"),
        (5, "5: is of type int"),
        (True, "True: is of type bool"),
        (1.5, "1.5: is of type float"),
        ([1.0, 2.0], "is of type float"),
        ([5, 6.0], "6.0: is no token id"),
        ([5, True], "True: is no token id"),
        (np.array([True, False]), "is of type bool"),
        (np.array([5.0, 6.0]), "is of type float"),
        ([5, "a"], "'a': is no token id"),
        (["a", None], "None: is of type NoneType"),
        ([[5, [6]]], r"\[6\]: is no token id"),
        ({"a", "b"}, "a set, which has no order"),
        (Path("a.txt"), "a path; read its text first"),
        (b"\xff\xfe", "bytes that are not UTF-8"),
        ({"text": "a"}, "a dict without input_ids"),
        ([{"role": "user", "content": "a"}], "a chat turn; LM.chat takes a list of them"),
        ({"input_ids": [5, 6], "attention_mask": [1]}, "attention_mask: has 1 entries for 2"),
        ({"input_ids": [5, 6], "attention_mask": [0, 0]}, "the prompt is empty"),
        ([], "the prompt is empty"),
        (np.zeros((0,), dtype=int), "the prompt is empty"),
        ("a \ud83d b", "half of a surrogate pair"),
        (int, "is of type type"),
        (torch.empty(3, device="meta"), "no values that can be read"),
    ],
)
def test_what_is_no_prompt_is_refused_in_one_line(lm, given, message):
    for call in (lm.read, lm.generate):
        with pytest.raises(LenscopeError, match=message) as told:
            call(given)
        assert "\n" not in str(told.value)


def test_halves_of_one_character_are_joined(lm):
    assert lm.prompt("a \ud83e\udd8a b").text == "a 🦊 b"


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, torch.tensor])
def test_integers_of_every_library(lm, kind):
    states = lm.read(TEXT)
    assert torch.equal(states[kind(1), kind(2)], states[1, 2])
    assert torch.equal(states[[kind(1), 3], [kind(0)]], states[[1, 3], [0]])
    assert lm.read(TEXT, layers=kind(1)).layers == (1,)
    assert lm.read(TEXT, layers=[kind(1), kind(3)], positions=kind(2)).positions == ((2,),)
    assert lm.read(TEXT, slice(kind(1), kind(3))).layers == (1, 2)
    assert len(lm.generate(TEXT, kind(2)).ids) <= 2
    assert lm.prompt(TEXT).position(kind(1)) == 1


def test_layers_as_positions(lm):
    assert lm.read(TEXT, slice(1, None, 2)).layers == (1, 3)
    assert lm.read(TEXT, np.array([0, -1])).layers == (0, 4)
    trajectory = ls.Lens(lm).trajectory(TEXT)
    states = lm.read(TEXT)
    depth = trajectory.prediction_depth[-1]
    assert torch.equal(states[depth, -1], states[int(depth), -1])
    for bad in (True, 1.0, "1", [1.5], [True], slice("a", None), slice(9, 12), [], None):
        with pytest.raises(LenscopeError, match="layer"):
            check_layers(bad, 4, "m")
    for bad in (True, 1.0, [1.5], [np.True_], slice(1.5, None)):
        with pytest.raises(LenscopeError, match="position"):
            lm.prompt(TEXT).positions(bad)


def test_chat_templates_that_fail_are_one_line(lm):
    tokenizer = copy.deepcopy(lm.tokenizer)
    encoder = Encoder(tokenizer, 320, None, "chatty")
    for template, turns in (
        ("{{ raise_exception('roles must alternate\nstrictly') }}", "hi"),
        ("{% for %}", "hi"),
        ("{{ messages[0]['content'].nothing.at_all }}", "hi"),
        ("{{ 1 / 0 }}", "hi"),
    ):
        tokenizer.chat_template = template
        with pytest.raises(LenscopeError, match="chatty: its chat template does not take these turns") as told:
            encoder.chat(turns)
        assert "\n" not in str(told.value)
    for bad in (5, None, ["a"], [{"role": "user"}], []):
        with pytest.raises(LenscopeError, match="give a text"):
            encoder.chat(bad)
