"""Heat tables: which numbers have colours, how rows that are not to be trusted look."""

import numpy as np

from lenscope.display import numbers
from lenscope.display.heat_table import colour_caption, heat_table, shades_of, style_of, with_doubts
from lenscope.display.style import contrast
from lenscope.display.tables import TableColumn


def test_numbers_that_are_negative_are_colours_and_a_rank_without_a_target_is_none():
    values = np.array([[-9.0, -1.0]])
    assert shades_of(values, "log_prob: Paris").tolist() == [[0.0, 1.0]]
    assert "-9.0 … -1.0" in colour_caption("log_prob: Paris", values, 0, "nats", "")
    assert np.isnan(shades_of(np.array([[-1, 4]]), "rank")[0, 0])
    assert numbers.figure(-1, "rank") == "–"


def test_rows_that_are_not_to_be_trusted_have_a_mark_and_colours_that_stand_back():
    shades = np.array([[0.0, 1.0], [0.0, 1.0]])
    texts = [["a", "b"], ["c", "d"]]
    caption = with_doubts("colours", "not to be trusted at layer 0: a\x1b[1m reason")
    assert caption.splitlines() == ["colours", "? and grey: not to be trusted at layer 0: a<1B>[1m reason"]
    assert with_doubts("colours", "") == "colours"
    columns = [TableColumn("x", width=3), TableColumn("y", width=3)]
    table = heat_table(columns, ["0", "1"], texts, shades, caption, doubted=[True, False])
    assert [str(cell) for cell in table.columns[0].cells] == ["1", "?0"]
    plain = heat_table(columns, ["0", "1"], texts, shades, "colours")
    assert [str(cell) for cell in plain.columns[0].cells] == ["1", "0"]


def test_text_reads_on_every_colour_that_stands_back():
    for shade in np.linspace(0, 1, 41):
        look, back = style_of(float(shade)), style_of(float(shade), True)
        assert back.bgcolor != look.bgcolor
        assert contrast(back.color.name, back.bgcolor.name) >= 4.5
    assert style_of(float("nan"), True).dim
