"""Payloads: arrays go into a page and come back, but for the digits that a page does not show."""

import json

import numpy as np
import pytest
from browser import opened

from lenscope.display.payload import packed, unpacked_arrays, vocabulary_payload
from lenscope.display.view_modules import bundled_script
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
# what a page reads of a payload, as values that come back from it
UNPACKED = """async (text) => {
  const result = await unpackResult(JSON.parse(text)), list = ({values, shape}) => [shape, [...values].map(String)];
  const points = (t) => [...t].map((c) => c.codePointAt(0));
  return {
    arrays: Object.fromEntries(Object.entries(result.arrays).map(([name, array]) => [name, list(array)])),
    words: [...result.vocabulary].map(([id, t]) => [id, points(t)]),
    first: list(result.first.arrays.a),
  };
}"""


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


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_32_bits_are_infinite():
    values = unpacked_arrays(packed({}, {"a": np.array([1e300, -1e300, 3e38, 1e-320])}))["a"]
    assert values.tolist() == [np.inf, -np.inf, pytest.approx(3e38, rel=1e-4), 0]


def test_whole_numbers_beyond_32_bits_are_refused():
    with pytest.raises(LenscopeError, match="ids: holds 4294967296"):
        packed({}, {"ids": np.array([2**32])})


def test_a_vocabulary_has_what_is_needed():
    assert vocabulary_payload({3: "c", 1: "a", 2: "b"}, {2, 3, 9}) == {"ids": [2, 3], "texts": ["b", "c"]}
    assert vocabulary_payload({3: "c", 1: "a"}) == {"ids": [1, 3], "texts": ["a", "c"]}


def test_arrays_come_back_in_a_browser(browser, tmp_path):
    """The page's own code undoes what Python packed, nested payloads and vocabularies included."""
    words = {0: "", 5: "\ud800", 9: "a\u202eb"}
    head = {"kind": "x", "vocabulary": vocabulary_payload(words), "first": packed({"kind": "y"}, {"a": np.arange(3)})}
    payload = packed(head, ARRAYS)
    # the script without its start, and with a way in
    script = bundled_script() + "\nwindow.unpackResult = unpackResult;"
    path = tmp_path / "p.html"
    path.write_text(f"<!doctype html><link rel=icon href=data:,><script type=module>{script}</script>")
    with opened(browser, path.as_uri()) as page:
        page.wait_for_function("() => Boolean(window.unpackResult)")
        seen = page.evaluate(UNPACKED, json.dumps(payload))
    here = unpacked_arrays(payload)
    assert list(seen["arrays"]) == list(here)
    for name, (shape, values) in seen["arrays"].items():
        assert tuple(shape) == here[name].shape
        read = np.array([float(v.replace("Infinity", "inf")) for v in values]).astype(here[name].dtype)
        np.testing.assert_array_equal(read.reshape(here[name].shape), here[name])
    assert seen["first"] == [[3], ["0", "1", "2"]]
    assert seen["words"] == [[i, [ord(c) for c in text]] for i, text in words.items()]
