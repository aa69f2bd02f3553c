"""Values of results as JSON: what is written is read again, and what no result has is refused."""

import json

import numpy as np
import pytest

from lenscope.files import json_values as values


def test_arrays_come_back_to_the_last_bit():
    draw = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    draw[0, :3] = np.nan, np.inf, -np.inf
    lists = json.loads(json.dumps(values.to_exact_lists(draw), allow_nan=False))
    assert np.array_equal(values.float_array(lists, "x", (3, 4)), draw, equal_nan=True)
    assert values.to_lists(draw)[0][:3] == [None] * 3
    assert values.to_lists(np.array([[1, -1]], dtype=object)) == [[1, None]]
    assert values.whole_array([[1, None]], "n", (1, 2)).tolist() == [[1, -1]]


@pytest.mark.parametrize(
    "read",
    [
        lambda: values.whole_number(True, "n"),
        lambda: values.whole_number(5, "n", high=4),
        lambda: values.text_value(1, "t"),
        lambda: values.text_values("ab", "t"),
        lambda: values.whole_numbers([0.5], "n"),
        lambda: values.layer_numbers([1, 0], 4),
        lambda: values.layer_numbers([], 4),
        lambda: values.object_value([], "o"),
        lambda: values.whole_array([0.5], "n"),
        lambda: values.float_array(["x"], "x"),
        lambda: values.float_array([[1.0], [1.0, 2.0]], "x"),
        lambda: values.float_array([1.0], "x", (2,)),
        lambda: values.check_within(np.array([2.0]), "p", 0, 1),
        lambda: values.check_most_probable(np.log([[0.2, 0.5]]), np.array([0.2])),
        lambda: values.whole_ranks(np.array([0.5])),
    ],
)
def test_what_no_result_has_is_refused(read):
    with pytest.raises((ValueError, TypeError)):
        read()
