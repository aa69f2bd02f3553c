"""Grids as tables: every number says what it is, and a narrow heat map still says its values."""

import numpy as np
from drawing import drawn

import lenscope as ls
from lenscope.patchscopes.grid import Grid
from lenscope.patchscopes.grid_cells import Source, Spot


def test_an_answer_has_its_number_in_every_line(lm):
    answered = ls.Patchscope(lm, "The cat").predict(lm.read("The dog", positions=-1), "same", answers=[" a", " b"])
    lines = drawn(answered.table()).splitlines()
    for n, line in enumerate(lines[1 : 1 + len(answered)]):
        for name in ("log_prob: a", "log_prob: b"):
            value = float(answered.measures[name][n])
            assert f"{value:.2f} (" in line
    assert lines[0].split()[:5] == ["layer", "ln", "p", "·a", "ln"]


def test_the_number_beside_what_was_written_says_what_it_is(lm):
    said = ls.Patchscope(lm, "The cat").generate(lm.read("The dog", positions=-1), "same", max_new_tokens=2)
    text = " ".join(drawn(said.table()).split())
    assert "p(1st)" in text
    assert "probability of the first token that was written" in text


def test_a_heat_map_too_narrow_for_words_says_its_values_without_colours():
    n = 30
    pairs = np.array([(s, t) for s in range(n) for t in range(n)])
    sources = tuple(Source("", "m", "t", "t", 0, layer) for layer in range(n))
    values = (pairs[:, 1] / (n - 1)).astype(np.float32)
    number, zeros = {"max_probability": values}, np.zeros(n * n, np.int64)
    chances = np.zeros((n * n, 1), np.float32)
    spots, texts = (Spot("t", ("t",), (0,)),), ("x",) * n * n
    columns = sources, spots, pairs[:, 0], pairs[:, 1], zeros, zeros[:, None] + 7, chances, texts, (), number
    whole = Grid("predict", "m", n, *columns, {7: "x"})
    line = drawn(whole.table(width=80), 80).splitlines()[1].split()
    assert line[1] == "0"
    assert line[-1] == "9"
