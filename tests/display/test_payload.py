"""Payloads: arrays go into a page and come back, but for the digits that a page does not show."""

import json

import numpy as np
import pytest

from lenscope.display.payload import packed, unpacked_arrays, vocabulary_payload
from lenscope.errors import LenscopeError

RNG = np.random.default_rng(0)
ARRAYS = {
    "floats": np.concatenate([RNG.normal(size=200) * 10.0 ** RNG.integers(-30, 30, 200), [0.0, -0.0]]),
    "unknown": np.array([[np.nan, 1.5, np.inf], [-np.inf, 3.0e38, 1e-40]], np.float32),
    "whole": RNG.integers(-(2**31), 2**31, (3, 4, 5)),
    "yes": np.array([True, False, True]),
    "none": np.zeros((0, 3), np.float32),
    "one": np.array(7),
}


def test_arrays_come_back():
    payload = json.loads(json.dumps(packed({"kind": "x", "text": "</script>\ud800"}, ARRAYS), allow_nan=False))
    assert payload["text"] == "</script>\ud800"
    back = unpacked_arrays(payload)
    assert list(back) == list(ARRAYS)
    for name, values in ARRAYS.items():
        assert back[name].shape == values.shape
        if values.dtype.kind == "f":
            np.testing.assert_allclose(back[name], values.astype(np.float32), rtol=6.2e-5, atol=1e-38)
        else:
            np.testing.assert_array_equal(back[name], values)


def test_floats_that_pages_show_exactly_stay_so():
    values = np.array([0.5, 1.0, 0.25, 4096.0, 8191.0], np.float32)
    np.testing.assert_array_equal(unpacked_arrays(packed({}, {"a": values}))["a"], values)


def test_whole_numbers_beyond_32_bits_are_refused():
    with pytest.raises(LenscopeError, match="ids: holds 4294967296"):
        packed({}, {"ids": np.array([2**32])})


def test_a_vocabulary_has_what_is_needed():
    assert vocabulary_payload({3: "c", 1: "a", 2: "b"}, {2, 3, 9}) == {"ids": [2, 3], "texts": ["b", "c"]}
    assert vocabulary_payload({3: "c", 1: "a"}) == {"ids": [1, 3], "texts": ["a", "c"]}
