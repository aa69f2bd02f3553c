"""Heat tables: which numbers have colours."""

import numpy as np

from lenscope.display import numbers
from lenscope.display.heat_table import colour_caption, shades_of


def test_numbers_that_are_negative_are_colours_and_a_rank_without_a_target_is_none():
    values = np.array([[-9.0, -1.0]])
    assert shades_of(values, "log_prob: Paris").tolist() == [[0.0, 1.0]]
    assert "-9.0 … -1.0" in colour_caption("log_prob: Paris", values, 0, "nats", "")
    assert np.isnan(shades_of(np.array([[-1, 4]]), "rank")[0, 0])
    assert numbers.figure(-1, "rank") == "–"
